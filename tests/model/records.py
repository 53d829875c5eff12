"""Words that publish and nobody waits for: tracks, counters, the trace window, the segment.

Of ext/track.pxd, ext/records.pyx and ext/segment.pyx, function by function. Heartbeats, stages and
histograms are relaxed throughout and order nothing; they are not here.
"""

from __future__ import annotations

from collections.abc import Callable

from model.explorer import Model, planted
from model.weak_memory import (
    ACQUIRE,
    RELEASE,
    Actor,
    Built,
    Payload,
    Thread,
    check,
    load,
    own,
    read,
    store,
    write,
)


# ---- a track: events that are visible once counted ----------------------------------------------
def track_append() -> Thread:
    n = yield own("count")
    if planted("event counted before it is written"):
        yield store("count", n + 1, RELEASE, "track")
        yield write(f"event{n}", n)
    else:
        yield write(f"event{n}", n)
        yield store("count", n + 1, RELEASE, "track")


def track_published() -> Thread:
    return (yield load("count", ACQUIRE, "track"))


def track_writer(events: int) -> Thread:
    while (yield own("count")) < events:
        yield from track_append()


def track_reader(events: int) -> Thread:
    n = 0
    while n < events:
        n = yield from track_published()
        for e in range(n):
            check((yield read(f"event{e}", "reader")) == e, "an event is whole and stays")


def track(events: int, lives: int) -> Built:
    payload = {f"event{e}": Payload(None, ("reader",)) for e in range(events)}
    actors = [
        Actor("writer", lambda life: track_writer(events), lives),
        Actor("reader", lambda life: track_reader(events)),
    ]
    return {"count": 0}, payload, actors


# ---- counters: who sees the second of two sees the first ----------------------------------------
class Record:
    """A counter of a record: its process sets it, anyone gets it."""

    @staticmethod
    def set(counter: str, value: int) -> Thread:
        yield store(counter, value, RELEASE, "counter")

    @staticmethod
    def add(counter: str, n: int) -> Thread:
        yield store(counter, (yield own(counter)) + n, RELEASE, "counter")

    @staticmethod
    def get(counter: str) -> Thread:
        return (yield load(counter, ACQUIRE, "counter"))

    @staticmethod
    def _in_window() -> Thread:
        """(begin, end) as it is seen; what is done with them is arithmetic."""
        begin = yield load("begin", ACQUIRE, "trace-window")
        return begin, (yield load("end")) if begin else 0


def loader(steps: int) -> Thread:
    """Loader.ingest: what can be sampled, then what was inserted."""
    for n in range(1, steps + 1):
        if planted("inserted before it can be sampled"):
            yield from Record.set("inserted", n)
            yield from Record.set("replay", n)
        else:
            yield from Record.set("replay", n)
            yield from Record.set("inserted", n)


def supervisor(steps: int) -> Thread:
    """Supervisor: a run is complete by what was inserted, and by what can be sampled of it."""
    inserted = 0
    while inserted < steps:
        if planted("sampled is looked at first"):
            replay = yield from Record.get("replay")
            inserted = yield from Record.get("inserted")
        else:
            inserted = yield from Record.get("inserted")
            replay = yield from Record.get("replay")
        check(replay >= inserted, "what was inserted can be sampled")


def counters(steps: int) -> Built:
    actors = [
        Actor("loader", lambda life: loader(steps)),
        Actor("supervisor", lambda life: supervisor(steps)),
    ]
    return {"inserted": 0, "replay": 0}, {}, actors


# ---- steps of a worker that dies: none is forgotten, none is begun beyond the total -------------
def stepping(life: int) -> Thread:
    """A worker: steps, asks again, hands over, counts. Before its first request it says what its
    predecessors handed over, then who it is.
    """
    number = yield own("req")
    yield store("first", number + 1)
    if planted("successor says who it is before what is counted"):
        yield from Record.set("incarnation", life)
    if not planted("successor goes on from what was counted"):
        yield from Record.set("steps", (yield own("head")))
    if not planted("successor says who it is before what is counted"):
        yield from Record.set("incarnation", life)
    yield store("req", number + 1, RELEASE)
    while True:
        number += 1
        while (yield load("rep", ACQUIRE)) != number:
            pass
        yield store("req", number + 1, RELEASE)
        yield store("head", (yield own("head")) + 1, RELEASE)
        yield from Record.add("steps", 1)


