"""Request and reply of ext/mailbox.pxd and ext/slots.pyx, function by function, and models of them.

Slot i is the words req<i>, rep<i>, waiting<i>, version<i> and the payload obs<i>, actions<i>. An
observation is (life, number) of the worker that wrote it; the server's action for it is the same,
so a worker knows whether the actions are those for its own request. A successor may write its
first observation while the server still reads for its predecessor: that action is never taken.

Two workers asleep and the server asleep in one model have more than 3,000,000 states and were not
looked at whole: with two workers either these or the server look without sleeping.
"""

from __future__ import annotations

from enum import Enum

from model.doorbell import bell_arm, bell_disarm, bell_ring, bell_sleep, bell_words
from model.explorer import Model, planted
from model.weak_memory import (
    ACQUIRE,
    RELEASE,
    TORN,
    Actor,
    Built,
    Payload,
    Thread,
    check,
    choose,
    fence,
    load,
    own,
    read,
    store,
    wait,
    wake,
    write,
)


def mailbox_attach(i: int) -> Thread:
    yield store(f"first{i}", (yield own(f"req{i}")) + 1)


class Wait(Enum):
    """How a worker waits: asleep, asleep for 100 ms at most, or looking again and again."""

    SLEEP, NAP, SPIN = range(3)


def mailbox_submit(i: int, request: tuple[int, int], first: bool, checked: bool) -> Thread:
    """The caller's writing of the rows and their checksum, then the request's number."""
    if planted("request before the observation"):
        yield store(f"req{i}", request[1], RELEASE, "request")
        yield write(f"obs{i}", request, may_race=first)
        if checked:
            yield write(f"crc{i}", request, may_race=first)
    else:
        yield write(f"obs{i}", request, may_race=first)
        if checked:
            yield write(f"crc{i}", request, may_race=first)
        yield store(f"req{i}", request[1], RELEASE, "request")
    if not planted("request without a bell"):
        yield from bell_ring("server")


def mailbox_replied(i: int, number: int) -> Thread:
    there = yield load(f"rep{i}", ACQUIRE, "reply")
    if planted("any later reply is taken"):
        return there >= number - 1
    return there == number


def mailbox_await(i: int, number: int, how: Wait) -> Thread:
    """True. At its deadline it says False and its caller comes back: here it just goes on."""
    if (yield from mailbox_replied(i, number)):
        return True
    if how is Wait.SPIN:
        while not (yield from mailbox_replied(i, number)):  # its spin, for ever
            pass
        return True
    while True:
        seen = yield load(f"rep{i}", ACQUIRE, "reply")
        if seen == number:
            return True
        if planted("look before saying that it waits"):
            if (yield from mailbox_replied(i, number)):
                return True
            yield store(f"waiting{i}", 1)
            yield fence("reply-wake")
            yield wait(f"rep{i}", number - 1 if seen == number else seen, how is Wait.NAP)
        else:
            yield store(f"waiting{i}", 1)
            yield fence("reply-wake")
            if planted("asleep without a second look") or not (
                yield from mailbox_replied(i, number)
            ):
                yield wait(f"rep{i}", seen, how is Wait.NAP)
        yield store(f"waiting{i}", 0)


def mailbox_ready(i: int) -> Thread:
    """(number, whether it has no reply yet)."""
    number = yield load(f"req{i}", ACQUIRE, "request")
    return number, number != (yield own(f"rep{i}"))


def mailbox_orphaned(i: int, number: int) -> Thread:
    """True when who asked is known to be dead."""
    return number < (yield load(f"first{i}"))


def request_corrupt(i: int, number: int) -> Thread:
    """A checksum is the request itself, which holds who asks and the number."""
    obs = yield read(f"obs{i}", "server", may_race=True)
    crc = yield read(f"crc{i}", "server", may_race=True)
    if obs != TORN and obs == crc and obs[1] == number:
        return False
    if not planted("called corrupt without a ring"):
        yield from bell_ring("server")
    return not (yield from mailbox_orphaned(i, number))


