"""The doorbell of ext/doorbell.pxd, function by function, and models of who rings and who sleeps.

A bell is two words, NAME.seq and NAME.waiting. The stop word is `stop`.
"""

from __future__ import annotations

from model.explorer import Model, planted
from model.weak_memory import (
    ACQUIRE,
    RELEASE,
    Actor,
    Built,
    Thread,
    add,
    choose,
    fence,
    load,
    store,
    wait,
    wake,
)


def bell_words(bell: str) -> dict[str, int]:
    return {f"{bell}.seq": 0, f"{bell}.waiting": 0}


def stopped(control: bool) -> Thread:
    return control and (yield load("stop", ACQUIRE, "stop")) != 0


def bell_ring(bell: str) -> Thread:
    yield fence("no-lost-wake")
    if (yield load(f"{bell}.waiting")):
        if not planted("ring without a new number"):
            yield add(f"{bell}.seq", 1, "bell-seq")
        if not planted("ring without a wake"):
            yield wake(f"{bell}.seq")


def bell_wake(bell: str) -> Thread:
    if not planted("stop without a new number"):
        yield add(f"{bell}.seq", 1, "bell-seq")
    if not planted("stop without a wake"):
        yield wake(f"{bell}.seq")


def bell_arm(bell: str) -> Thread:
    ticket = yield load(f"{bell}.seq", ACQUIRE, "bell-seq")
    yield store(f"{bell}.waiting", 1)
    yield fence("no-lost-wake")
    return ticket


def bell_disarm(bell: str) -> Thread:
    yield store(f"{bell}.waiting", 0)


def bell_sleep(bell: str, ticket: int, control: bool = False, timed: bool = False) -> Thread:
    while (yield load(f"{bell}.seq", ACQUIRE, "bell-seq")) == ticket:
        if (yield from stopped(control)):
            break
        yield wait(f"{bell}.seq", ticket, timed)
        if timed and (yield choose()):  # the deadline
            break
    yield from bell_disarm(bell)


def look(works: tuple[str, ...]) -> Thread:
    """How much work there is in all."""
    n = 0
    for work in works:
        n += yield load(work, ACQUIRE)
    return n


def ringer(work: str, items: int) -> Thread:
    for n in range(1, items + 1):
        yield store(work, n, RELEASE)
        yield from bell_ring("bell")


def sleeper(works: tuple[str, ...], items: int) -> Thread:
    """The loop of every process with a bell: work, else arm, look once more, sleep."""
    done = 0
    while done < items:
        n = yield from look(works)
        if n == done:
            ticket = yield from bell_arm("bell")
            if not planted("sleep without a second look") and (yield from look(works)) != done:
                yield from bell_disarm("bell")
            else:
                if planted("ticket after the second look"):
                    ticket = yield load("bell.seq")
                yield from bell_sleep("bell", ticket)
        done = n


def doorbell(*items: int, lives: int = 1) -> Built:
    works = tuple(f"work{i}" for i in range(len(items)))
    actors = [
        Actor(f"ringer of {w}", lambda life, w=w, n=n: ringer(w, n))
        for w, n in zip(works, items, strict=True)
    ]
    actors.append(Actor("sleeper", lambda life: sleeper(works, sum(items)), lives))
    return {**dict.fromkeys(works, 0), **bell_words("bell")}, {}, actors


MODELS = [
    Model("doorbell, one ringer", lambda: doorbell(3)),
    Model("doorbell, two ringers", lambda: doorbell(1, 1)),
    Model("doorbell, sleeper killed", lambda: doorbell(2, lives=2)),
    Model("doorbell, two ringers, three items", lambda: doorbell(2, 1), long=True),
]

FAULTS = {
    "ring without a new number": "doorbell, one ringer",
    "ring without a wake": "doorbell, one ringer",
    "ticket after the second look": "doorbell, one ringer",
    "sleep without a second look": "doorbell, one ringer",
}
