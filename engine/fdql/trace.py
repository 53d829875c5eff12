"""The timeline of a run: what every thread wrote into its track, as Chrome trace events in JSON.

Reads the tracks and writes the control block's trace window and trace.json; the supervisor's.
https://ui.perfetto.dev and chrome://tracing open the file. A process is a role, a slice a stage.
Flow arrows join what belongs together. request: the step that submits an observation, the forward
pass that answers it, the step that uses the action. chunk: its commit, its ingest, the first batch
drawn with a row of it, the update on that batch.

The window opens in the steady state: every process runs, the warm-up's updates are made, and a
policy is published that saw more.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import write_bytes
from fdql.config import Config
from fdql.proc.governor import Governor
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter, Mark, Stage, name_of
from fdql.shm.records import Track, now_ns

GRACE_NS = 500_000_000  # after the window: what began in it may end and be written
GAP_NS = (
    1  # taken from every slice: viewers cut microseconds to ns, and neighbours must not overlap
)
VIEWERS = "https://ui.perfetto.dev (Open trace file) or chrome://tracing"

# TrackEvent of ext/track.pxd
EVENT = np.dtype(
    {
        "names": ["t0_ns", "duration_ns", "value", "kind"],
        "formats": ["<u8", "<u8", "<u8", "<u4"],
        "offsets": [0, 8, 16, 24],
        "itemsize": 32,
    }
)

REQUEST = (Mark.ASKED, Mark.ANSWERED, Mark.USED)
CHUNK = (Mark.COMMITTED, Mark.INGESTED, Mark.DRAWN)
VALUES = {  # what the value of a slice says
    Stage.UPDATE: "update",
    Stage.PUBLISH: "version",
    Stage.SAMPLE: "batch",
    Mark.EVALUATION: "version",
}


class Thread(NamedTuple):
    """A track as read: pid and tid number process and thread in the file."""

    process: str
    thread: str
    pid: int
    tid: int
    events: NDArray[Any]  # (n,) EVENT, in the order of their ends
    dropped: int


class Point(NamedTuple):
    """A moment of a flow; at: ns."""

    at: int
    thread: Thread


def read_threads(memory: RunMemory) -> list[Thread]:
    """Copy every track as it stands."""
    roles = memory.plan.roles
    threads = []
    for tid, (record, name) in enumerate(memory.plan.threads, start=1):
        track = Track(memory.track(tid - 1))
        events = np.frombuffer(track.events(), dtype=EVENT)
        threads.append(Thread(roles[record], name, record + 1, tid, events, track.dropped))
    return threads


def kind_name(kind: int) -> str:
    """Name of a slice, as in summary.json."""
    return Mark(kind).name.lower() if kind >= min(Mark) else name_of(Stage(kind))


def _slices(events: NDArray[Any]) -> NDArray[Any]:
    """Events that have a length, by begin; of those that begin together the longest first."""
    is_mark = np.isin(events["kind"], [*REQUEST, *CHUNK])
    found = events[~is_mark]
    return found[np.lexsort((-found["duration_ns"].astype(np.int64), found["t0_ns"]))]


class Cover:
    """Whether a slice of a thread lasts at a moment: an arrow needs one to begin or end at."""

    def __init__(self, events: NDArray[Any]) -> None:
        slices = _slices(events)
        self.t0 = slices["t0_ns"]
        # The latest end of all that began so far; slices of one thread nest or follow each other.
        self.until = np.maximum.accumulate(slices["t0_ns"] + slices["duration_ns"])

    def holds(self, at: int) -> bool:
        """True when a slice began at or before `at` and ends after it."""
        i = int(np.searchsorted(self.t0, at, side="right")) - 1
        return i >= 0 and int(self.until[i]) - GAP_NS > at


def _flows(threads: list[Thread]) -> Iterator[tuple[str, int, list[Point]]]:
    """(flow, id, points in the order of their meaning), two points at least."""
    points: dict[Mark, dict[int, Point]] = defaultdict(dict)
    batch_of: dict[int, int] = {}  # chunk -> the batch it was first drawn for
    updates: dict[int, Point] = {}  # by number; batches are learned in the order they were drawn
    for thread in threads:
        drawn: list[int] = []  # chunks first drawn for the batch whose slice ends next
        for t0, duration, value, kind in thread.events.tolist():
            if kind in REQUEST or kind in CHUNK:
                points[Mark(kind)][value] = Point(t0, thread)
                if kind == Mark.DRAWN:
                    drawn.append(value)
            elif kind == Stage.SAMPLE:
                batch_of |= dict.fromkeys(drawn, value)
                drawn = []
            elif kind == Stage.UPDATE and duration:
                updates[value] = Point(t0, thread)
    first_update = {c: updates[batch] for c, batch in batch_of.items() if batch in updates}
    covers = {thread.tid: Cover(thread.events) for thread in threads}
    for name, marks, last in (("request", REQUEST, {}), ("chunk", CHUNK, first_update)):
        stations = [*(points[mark] for mark in marks), last]
        for value in sorted(set().union(*stations)):
            chain = [s[value] for s in stations if value in s]
            chain = [p for p in chain if covers[p.thread.tid].holds(p.at)]
            if len(chain) > 1:
                yield name, value, chain


def trace_events(threads: list[Thread]) -> Iterator[dict[str, Any]]:
    """Chrome trace events: names, then slices, then arrows; microseconds since the first slice."""
    for t in threads:
        ids = {"pid": t.pid, "tid": t.tid}
        yield {"ph": "M", "name": "process_name", **ids, "args": {"name": t.process}}
        yield {"ph": "M", "name": "process_sort_index", **ids, "args": {"sort_index": t.pid}}
        yield {"ph": "M", "name": "thread_name", **ids, "args": {"name": t.thread}}
    zero = min((int(t.events["t0_ns"].min()) for t in threads if t.events.size), default=0)
    for t in threads:
        for t0, duration, value, kind in _slices(t.events).tolist():
            event = {
                "ph": "X",
                "name": kind_name(kind),
                "pid": t.pid,
                "tid": t.tid,
                "ts": (t0 - zero) / 1e3,
                "dur": max(0, duration - GAP_NS) / 1e3,
            }
            yield event | ({"args": {VALUES[kind]: value}} if kind in VALUES and value else {})
    for name, value, chain in _flows(threads):
        for i, point in enumerate(chain):
            last = i == len(chain) - 1
            event = {
                "ph": "s" if i == 0 else "f" if last else "t",
                "name": name,
                "cat": name,
                "id": f"{value:#x}",
                "pid": point.thread.pid,
                "tid": point.thread.tid,
                "ts": (point.at - zero) / 1e3,
            }
            yield event | ({"bp": "e"} if last else {})


class TraceRecorder:
    """Opens the trace's window when the time has come and writes the file when it is over.

    `look` is called again and again while the run goes on, `finish` once when no process is left.
    """

    def __init__(self, memory: RunMemory, folder: Path, say: Callable[[str], None]) -> None:
        config = memory.plan.config
        assert config.trace_seconds is not None
        self.memory, self.path, self.say = memory, folder / "trace.json", say
        self.length_ns = int(config.trace_seconds * 1e9)
        self.steady_updates = steady_updates(config)
        self.trainer = memory.record(RECORD_TRAINER)
        self.done = False  # the file is there, or could not be written
        self.failed: str | None = None  # why it could not
        self._account = ""
        self._writing: threading.Thread | None = None

    def look(self, *, all_run: bool) -> None:
        """Do what is due. all_run: every process of the run is there and ready."""
        end = self.memory.control.trace_window[1]
        if end == 0:
            if all_run and self.trainer.get(Counter.UPDATES) >= self.steady_updates:
                now = now_ns()
                self.memory.control.open_trace(now, now + self.length_ns)
        elif self._writing is None:
            if now_ns() > end + GRACE_NS:
                self._writing = threading.Thread(target=self._write, name="trace")
                self._writing.start()
        elif not self.done and not self._writing.is_alive():
            self.done = True
            self.say(self._account)

    def finish(self) -> None:
        """Write what there is, if that has not been done."""
        if self.memory.control.trace_window[1] == 0:
            self._account = (
                f"no trace: it begins after {self.steady_updates} updates once every process runs, "
                "and the run ended before"
            )
        elif self._writing is None:
            self._write()
        else:
            self._writing.join()
        if not self.done:
            self.done = True
            self.say(self._account)

    def _write(self) -> None:
        threads = read_threads(self.memory)
        begin, end = self.memory.control.trace_window
        lines = [json.dumps(event) for event in trace_events(threads)]
        dropped = {f"{t.process} {t.thread}": t.dropped for t in threads if t.dropped}
        facts = {"env": self.memory.plan.config.env, "seconds": (end - begin) / 1e9}
        head = json.dumps({"displayTimeUnit": "ns", "otherData": facts | {"dropped": dropped}})
        text = head[:-1] + ', "traceEvents": [\n' + ",\n".join(lines) + "\n]}\n"
        try:
            write_bytes(self.path, text.encode())
        except OSError as error:
            self.failed = f"trace.json could not be written ({error.strerror})"
            self._account = self.failed
            return
        lost = sum(dropped.values())
        total = sum(t.events.size for t in threads)
        self._account = f"trace of {total:,} events: open {self.path} at {VIEWERS}"
        if lost:
            self._account += f"; {lost:,} later ones found no room, a shorter trace shows all"


def steady_updates(config: Config) -> int:
    """Updates after which a run is in its steady state."""
    governor = Governor(config)
    warm_up = min(config.explore.warmup_steps, config.total_timesteps)
    return config.engine.publish_updates + (0 if governor.free else governor.due(warm_up))