def issuing(total: int) -> Thread:
    """Inference: begins no step beyond the total, and forgets what a dead worker had begun."""
    incarnation = issued = 0
    while True:
        number = yield load("req", ACQUIRE)
        if number != (yield own("rep")):
            newest = yield from Record.get("incarnation")
            if newest != incarnation and not planted("lost steps count for ever"):
                incarnation, issued = newest, (yield from Record.get("steps"))
            dead = number < (yield load("first"))
            if dead and not planted("answers to the dead are counted"):
                yield store("rep", number, RELEASE)  # which nobody takes
            elif issued < total:
                issued += 1
                yield store("rep", number, RELEASE)


def storing(total: int) -> Thread:
    """The trainer, until the run's steps are all there."""
    head = 0
    while head < total:
        head = yield load("head", ACQUIRE)
    check(head == total, "no step is begun beyond the total")


def steps(total: int, lives: int) -> Built:
    actors = [
        Actor("worker", stepping, lives, serves=True),
        Actor("inference", lambda life: issuing(total), serves=True),
        Actor("trainer", lambda life: storing(total)),
    ]
    words = ("req", "first", "rep", "head", "incarnation", "steps")
    return dict.fromkeys(words, 0), {}, actors


# ---- the trace window ---------------------------------------------------------------------------
class Control:
    """The window of a run's trace, in the control block."""

    @staticmethod
    def open_trace() -> Thread:
        if planted("window opened before its end is known"):
            yield store("begin", 10, RELEASE, "trace-window")
            yield store("end", 20)
        else:
            yield store("end", 20)
            yield store("begin", 10, RELEASE, "trace-window")

    @staticmethod
    def trace_window() -> Thread:
        begin = yield load("begin", ACQUIRE, "trace-window")
        return begin, (yield load("end")) if begin else 0


def asking(ask: Callable[[], Thread]) -> Thread:
    """A traced process, or the command that writes the timeline, until the window is open."""
    begin = end = 0
    while begin == 0:
        begin, end = yield from ask()
    check((begin, end) == (10, 20), "who sees the window open knows its end")


def window() -> Built:
    actors = [
        Actor("supervisor", lambda life: Control.open_trace()),
        Actor("traced", lambda life: asking(Record._in_window)),
        Actor("timeline", lambda life: asking(Control.trace_window)),
    ]
    return {"begin": 0, "end": 0}, {}, actors


# ---- the segment: whole, or not there -----------------------------------------------------------
class Segment:
    """The header with its table of sections is payload, its magic the commit."""

    @staticmethod
    def create() -> Thread:
        if planted("magic before the table"):
            yield store("magic", 1, RELEASE, "segment-ready")
            yield write("table", "sections")
        else:
            yield write("table", "sections")
            yield store("magic", 1, RELEASE, "segment-ready")

    @staticmethod
    def attach() -> Thread:
        if (yield load("magic", ACQUIRE, "segment-ready")):
            check((yield read("table", "child")) == "sections", "a segment is whole")


def segment() -> Built:
    actors = [
        Actor("creator", lambda life: Segment.create()),
        Actor("child", lambda life: Segment.attach()),
    ]
    return {"magic": 0}, {"table": Payload(None, ("child",))}, actors


MODELS = [
    Model("track", lambda: track(3, lives=1)),
    Model("track, writer killed", lambda: track(4, lives=3)),
    Model("counters", lambda: counters(3)),
    Model("steps, worker killed", lambda: steps(2, lives=2)),
    Model("steps, worker killed twice", lambda: steps(3, lives=3), long=True),
    Model("trace window", window),
    Model("segment", segment),
]

FAULTS = {
    "event counted before it is written": "track",
    "inserted before it can be sampled": "counters",
    "sampled is looked at first": "counters",
    "successor says who it is before what is counted": "steps, worker killed",
    "successor goes on from what was counted": "steps, worker killed",
    "lost steps count for ever": "steps, worker killed",
    "answers to the dead are counted": "steps, worker killed",
    "window opened before its end is known": "trace window",
    "magic before the table": "segment",
}