def mailbox_reply(i: int, number: int) -> Thread:
    yield store(f"version{i}", number)
    yield store(f"rep{i}", number, RELEASE, "reply")


def mailbox_wake(i: int) -> Thread:
    if (yield load(f"waiting{i}")):
        yield wake(f"rep{i}")


class SlotServer:
    """The server's end: `taken` are the numbers that the last scan saw, one per slot."""

    @staticmethod
    def scan(taken: tuple[int, ...]) -> Thread:
        """(slots with a request and no reply, taken)."""
        ready: tuple[int, ...] = ()
        for i in range(len(taken)):
            number, waits = yield from mailbox_ready(i)
            if waits:
                ready, taken = (*ready, i), (*taken[:i], number, *taken[i + 1 :])
        return ready, taken

    @staticmethod
    def collect(taken: tuple[int, ...], target: int, spins: bool) -> Thread:
        """As scan, once `target` slots are ready or, with one ready, the dwell is over."""
        while True:
            ready, taken = yield from SlotServer.scan(taken)
            if len(ready) >= target or (ready and (yield choose())):
                return ready, taken
            if spins:
                continue
            ticket, seen = (yield from bell_arm("server")), len(ready)
            if not planted("server sleeps without a second look"):
                ready, taken = yield from SlotServer.scan(taken)
            if len(ready) != seen:
                yield from bell_disarm("server")
            else:
                yield from bell_sleep("server", ticket, timed=len(ready) > 0)

    @staticmethod
    def admit(ready: tuple[int, ...], taken: tuple[int, ...], checked: bool) -> Thread:
        """Those of `ready` whose worker is not known to be dead; the others are answered."""
        kept: tuple[int, ...] = ()
        for i in ready:
            corrupt = checked and (yield from request_corrupt(i, taken[i]))
            check(not corrupt, "what is whole is never called corrupt")
            if (yield from mailbox_orphaned(i, taken[i])):
                yield from mailbox_reply(i, taken[i])
            else:
                kept = (*kept, i)
        return kept

    @staticmethod
    def reply(ready: tuple[int, ...], taken: tuple[int, ...]) -> Thread:
        for i in ready:
            number = taken[i]
            if planted("reply to the newest request"):
                number = yield load(f"req{i}", ACQUIRE)
            yield from mailbox_reply(i, number)
        yield fence("reply-wake")
        for i in ready:
            if not planted("reply without a wake"):
                yield from mailbox_wake(i)


def act(i: int) -> Thread:
    """The forward pass: from one slot's observation to its actions."""
    obs = yield read(f"obs{i}", "server", may_race=True)
    yield write(f"actions{i}", obs)


def server(slots: int, target: int, spins: bool, checked: bool) -> Thread:
    taken: tuple[int, ...] = ()
    for i in range(slots):
        taken = (*taken, (yield own(f"rep{i}")))
    while True:
        ready, taken = yield from SlotServer.collect(taken, target, spins)
        ready = yield from SlotServer.admit(ready, taken, checked)
        if planted("reply before the actions"):
            yield from SlotServer.reply(ready, taken)
        for i in ready:
            yield from act(i)
        if not planted("reply before the actions"):
            yield from SlotServer.reply(ready, taken)


def submit(i: int, life: int, first: bool, checked: bool) -> Thread:
    """SlotClient.submit: the number of the new request."""
    number = yield own(f"req{i}")
    number += not (planted("successor asks under the same number") and first and life > 1)
    yield from mailbox_submit(i, (life, number), first and life > 1, checked)
    return number


def use(i: int, life: int, number: int, how: Wait) -> Thread:
    """Wait for the reply to one request and use its actions."""
    yield from mailbox_await(i, number, how)
    actions = yield read(f"actions{i}", "worker")
    check(actions != TORN, "actions come from whole observations")
    check(actions == (life, number), "a reply belongs to its request")
    version = yield load(f"version{i}")
    check(version == number, "the policy's version is that of the reply")


