"""What is written of a replay: bounded ranges, once, and deleted when nothing needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chunks import make, random_chunk
from fdql.checkpoint import CheckpointError, load_tensors, save_tensors, sync_folder
from fdql.leaderboard import Entry, Leaderboard
from fdql.manifest import broken_rows, read_manifest, verify_checkpoint
from fdql.proc.saver import Captured, Saver
from fdql.profile import RECORD_NBYTES, Counter, open_record
from fdql.replay.lanes import HEAD, OPEN, PENDING, SAMPLEABLE, SLOT
from fdql.replay.replay import Replay
from fdql.replay.saved import SavedRange, read_tables
from fdql.replay.state import load_replay, oldest, rows_between, settled, tables_of
from fdql.shm.records import Record
from fdql.shm.segment import Segment
from plans import small_plan

LEARNER = Captured({"params": np.zeros(3)}, {"updates": 7})


def fill(replay: Replay, rng: np.random.Generator, chunks: int) -> None:
    for _ in range(chunks):
        views = random_chunk(rng, 60, 4)
        replay.ingest(views, views.lane.size, 0, lanes_of_worker=4)


def new_record() -> Record:
    return open_record(Segment.create([(6, 0, RECORD_NBYTES)], 0, shared=False).section(6, 0))


def saver_of(
    replay: Replay, folder: Path, serial: bool, **settings: float
) -> tuple[Saver, list[str]]:
    told: list[str] = []
    plan = small_plan("CartPole-v1", folder, serial=serial, **settings)
    saver = Saver(plan, replay, new_record(), lambda kind, **values: told.append(kind))
    saver.range_rows = 100
    return saver, told


def loaded(folder: Path) -> Replay:
    """A replay made of the newest checkpoint."""
    checkpoint = max((folder / "checkpoints").glob("0*"))
    replay = make()
    tables = read_tables(checkpoint / "replay.safetensors", replay)
    names = read_manifest(checkpoint).shared
    rows = folder / "checkpoints" / "rows"
    load_replay(replay, tables, [SavedRange(rows / name, replay, 4) for name in names])
    return replay


def same(a: Replay, b: Replay) -> bool:
    def bytes_of(r: Replay) -> list[bytes]:
        arrays = tables_of(r) | rows_between(r, oldest(r), settled(r))
        return [array.tobytes() for array in arrays.values()]

    return bytes_of(a) == bytes_of(b)


@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("journal", [True, False])
def test_ranges_are_bounded_and_checkpoints_equal_the_replay(tmp_path, serial, journal):
    """Some thousand rows pass through a replay of 1024; `journal`: also copied in between."""
    rng = np.random.default_rng(3)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial)
    for k in range(8):
        for _ in range(6):
            fill(replay, rng, 1)
            while journal and saver.work():
                pass
        if k < 7:
            saver.save(LEARNER)
            saver._checkpoint.result()
        else:
            saver.close(LEARNER)
        assert same(loaded(tmp_path), replay)
        for file in (tmp_path / "checkpoints" / "rows").iterdir():
            columns = load_tensors(file)[0]
            assert 1 <= len(columns["flags"]) <= 104
        # two kept checkpoints need 1024 rows and what came between them, in whole ranges
        assert len(list((tmp_path / "checkpoints" / "rows").iterdir())) <= 18
        assert len(list((tmp_path / "checkpoints").glob("0*"))) <= 2
    assert told == ["checkpoint"] * 8


def test_a_full_disk_is_told_and_the_next_checkpoint_is_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True)
    fill(replay, rng, 3)
    saver.save(LEARNER)
    with monkeypatch.context() as m:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "rows")

        m.setattr("fdql.checkpoint.os.write", full)
        fill(replay, rng, 4)
        saver.save(LEARNER)
        saver.work()
    assert told == ["checkpoint", "checkpoint_failed"]
    fill(replay, rng, 2)
    saver.close(LEARNER)
    assert told == ["checkpoint", "checkpoint_failed", "checkpoint"]
    assert same(loaded(tmp_path), replay)


def test_a_checkpoint_whose_last_flush_fails_keeps_its_rows(tmp_path, monkeypatch):
    """It is there under its name: the short range that it alone names must stay."""
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True)
    saver.range_rows = 1000
    rng = np.random.default_rng(11)
    fill(replay, rng, 1)
    flush = sync_folder

    def failing(path: Path) -> None:
        if path == saver.folder.path:
            raise OSError(5, "Input/output error")
        flush(path)

    with monkeypatch.context() as m:
        m.setattr("fdql.manifest.sync_folder", failing)
        saver.save(LEARNER)
    fill(replay, rng, 1)
    saver.close(LEARNER)
    assert told == ["checkpoint_failed", "checkpoint"]
    first, second = (saver.folder.path / name for name in saver.folder.names())
    for folder in (first, second):
        assert not broken_rows(folder, verify_checkpoint(folder))


def test_how_far_a_checkpoint_is_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("fdql.checkpoint.PIECE", 1000)
    rng = np.random.default_rng(5)
    replay = make()
    saver, _ = saver_of(replay, tmp_path, serial=True)
    record, seen = saver.record, list[tuple[int, int]]()
    saver.show = lambda: seen.append((record.get(Counter.SAVED), record.get(Counter.TO_SAVE)))
    fill(replay, rng, 4)
    assert saver.work()  # rows between two checkpoints are no part of the next one's bar
    assert {total for _, total in seen} == {0}
    seen.clear()
    fill(replay, rng, 4)
    saver.save(LEARNER)
    done = [saved for saved, _ in seen]
    assert done == sorted(done)
    assert done[0] <= 1000
    (total,) = {total for _, total in seen}
    written = tmp_path / "checkpoints"
    parts = sum(p.stat().st_size for p in written.glob("0*/*.safetensors"))
    rows = sum(p.stat().st_size for p in sorted((written / "rows").iterdir())[1:])
    assert done[-1] == parts + rows
    assert 0.7 * done[-1] < total <= done[-1]  # headers come on top, large beside small arrays
    assert (record.get(Counter.SAVED), record.get(Counter.TO_SAVE)) == (0, 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver.folder, "write", full)
    saver.save(LEARNER)
    assert (record.get(Counter.SAVED), record.get(Counter.TO_SAVE)) == (0, 0)


@pytest.mark.parametrize("serial", [True, False])
def test_rows_that_nothing_needs_leave_the_disk_without_a_checkpoint(tmp_path, monkeypatch, serial):
    rng = np.random.default_rng(6)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial)
    fill(replay, rng, 10)
    saver.save(LEARNER)
    saver._checkpoint.result()
    named = {p.name for p in (tmp_path / "checkpoints" / "rows").iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(saver.folder, "write", full)
        for k in range(60):
            fill(replay, rng, 1)
            while saver.work():
                pass
            if k % 20 == 19:
                saver.save(LEARNER)
        if not serial:
            saver._checkpoint.exception()
    rows = {p.name for p in (tmp_path / "checkpoints" / "rows").iterdir()}
    assert named <= rows  # the checkpoint before needs them
    assert len(rows - named) <= 18
    saver.close(LEARNER)
    assert told == ["checkpoint", *3 * ["checkpoint_failed"], "checkpoint"]
    assert same(loaded(tmp_path), replay)


def test_without_checkpoints_in_between_no_rows_are_written_ahead(tmp_path):
    rng = np.random.default_rng(7)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True, checkpoint_every=0.0)
    for _ in range(30):
        fill(replay, rng, 1)
        assert not saver.work()
    assert not (tmp_path / "checkpoints").exists()
    saver.close(LEARNER)
    assert told == ["checkpoint"]
    assert same(loaded(tmp_path), replay)


@pytest.mark.parametrize("serial", [True, False])
def test_rows_whose_file_is_gone_are_written_again(tmp_path, serial):
    rng = np.random.default_rng(8)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial)
    fill(replay, rng, 10)
    saver.save(LEARNER)
    saver._checkpoint.result()
    rows = sorted((tmp_path / "checkpoints" / "rows").iterdir())
    rows[1].unlink()
    rows[2].write_bytes(b"")
    fill(replay, rng, 1)
    saver.close(LEARNER)
    assert told == ["checkpoint"] * 2
    assert same(loaded(tmp_path), replay)


def test_the_checkpoint_with_the_best_evaluation_is_kept(tmp_path):
    """Of policies up to the checkpoint's own: that of update 9 is from a part that was lost."""
    rng = np.random.default_rng(9)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True)
    board = Leaderboard(tmp_path / "best", pytest.fail)
    names = []
    for updates, mean in ((9, 99.0), (2, 1.0), (4, 5.0), (5, 3.0), (6, 5.0), (7, 4.0)):
        entry = Entry(updates, updates, mean, 0.0, None, None, 1)
        board.offer(entry, {"policy": np.zeros(1, np.float32)}, {})
        if updates < 9:
            fill(replay, rng, 1)
            saver.save(Captured(LEARNER.arrays, {"updates": updates}))
            names.append(saver.folder.names()[-1])
    assert told == ["checkpoint"] * 5
    assert saver.folder.names() == [names[1], names[3], names[4]]
    best = [read_manifest(saver.folder.path / n).facts["best_return"] for n in saver.folder.names()]
    assert best == [5.0, 5.0, 5.0]


