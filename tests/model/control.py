"""Stop, and the loops that must see it: the evaluator's, inference's, the loader's, a worker's.

The stop word of ext/doorbell.pxd and ext/records.pyx; the loops are those of fdql/proc, with their
work reduced to a number. A worker asleep in its slot or before its full ring is not rung at a stop:
its sleep ends by itself, after 100 ms at most.
"""

from __future__ import annotations

from model.doorbell import (
    bell_arm,
    bell_disarm,
    bell_ring,
    bell_sleep,
    bell_wake,
    bell_words,
    stopped,
)
from model.explorer import Model, planted
from model.records import Record
from model.weak_memory import ACQUIRE, RELEASE, Actor, Built, Thread, load, store

RUN, FINISH, LAST, STOP = 0, 1, 2, 3


class Control:
    """The stop word as Python reads and sets it."""

    @staticmethod
    def stop(value: int | None = None) -> Thread:
        if value is None:
            return (yield load("stop", ACQUIRE, "stop"))
        yield store("stop", value, RELEASE, "stop")


def stop(value: int) -> Thread:
    """RunMemory.stop: the word, then every sleeper; here all of a model sleep on `bell`."""
    if planted("wake before the stop word"):
        yield from bell_wake("bell")
        yield from Control.stop(value)
        return
    yield from Control.stop(value)
    yield from bell_wake("bell")


def supervisor(*values: int) -> Thread:
    for value in values:
        yield from stop(value)


# ---- the evaluator ------------------------------------------------------------------------------
def publishing(versions: int) -> Thread:
    """The trainer, as the evaluator sees it."""
    for version in range(1, versions + 1):
        yield store("latest", version, RELEASE)
        yield from bell_ring("bell")


def evaluator(last: bool) -> Thread:
    """evaluator_main. Its bell knows no stop word: FINISH is not for it."""
    version = 0
    while (yield from Control.stop()) < LAST:
        latest = yield load("latest", ACQUIRE)
        if latest > version:
            version = latest
            continue
        ticket = yield from bell_arm("bell")
        leave = not planted("evaluator sleeps without a look at the stop word") and (
            (yield from Control.stop()) >= LAST
        )
        if leave or (yield load("latest", ACQUIRE)) > version:
            yield from bell_disarm("bell")
        else:
            yield from bell_sleep("bell", ticket)
    if last and (yield from Control.stop()) == LAST:
        version = yield load("latest", ACQUIRE)


def evaluation(versions: int, *values: int) -> Built:
    actors = [
        Actor("trainer", lambda life: publishing(versions)),
        Actor("evaluator", lambda life: evaluator(LAST in values)),
        Actor("supervisor", lambda life: supervisor(*values)),
    ]
    return {"stop": 0, "latest": 0, **bell_words("bell")}, {}, actors


# ---- inference: held back for the trainer -------------------------------------------------------
def allowing(updates: int) -> Thread:
    """The trainer: an update allows more steps."""
    for n in range(1, updates + 1):
        yield from Record.set("allowed", n)
        if not planted("allowed without a bell"):
            yield from bell_ring("bell")


def inference(updates: int) -> Thread:
    """inference_main while it is held back, until it has seen all updates or is stopped."""
    issued = 0
    while issued < updates and not (yield from Control.stop()):
        allowed = yield from Record.get("allowed")
        if issued < allowed:
            issued = allowed
            continue
        ticket = yield from bell_arm("bell")
        if issued >= (yield from Record.get("allowed")) and not (yield from Control.stop()):
            yield from bell_sleep("bell", ticket, control=True)
        else:
            yield from bell_disarm("bell")


def held_back(updates: int, stops: bool) -> Built:
    actors = [
        Actor("trainer", lambda life: allowing(updates)),
        Actor("inference", lambda life: inference(updates if not stops else 99)),
    ]
    if stops:
        actors.append(Actor("supervisor", lambda life: supervisor(FINISH)))
    return {"stop": 0, "allowed": 0, **bell_words("bell")}, {}, actors


# ---- whoever waits for work and is stopped: SlotServer.collect, the loader ----------------------
def working(looks_at_stop: bool) -> Thread:
    """Until stopped. `looks_at_stop`: beside its second look for work, as the loader does; collect
    leaves that to bell_sleep.
    """
    done = 0
    while not (yield from stopped(True)):
        work = yield load("work", ACQUIRE)
        if work > done:
            done = work
            continue
        ticket = yield from bell_arm("bell")
        idle = (yield load("work", ACQUIRE)) == done
        if looks_at_stop:
            idle = idle and not (yield from Control.stop())
        if idle:
            blind = planted("sleep blind to the stop word")
            yield from bell_sleep("bell", ticket, control=not blind)
        else:
            yield from bell_disarm("bell")


def handing(items: int) -> Thread:
    for n in range(1, items + 1):
        yield store("work", n, RELEASE)
        yield from bell_ring("bell")


def stop_of_work(items: int, looks_at_stop: bool) -> Built:
    actors = [
        Actor("worker", lambda life: handing(items)),
        Actor("sleeper", lambda life: working(looks_at_stop)),
        Actor("supervisor", lambda life: supervisor(FINISH)),
    ]
    return {"stop": 0, "work": 0, **bell_words("bell")}, {}, actors


MODELS = [
    Model("stop, evaluator", lambda: evaluation(1, STOP)),
    Model("stop, evaluator plays once more", lambda: evaluation(1, FINISH, LAST)),
    Model("stop, held back", lambda: held_back(1, stops=True)),
    Model("held back", lambda: held_back(3, stops=False)),
    Model("stop, collect", lambda: stop_of_work(1, looks_at_stop=False)),
    Model("stop, loader", lambda: stop_of_work(1, looks_at_stop=True)),
    Model("stop, evaluator, two policies", lambda: evaluation(2, FINISH, LAST), long=True),
    Model("stop, loader, two chunks", lambda: stop_of_work(2, looks_at_stop=True), long=True),
]

FAULTS = {
    "evaluator sleeps without a look at the stop word": "stop, evaluator",
    "stop without a new number": "stop, evaluator",
    "stop without a wake": "stop, evaluator",
    "wake before the stop word": "stop, evaluator",
    "allowed without a bell": "held back",
    "sleep blind to the stop word": "stop, collect",
}