def worker(life: int, mine: tuple[int, ...], rounds: int, how: Wait, checked: bool) -> Thread:
    """Its groups in turn: one is at the server while the other steps."""
    numbers: tuple[int, ...] = ()
    for i in mine:
        yield from mailbox_attach(i)
    if not planted("successor does not ring before its rows"):
        yield from bell_ring("server")
    for i in mine:
        numbers = (*numbers, (yield from submit(i, life, True, checked)))
    while True:
        for k, i in enumerate(mine):
            yield from use(i, life, numbers[k], how)
            if numbers[k] < rounds:
                number = yield from submit(i, life, False, checked)
                numbers = (*numbers[:k], number, *numbers[k + 1 :])
            elif k == len(mine) - 1:
                return


def slots(
    workers: int,
    groups: int,
    rounds: int,
    lives: int = 1,
    server_lives: int = 1,
    target: int = 1,
    how: Wait = Wait.SLEEP,
    server_spins: bool = False,
    checked: bool = False,
) -> Built:
    words: dict[str, int] = {**bell_words("server")}
    payload = {}
    for i in range(workers * groups):
        words |= {f"req{i}": 0, f"rep{i}": 0, f"waiting{i}": 0, f"version{i}": 0}
        words[f"first{i}"] = 0
        payload[f"obs{i}"] = Payload(None, ("server",), races=True)
        if checked:
            payload[f"crc{i}"] = Payload(None, ("server",), races=True)
        payload[f"actions{i}"] = Payload(None, ("worker",))
    actors = []
    for w in range(workers):
        mine = tuple(g * workers + w for g in range(groups))
        actors.append(
            Actor(
                f"worker {w}",
                lambda life, mine=mine: worker(life, mine, rounds, how, checked),
                lives,
            )
        )
    n = workers * groups
    actors.append(
        Actor(
            "server",
            lambda life: server(n, target, server_spins, checked),
            server_lives,
            serves=True,
        )
    )
    return words, payload, actors


def checked_slots(lives: int) -> Built:
    """With checksums. Nobody sleeps, so that the rows can be looked at closely."""
    return slots(1, 1, 2, lives, how=Wait.SPIN, server_spins=True, checked=True)


MODELS = [
    Model("slots, three rounds", lambda: slots(1, 1, 3)),
    Model("slots, worker killed", lambda: slots(1, 1, 1, lives=2)),
    Model("slots, server killed", lambda: slots(1, 1, 2, server_lives=2, how=Wait.NAP)),
    Model("slots, two groups", lambda: slots(1, 2, 1)),
    Model("slots, worker killed, three rounds", lambda: slots(1, 1, 3, lives=2), long=True),
    Model("slots, worker killed twice", lambda: slots(1, 1, 2, lives=3), long=True),
    Model("slots, two groups, two rounds", lambda: slots(1, 2, 2), long=True),
    Model("slots, two workers spin", lambda: slots(2, 1, 1, how=Wait.SPIN), long=True),
    Model("slots, two, server spins", lambda: slots(2, 1, 1, server_spins=True), long=True),
    Model("slots, checked, worker killed", lambda: checked_slots(2)),
    Model("slots, checked, worker killed twice", lambda: checked_slots(3), long=True),
    Model("slots, two, dwell", lambda: slots(2, 1, 1, 1, 1, 2, Wait.SPIN, True)),
]

FAULTS = {
    "successor does not ring before its rows": "slots, checked, worker killed",
    "called corrupt without a ring": "slots, checked, worker killed",
    "request before the observation": "slots, three rounds",
    "request without a bell": "slots, three rounds",
    "look before saying that it waits": "slots, three rounds",
    "asleep without a second look": "slots, three rounds",
    "reply before the actions": "slots, three rounds",
    "reply without a wake": "slots, three rounds",
    "server sleeps without a second look": "slots, three rounds",
    "any later reply is taken": "slots, worker killed",
    "successor asks under the same number": "slots, worker killed",
    "reply to the newest request": "slots, worker killed",
}
