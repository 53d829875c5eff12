"""The ring of ext/spsc.pxd and its waits of ext/ring.pyx, function by function, and models of it.

A chunk is two payload words per slot: the header (seq, incarnation, first of its incarnation) and
the body, which holds the header's seq again. Counters for accounting only are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.doorbell import bell_arm, bell_disarm, bell_ring, bell_sleep, bell_words
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

CAPACITY = 2


@dataclass(frozen=True)
class WriterEnd:
    """What the writer keeps to itself."""

    head: int
    tail_seen: int
    incarnation: int
    first: bool  # goes with the next chunk
    rings: bool  # else there is no bell: whoever waits looks again and again


@dataclass(frozen=True)
class ReaderEnd:
    tail: int
    head_seen: int
    rings: bool


def slot_at(part: str, i: int) -> str:
    return f"{part}{i % CAPACITY}"


def writer_attach(rings: bool) -> Thread:
    head = yield own("head")
    tail_seen = yield load("tail", ACQUIRE, "slot-free")
    incarnation = (yield own("incarnation")) + 1
    yield store("incarnation", incarnation)
    if head > 0:  # its count of steps goes on from the last chunk's
        check((yield read(slot_at("header", head - 1), "writer"))[0] == head, "head is committed")
        head += planted("successor skips a slot")
    if rings and not planted("successor of a writer does not ring"):
        yield from bell_ring("bell")
    return WriterEnd(head, tail_seen, incarnation, incarnation > 1, rings)


def writer_reserve(w: WriterEnd) -> Thread:
    """(slot is free, the writer's end)."""
    full = CAPACITY + 1 if planted("one slot too many") else CAPACITY
    if w.head - w.tail_seen == full:
        w = replace(w, tail_seen=(yield load("tail", ACQUIRE, "slot-free")))
        if w.head - w.tail_seen == full:
            return False, w
    return True, w


def writer_publish(w: WriterEnd) -> Thread:
    yield store("head", w.head + 1, RELEASE, "slot-full")


def writer_commit(w: WriterEnd) -> Thread:
    """With writer_seal, which writes the header."""
    if planted("head before the header"):
        yield from writer_publish(w)
        yield write(slot_at("header", w.head), (w.head + 1, w.incarnation, w.first))
    else:
        yield write(slot_at("header", w.head), (w.head + 1, w.incarnation, w.first))
        yield from writer_publish(w)
    if w.rings and not planted("commit without a bell"):
        yield from bell_ring("bell")
    return replace(w, head=w.head + 1, first=planted("every chunk is the first") and w.first)


def reader_attach(rings: bool) -> Thread:
    tail = yield own("tail")
    head_seen = yield load("head", ACQUIRE, "slot-full")
    if head_seen != tail:
        check((yield read(slot_at("header", tail), "reader"))[0] == tail + 1, "tail is committed")
    if rings and not planted("successor of a reader does not ring"):
        yield from bell_ring("not_full")
    return ReaderEnd(tail, head_seen, rings)


def reader_peek(r: ReaderEnd) -> Thread:
    return replace(r, head_seen=(yield load("head", ACQUIRE, "slot-full")))


def reader_release(r: ReaderEnd, n: int) -> Thread:
    r = replace(r, tail=r.tail + n)
    yield store("tail", r.tail, RELEASE, "slot-free")
    if r.rings and not planted("release without a bell"):
        yield from bell_ring("not_full")
    return r


def wait_not_full(w: WriterEnd) -> Thread:
    free, w = yield from writer_reserve(w)
    if not free:
        ticket = yield from bell_arm("not_full")
        free, w = yield from writer_reserve(w)
        if not free or planted("writer sleeps without a second look"):
            yield from bell_sleep("not_full", ticket)
        else:
            yield from bell_disarm("not_full")
        free, w = yield from writer_reserve(w)
    return free, w


def writer(chunks: int, rings: bool) -> Thread:
    """A worker: it fills slots in place; what a predecessor left half written is overwritten."""
    w = yield from writer_attach(rings)
    while w.head < chunks:
        free, w = yield from writer_reserve(w)
        if free:
            if planted("body after the commit"):
                body = slot_at("body", w.head)
                w = yield from writer_commit(w)
                yield write(body, w.head)
                continue
            yield write(slot_at("body", w.head), w.head + 1)
            w = yield from writer_commit(w)
        elif rings:
            free, w = yield from wait_not_full(w)


def read_chunk(r: ReaderEnd, incarnation: int) -> Thread:
    """Read the oldest chunk, check it; its incarnation."""
    seq, newest, first = yield read(slot_at("header", r.tail), "reader")
    body = yield read(slot_at("body", r.tail), "reader")
    check(seq == r.tail + 1, "every chunk comes once, in order")
    check(body == seq, "header and body are of one chunk")
    if incarnation:  # of the chunk before; 0: this reader knows of none
        check(first == (newest > incarnation), "the first chunk of an incarnation says so, alone")
    return newest


def reader(chunks: int, batch: bool, rings: bool) -> Thread:
    """The loader. `batch`: all that can be read is given back at once, as replay's tests do."""
    r = yield from reader_attach(rings)
    incarnation = 0
    while r.tail < chunks:
        r = yield from reader_peek(r)
        n = r.head_seen - r.tail
        check(0 <= n <= CAPACITY, "0 <= head - tail <= capacity")
        if n == 0 and not rings:
            continue
        if n == 0:
            ticket = yield from bell_arm("bell")
            r = yield from reader_peek(r)
            if r.head_seen == r.tail:
                yield from bell_sleep("bell", ticket)
            else:
                yield from bell_disarm("bell")
            continue
        if planted("slot given back before it is read"):
            r = yield from reader_release(r, 1)
            yield from read_chunk(replace(r, tail=r.tail - 1), incarnation)
            continue
        incarnation = yield from read_chunk(r, incarnation)
        if batch and n > 1:
            incarnation = yield from read_chunk(replace(r, tail=r.tail + 1), incarnation)
            r = yield from reader_release(r, 2)
        else:
            r = yield from reader_release(r, 1)


def ring(
    chunks: int, writers: int = 1, readers: int = 1, batch: bool = False, rings: bool = True
) -> Built:
    words = {"head": 0, "tail": 0, "incarnation": 0, **bell_words("bell"), **bell_words("not_full")}
    payload = {}
    for i in range(CAPACITY):
        payload[slot_at("header", i)] = Payload((0, 0, False), ("writer", "reader"))
        payload[slot_at("body", i)] = Payload(None, ("reader",))
    actors = [
        Actor("writer", lambda life: writer(chunks, rings), writers),
        Actor("reader", lambda life: reader(chunks, batch, rings), readers),
    ]
    return words, payload, actors


MODELS = [
    Model("ring, wraps round", lambda: ring(3)),
    Model("ring, two chunks at a time", lambda: ring(3, batch=True)),
    Model("ring, writer killed", lambda: ring(2, writers=2)),
    Model("ring, reader killed", lambda: ring(2, readers=2, batch=True)),
    Model("ring without bells, four times round", lambda: ring(9, rings=False)),
    Model("ring without bells, both killed", lambda: ring(5, 3, 3, rings=False)),
    Model("ring without bells, two at a time", lambda: ring(5, 2, 2, batch=True, rings=False)),
    Model("ring, twice round", lambda: ring(4), long=True),
    Model("ring, writer killed when full", lambda: ring(3, writers=2), long=True),
    Model("ring, reader killed when full", lambda: ring(3, readers=2, batch=True), long=True),
]

FAULTS = {
    "one slot too many": "ring, wraps round",
    "head before the header": "ring, wraps round",
    "body after the commit": "ring, wraps round",
    "slot given back before it is read": "ring, wraps round",
    "commit without a bell": "ring, wraps round",
    "release without a bell": "ring, wraps round",
    "writer sleeps without a second look": "ring, wraps round",
    "successor skips a slot": "ring, writer killed",
    "successor of a writer does not ring": "ring, writer killed",
    "every chunk is the first": "ring, writer killed",
    "successor of a reader does not ring": "ring, reader killed when full",
}