def test_old_checkpoints_that_cannot_be_cleared_away_are_no_failure(tmp_path, monkeypatch):
    rng = np.random.default_rng(10)
    replay = make()
    saver, told = saver_of(replay, tmp_path, serial=True)

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(saver.folder, "prune", busy)
    fill(replay, rng, 3)
    saver.close(LEARNER)
    assert told == ["checkpoint", "warning"]
    assert same(loaded(tmp_path), replay)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("table", (1, HEAD), -1),
        ("table", (1, SLOT), 10**12),
        ("table", (2, SLOT), -1),
        ("table", (1, PENDING), -(10**12)),
        ("table", (1, PENDING), 10**12),
        ("table", (3, OPEN), 2),
        ("counters", (SAMPLEABLE,), -1),
        ("counters", (SAMPLEABLE,), 10**12),
        ("generator", (4,), 2**63),
        ("generator", (5,), 2**32),
    ],
)
def test_tables_that_would_lead_a_kernel_astray_are_refused(tmp_path, name, at, value):
    replay = make()
    fill(replay, np.random.default_rng(5), 3)
    arrays = tables_of(replay)
    file = tmp_path / "replay.safetensors"
    save_tensors(file, arrays, {})
    read_tables(file, make())
    arrays[name] = arrays[name].copy()
    arrays[name][at] = value
    save_tensors(file, arrays, {})
    with pytest.raises(CheckpointError, match=r"replay.safetensors: "):
        read_tables(file, make())


def test_a_range_that_is_shorter_than_it_says_is_refused(tmp_path):
    replay = make()
    fill(replay, np.random.default_rng(6), 3)
    rows = rows_between(replay, oldest(replay), settled(replay))
    save_tensors(tmp_path / "rows", rows, {})
    SavedRange(tmp_path / "rows", replay, 4)
    rows["end"] = rows["end"] + 2**37
    save_tensors(tmp_path / "rows", rows, {})
    with pytest.raises(CheckpointError, match="flags is"):
        SavedRange(tmp_path / "rows", replay, 4)
