"""The weights of ext/snapshots.pxd, function by function, and models of them.

Words: latest = (version, buffer), pin<r> = buffer + 1 or 0. Payload: each buffer in two halves, so
that a snapshot of which only one half is new would show.
"""

from __future__ import annotations

from model.explorer import Model, planted
from model.weak_memory import (
    ACQUIRE,
    RELEASE,
    Actor,
    Built,
    Payload,
    Thread,
    check,
    fence,
    load,
    own,
    read,
    store,
    write,
)


def free_buffer(readers: int) -> Thread:
    """A buffer that nobody reads nor can begin to read."""
    _, newest = yield own("latest")
    taken = frozenset() if planted("newest buffer is not kept") else frozenset({newest})
    yield fence("pin-handshake")
    buffers = readers + (1 if planted("one buffer too few") else 2)
    if planted("pins are read for each buffer"):
        for b in range(buffers):
            pinned = False
            for r in range(readers):
                pinned = pinned or (yield load(f"pin{r}", ACQUIRE)) == b + 1
            if not pinned and b not in taken:
                return b
        return -1
    for r in range(0 if planted("pins are not read") else readers):
        pin = yield load(f"pin{r}", ACQUIRE, "pin-free")
        if pin:
            taken |= {pin - 1}
    pin = 0
    return min(set(range(buffers)) - taken, default=-1)


def snapshot_publish(readers: int, version: int) -> Thread:
    b = yield from free_buffer(readers)
    check(b >= 0, "a buffer is always free")
    if planted("latest before the copy"):
        yield store("latest", (version, b), RELEASE, "weights")
    yield write(f"first{b}", version)
    yield write(f"second{b}", version)
    if not planted("latest before the copy"):
        yield store("latest", (version, b), RELEASE, "weights")


def snapshot_acquire(r: int) -> Thread:
    """(version, buffer) of the newest snapshot, pinned."""
    latest = yield load("latest", ACQUIRE, "weights")
    while True:
        if not planted("no pin"):
            yield store(f"pin{r}", latest[1] + 1, RELEASE, "pin-free")
        yield fence("pin-handshake")
        if planted("no second look at latest"):
            return latest
        again = yield load("latest", ACQUIRE, "weights")
        if again == latest:
            return latest
        latest = again


def snapshot_release(r: int) -> Thread:
    yield store(f"pin{r}", 0, RELEASE, "pin-free")


def writer(readers: int, versions: int) -> Thread:
    """The trainer; a successor goes on from the newest version."""
    version, _ = yield own("latest")
    while version < versions:
        version += 1
        yield from snapshot_publish(readers, version)


def reader(life: int, r: int, versions: int, lets_go: bool) -> Thread:
    """Inference or evaluator, until it has read the last version.

    `lets_go`: it releases after reading, as both do; else the next acquire ends the reading. Of a
    dead reader the supervisor clears the pin, before its successor begins.
    """
    if life > 1 and not planted("pin of a dead reader stays"):
        yield from snapshot_release(r)
    last = 0
    while last < versions:
        if (yield load("latest"))[0] == last:  # only a hint
            continue
        version, b = yield from snapshot_acquire(r)
        check(version >= last, "versions increase")
        if planted("pin is released before the reading"):
            yield from snapshot_release(r)
        check((yield read(f"first{b}", f"reader {r}")) == version, "a snapshot is whole")
        check((yield read(f"second{b}", f"reader {r}")) == version, "a snapshot is whole")
        if lets_go and not planted("pin is released before the reading"):
            yield from snapshot_release(r)
        last = version


def weights(
    readers: int, versions: int, lives: int = 1, writers: int = 1, lets_go: bool = True
) -> Built:
    names = tuple(f"reader {r}" for r in range(readers))
    words: dict[str, object] = {"latest": (0, 0), **{f"pin{r}": 0 for r in range(readers)}}
    payload = {}
    for b in range(readers + 2):
        payload[f"first{b}"] = Payload(0, names)
        payload[f"second{b}"] = Payload(0, names)
    actors = [Actor("writer", lambda life: writer(readers, versions), writers)]
    for r, name in enumerate(names):
        actors.append(Actor(name, lambda life, r=r: reader(life, r, versions, lets_go), lives))
    return words, payload, actors


MODELS = [
    Model("weights, one reader", lambda: weights(1, 6)),
    Model("weights, reader keeps its pin", lambda: weights(1, 6, lets_go=False)),
    Model("weights, reader killed", lambda: weights(1, 3, lives=2)),
    Model("weights, writer killed", lambda: weights(1, 3, writers=2)),
    Model("weights, two readers", lambda: weights(2, 2)),
    Model("weights, two readers, three versions", lambda: weights(2, 3), long=True),
    Model("weights, both killed", lambda: weights(1, 3, lives=2, writers=2), long=True),
]

FAULTS = {
    "latest before the copy": "weights, one reader",
    "newest buffer is not kept": "weights, one reader",
    "one buffer too few": "weights, one reader",
    "pins are not read": "weights, one reader",
    "no pin": "weights, one reader",
    "no second look at latest": "weights, one reader",
    "pin is released before the reading": "weights, one reader",
    "pin of a dead reader stays": "weights, reader killed",
    "pins are read for each buffer": "weights, reader keeps its pin",
}
