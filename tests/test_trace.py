"""Tracks, the trace's window, the arrows, and the timelines of real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from chunks import chunk_of, make, numbered
from fdql.cli import main
from fdql.config import Config, ConfigError
from fdql.proc.memory import RECORD_INFERENCE, RECORD_TRAINER, RunMemory
from fdql.profile import Counter, Mark, Stage
from fdql.replay.first_use import FirstUse
from fdql.shm.records import (
    CONTROL_BYTES,
    Control,
    Record,
    Track,
    now_ns,
    record_bytes,
    track_bytes,
)
from fdql.shm.segment import Segment
from fdql.stop_request import StopRequest
from fdql.supervisor import train
from fdql.trace import EVENT, Thread, TraceRecorder, trace_events
from hypothesis import given
from hypothesis import strategies as st
from plans import small_config, small_plan
from timelines import Timeline, read_timeline

U64 = st.integers(0, 2**64 - 1)


def memory_of(nbytes: int) -> memoryview:
    return Segment.create([(7, 0, nbytes)], 0, shared=False).section(7, 0)[:nbytes]


def read(track: Track) -> list[tuple[int, ...]]:
    return np.frombuffer(track.events(), dtype=EVENT).tolist()


@given(st.lists(st.tuples(U64, U64, U64, st.integers(0, 2**32 - 1)), max_size=12))
def test_a_track_keeps_what_has_room_and_counts_the_rest(events):
    memory = memory_of(track_bytes(8))
    writer, reader = Track(memory), Track(memory)
    for i, (t0, duration, value, kind) in enumerate(events):
        writer.append(kind, t0, duration, value)
        assert read(reader) == events[: min(i + 1, 8)]
    assert (reader.capacity, reader.dropped) == (8, max(0, len(events) - 8))


def test_a_successor_goes_on_after_what_was_published():
    memory = memory_of(track_bytes(4))
    Track(memory).append(1, 10, 5, 7)
    memory[128 + 32 : 128 + 40] = b"\xff" * 8  # its writer was killed while it wrote the second
    assert read(Track(memory)) == [(10, 5, 7, 1)]
    Track(memory).append(2, 20, 6, 8)
    assert read(Track(memory)) == [(10, 5, 7, 1), (20, 6, 8, 2)]
    with pytest.raises(ValueError, match="too few"):
        Track(memory_of(128))


def traced_record() -> tuple[Record, Track, Control]:
    record = Record(memory_of(record_bytes(1, 4)), 1, 4)
    track, control = Track(memory_of(track_bytes(8))), Control(memory_of(CONTROL_BYTES))
    record.trace_into(track, control.buffer)
    return record, track, control


def test_only_what_touches_the_window_is_written():
    record, track, control = traced_record()
    before = now_ns()
    record.observe_since(0, before)
    record.mark(1, 2)
    assert (record.tracing, control.trace_window, read(track)) == (False, (0, 0), [])
    begin = now_ns()
    end = begin + 10**12
    control.open_trace(begin, end)
    assert (record.tracing, control.trace_window) == (True, (begin, end))
    now = record.observe_since(3, before, 9)  # it began before the window and ends in it
    record.mark(300, 4)
    record.span(301, end + 1, 5)  # a begin in the future counts as now
    record.observe(2, 77)  # a number, not a time: the histogram's alone
    first, mark, span = read(track)
    assert first == (before, now - before, 9, 3)
    assert mark[1:] == (0, 4, 300)
    assert span[1:] == (0, 5, 301)
    assert now <= mark[0] <= span[0] < end
    assert [record.max_ns(h) > 0 for h in range(4)] == [True, False, True, True]
    with pytest.raises(ValueError, match="opened once"):
        control.open_trace(begin, end)


def test_after_the_window_nothing_is_written():
    record, track, control = traced_record()
    begin = now_ns() - 1000
    control.open_trace(begin, begin + 500)
    record.mark(300, 4)
    record.observe_since(0, begin + 500)
    assert (record.tracing, read(track)) == (False, [])
    record.observe_since(0, begin + 499)  # it began within
    assert len(read(track)) == 1


def test_a_record_without_a_track_writes_nothing():
    record = Record(memory_of(record_bytes(1, 1)), 1, 1)
    record.mark(300, 1)
    record.span(300, 1, 1)
    assert record.tracing is False
    assert not any(record.counts(0))


def test_first_use_by_hand():
    # lanes 0 and 1; chunk 7 brings serials 0-4 of lane 0, chunk 9 serials 5-6 of it and 0-1 of
    # lane 1; leaf of serial s of lane l is l * L + s
    replay = make(n_lanes=2, n_step=1)
    uses, length = FirstUse(replay.rows), replay.rows.lane_rows
    for chunk, rows in ((7, numbered(5)), (9, numbered(2) + numbered(2, lane=1))):
        uses.before_ingest()
        replay.ingest(chunk_of(rows), len(rows), 0, lanes_of_worker=2)
        uses.ingested(chunk)
    assert uses.drawn(np.array([length + 5])) == []  # no chunk's
    assert uses.drawn(np.array([0, 4])) == [7]
    assert uses.drawn(np.array([3, 5])) == [9]
    assert uses.drawn(np.array([0, 6, length])) == []


def test_first_use_where_a_lane_begins_again():
    replay = make(n_lanes=1, n_step=1)
    uses, length = FirstUse(replay.rows), replay.rows.lane_rows
    for chunk, n in ((1, length - 2), (2, 4)):  # the second writes the last two and the first two
        uses.before_ingest()
        replay.ingest(chunk_of(numbered(n)), n, 0, lanes_of_worker=1)
        uses.ingested(chunk)
    assert uses.chunk_of_row.tolist() == [2, 2, *[1] * (length - 4), 2, 2]


def thread(tid: int, *events: tuple[int, int, int, int]) -> Thread:
    return Thread("p", f"t{tid}", 1, tid, np.array(list(events), dtype=EVENT), 0)


def test_arrows_by_hand():
    # request 5: asked in a step 10-40, answered in a pass 50-70, used in a step 80-99. Request 6
    # was asked before the window. Request 8 is used where no slice is: not drawn.
    worker = thread(
        1, (20, 0, 5, Mark.ASKED), (10, 30, 0, Stage.STEP), (81, 0, 5, Mark.USED),
        (82, 0, 6, Mark.USED), (80, 19, 0, Stage.STEP), (120, 0, 8, Mark.USED),
    )  # fmt: skip
    inference = thread(
        2, (60, 0, 5, Mark.ANSWERED), (61, 0, 6, Mark.ANSWERED), (62, 0, 8, Mark.ANSWERED),
        (50, 20, 0, Stage.INFER),
    )  # fmt: skip
    arrows = [e for e in trace_events([worker, inference]) if e["ph"] in "stf"]
    assert [(e["id"], e["ph"], e["tid"], e["ts"]) for e in arrows] == [
        ("0x5", "s", 1, 0.01), ("0x5", "t", 2, 0.05), ("0x5", "f", 1, 0.071),
        ("0x6", "s", 2, 0.051), ("0x6", "f", 1, 0.072),
    ]  # fmt: skip


def test_a_chunk_ends_at_the_update_on_its_first_batch():
    # chunk 3 is committed and ingested, then drawn for batch 12; update 11 is not its first use
    worker = thread(1, (1, 0, 3, Mark.COMMITTED), (0, 5, 0, Stage.RING))
    loader = thread(
        2, (8, 0, 3, Mark.INGESTED), (6, 4, 0, Stage.INGEST), (11, 2, 11, Stage.SAMPLE),
        (21, 0, 3, Mark.DRAWN), (20, 3, 12, Stage.SAMPLE),
    )  # fmt: skip
    main = thread(3, (15, 10, 11, Stage.UPDATE), (25, 10, 12, Stage.UPDATE))
    arrows = [e for e in trace_events([worker, loader, main]) if e["ph"] in "stf"]
    assert [(e["ph"], e["tid"], e["ts"]) for e in arrows] == [
        ("s", 1, 0.001), ("t", 2, 0.008), ("t", 2, 0.021), ("f", 3, 0.025),
    ]  # fmt: skip


def recorder(tmp_path: Path, said: list[str]) -> tuple[TraceRecorder, RunMemory]:
    import own_envs  # noqa: F401

    plan = small_plan("own_envs:Counting", tmp_path, trace_seconds=30.0)
    memory = RunMemory.create(plan, shared=False)
    return TraceRecorder(memory, tmp_path, said.append), memory


def test_the_window_opens_in_the_steady_state(own_environments, tmp_path):
    # warm-up 64 steps of 32 samples each in batches of 32: 64 updates, and 20 to a publication
    said: list[str] = []
    trace, memory = recorder(tmp_path, said)
    trainer = memory.own_record(RECORD_TRAINER)
    trainer.set(Counter.UPDATES, 83)
    trace.look(all_run=True)
    trainer.set(Counter.UPDATES, 84)
    trace.look(all_run=False)
    assert memory.control.trace_window == (0, 0)
    trace.look(all_run=True)
    begin, end = memory.control.trace_window
    assert end - begin == 30 * 10**9


def test_a_run_that_ends_early_writes_what_it_has(own_environments, tmp_path):
    said: list[str] = []
    trace, memory = recorder(tmp_path, said)
    memory.own_record(RECORD_TRAINER).set(Counter.UPDATES, 84)
    trace.look(all_run=True)
    memory.own_record(RECORD_INFERENCE).observe_since(Stage.INFER, now_ns())
    trace.finish()
    assert trace.done
    assert "trace of 1 events" in said[0]
    assert read_timeline(tmp_path / "trace.json").names() == {"infer": 1}


def test_a_trace_that_cannot_be_written_is_a_fault(own_environments, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fdql.trace.write_bytes", full)
    config = small_config("own_envs:Counting", total_timesteps=4000, trace_seconds=0.1)
    result = train(replace(config, run_dir=str(tmp_path / "r")), quiet=True)
    assert (result.exit_reason, result.exit_code) == ("total_timesteps", 1)
    assert result.problem == "trace.json could not be written (No space left on device)"


def test_a_run_that_ends_before_the_window_says_so(own_environments, tmp_path):
    said: list[str] = []
    recorder(tmp_path, said)[0].finish()
    assert said[0].startswith("no trace: it begins after 84 updates")
    assert list(tmp_path.iterdir()) == []


def test_a_full_track_is_told(own_environments, tmp_path):
    said: list[str] = []
    trace, memory = recorder(tmp_path, said)
    memory.control.open_trace(1, 2)
    track = Track(memory.track(1))
    for i in range(track.capacity + 3):
        track.append(Stage.INFER, 10 * i, 5, 0)
    trace.finish()
    assert "3 later ones found no room" in said[0]
    assert json.loads((tmp_path / "trace.json").read_text())["otherData"]["dropped"] == {
        "inference main": 3
    }


@pytest.mark.parametrize("seconds", [0.0, -1.0, 31.0, float("nan")])
def test_impossible_lengths_are_refused(seconds):
    with pytest.raises(ConfigError, match=r"at most 30 seconds.*5\.0 works"):
        Config(trace_seconds=seconds)


def test_serial_mode_has_no_timeline():
    with pytest.raises(ConfigError, match="leaving --serial out works"):
        Config(trace_seconds=5.0, serial=True)


@pytest.mark.parametrize(
    ("ended", "traced", "code"), [(130, False, 130), (0, False, 1), (0, True, 0), (1, True, 1)]
)
def test_the_commands_exit_code(tmp_path, monkeypatch, ended, traced, code):
    result = SimpleNamespace(exit_code=ended, run_dir=tmp_path)
    monkeypatch.setattr("fdql.supervisor.train", lambda config, until_traced: result)
    if traced:
        (tmp_path / "trace.json").write_text("{}")
    assert main(["trace"]) == code


def run(tmp_path: Path, **changes: Any) -> Timeline:
    config = small_config("own_envs:Counting", run_dir=str(tmp_path / "run"), **changes)
    result = train(config, quiet=True, until_traced=True)
    assert (result.exit_reason, result.exit_code) == ("traced", 0)
    return read_timeline(tmp_path / "run" / "trace.json")


PATHS = {
    "request": [("worker", "step"), ("inference", "infer"), ("worker", "step")],
    "chunk": [
        ("worker", "ring"), ("trainer", "ingest"), ("trainer", "sample"), ("trainer", "update"),
    ],
}  # fmt: skip


def test_the_timeline_of_a_run(own_environments, tmp_path):
    # an evaluation at every look, so that the evaluator shows
    timeline = run(tmp_path, trace_seconds=1.0, workers=2, envs_per_worker=4)
    assert sorted(timeline.threads.values()) == [
        ("evaluator", "main"), ("inference", "main"), ("trainer", "loader"), ("trainer", "main"),
        ("worker 0", "main"), ("worker 1", "main"),
    ]  # fmt: skip
    stages = {"step", "ring", "ingest", "sample", "update", "publish", "infer", "act"}
    assert stages <= set(timeline.names())
    homes = {timeline.threads[t]: {s["name"] for s in v} for t, v in timeline.slices.items()}
    assert {"ingest", "sample"} <= homes["trainer", "loader"]
    assert {"update", "publish"} <= homes["trainer", "main"]
    whole = dict.fromkeys(PATHS, 0)
    for (name, _), points in timeline.flows.items():
        path = [(process.split()[0], slice_) for _, process, slice_ in points]
        at = [i for i in range(len(PATHS[name])) if PATHS[name][i : i + len(path)] == path]
        assert at, (name, path)  # a part of the path at the window's edges, else all of it
        whole[name] += path == PATHS[name]
    assert whole["request"] > 0.9 * sum(name == "request" for name, _ in timeline.flows)
    assert whole["chunk"] > 1


def test_a_worker_killed_in_the_window_leaves_a_readable_trace(
    own_environments, tmp_path, monkeypatch
):
    look, killed = TraceRecorder.look, []

    def look_and_kill(self: TraceRecorder, *, all_run: bool) -> None:
        look(self, all_run=all_run)
        begin = self.memory.control.trace_window[0]
        if begin and not killed and now_ns() > begin + 300_000_000:
            for child in psutil.Process().children():
                if "fdql.proc.env_worker" in child.cmdline():
                    child.kill()
                    killed.append(child.pid)

    monkeypatch.setattr(TraceRecorder, "look", look_and_kill)
    timeline = run(tmp_path, trace_seconds=3.0, workers=1, envs_per_worker=4)
    assert len(killed) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["worker_restarts"] == 1
    (worker,) = [t for t, (process, _) in timeline.threads.items() if process == "worker 0"]
    assert "step" in {s["name"] for s in timeline.slices[worker]}


def test_training_goes_on_after_the_trace(own_environments, tmp_path, monkeypatch):
    written: list[tuple[TraceRecorder, int]] = []  # with the steps stored by then
    write = TraceRecorder._write

    def write_and_note(self: TraceRecorder) -> None:
        write(self)
        written.append((self, self.trainer.get(Counter.INSERTED)))

    class EndsSomeStepsLater(StopRequest):
        @property
        def requested(self) -> bool:
            return any(t.trainer.get(Counter.INSERTED) > steps + 200 for t, steps in written)

    monkeypatch.setattr(TraceRecorder, "_write", write_and_note)
    monkeypatch.setattr("fdql.supervisor.StopRequest", EndsSomeStepsLater)
    config = small_config("own_envs:Counting", run_dir=str(tmp_path / "run"), trace_seconds=0.2)
    result = train(config, quiet=True)
    assert result.exit_reason == "interrupted"
    assert result.summary["env_steps"] > written[0][1] + 200
    assert len(written) == 1
    assert read_timeline(tmp_path / "run" / "trace.json").flows
