"""Ring and doorbell between two pinned processes, compiled loops: latency, rate, bulk copies.

    pytest bench/bench_ring.py --benchmark-group-by=group -s

Beside them in the same run: a textbook queue in C++ (one producer, one consumer, counters on lines
of their own), memcpy, a pipe and, where installed, faster-fifo. Every message that arrives is
checked, so fast and wrong does not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from fdql.shm import probe_ring, probe_slots
from fdql.shm.ring import DOORBELL_BYTES, Doorbell, init_ring, ring_bytes
from partner import (
    FORK,
    faster_fifo,
    memory,
    partner,
    report,
    side_by_side,
    timed,
)


def rings(n: int, capacity: int, payload_bytes: int) -> list[memoryview]:
    views = memory(*[ring_bytes(capacity, payload_bytes)] * n)
    for view in views:
        init_ring(view, capacity, payload_bytes, 0)
    return views


# ---- one way, 64 bytes, both sides spinning (B1) ---------------------------------------------


def ping(exchange: Callable[..., None], there: memoryview, back: memoryview, n: int) -> np.ndarray:
    half, other = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
    with partner(exchange, back, there, other, True):
        exchange(there, back, half, False)
    return half[n // 10 :]


@pytest.mark.parametrize("percentile", [50, 99])
def test_one_way_64_bytes(benchmark, percentile):
    def ring() -> float:
        return np.percentile(ping(probe_ring.ring_ping, *rings(2, 1024, 64), 20_000), percentile)

    def textbook() -> float:
        queues = memory(*[probe_ring.QUEUE_BYTES] * 2)
        return np.percentile(ping(probe_ring.queue_ping, *queues, 20_000), percentile)

    side_by_side(benchmark, ring, {"textbook": textbook}, rounds=12)


# ---- rate of 64-byte messages, every word checked (B2) ---------------------------------------


def test_rate_of_64_byte_messages(benchmark):
    n = 500_000

    def ring() -> float:
        (memory_of_ring,) = rings(1, 1024, 64)
        read = partial(probe_ring.ring_read, memory_of_ring, None, n)
        write = partial(probe_ring.ring_write, memory_of_ring, None, n)
        return timed(write, partial(nothing_wrong, read)) / n

    def textbook() -> float:
        (queue,) = memory(probe_ring.QUEUE_BYTES)
        read = partial(probe_ring.queue_read, queue, n)
        return timed(partial(probe_ring.queue_write, queue, n), partial(nothing_wrong, read)) / n

    side_by_side(benchmark, ring, {"textbook": textbook}, rounds=12)


def nothing_wrong(read: Callable[[], int]) -> None:
    assert read() == 0


# ---- bulk bytes, 64 KB at a time, both sides at once (B7) ------------------------------------

SIZE, BULK = 65_536, 5_000


def ring_bulk(source: memoryview, target: memoryview) -> float:
    ring = rings(1, 4, SIZE)[0]

    def receive() -> None:
        probe_ring.ring_copy_out(ring, target, BULK)
        assert target[0] == target[-1] == 7

    return timed(lambda: probe_ring.ring_copy_in(ring, source, BULK), receive)


def memcpy_twice(source: memoryview, target: memoryview) -> float:
    """In and out by one core, in its cache: the same copies without another core."""
    (middle,) = memory(SIZE)
    taken = probe_ring.copy(middle, source, SIZE, BULK)
    return taken + probe_ring.copy(target, middle, SIZE, BULK)


def textbook_bulk(source: memoryview, target: memoryview) -> float:
    """The same copies between the same cores, with the least that can hand a buffer over."""
    queue, buffers = memory(probe_ring.QUEUE_BYTES, 4 * SIZE)

    def receive() -> None:
        probe_ring.queue_copy_out(queue, buffers, target, SIZE, BULK)
        assert target[0] == target[-1] == 7

    return timed(lambda: probe_ring.queue_copy_in(queue, buffers, source, SIZE, BULK), receive)


def pipe_bulk(source: memoryview, target: memoryview) -> float:
    out, into = FORK.Pipe(duplex=False)

    def receive() -> None:
        for _ in range(BULK):
            out.recv_bytes_into(target)
        assert target[0] == target[-1] == 7

    def send() -> None:
        for _ in range(BULK):
            into.send_bytes(source)

    return timed(send, receive)


def faster_fifo_bulk(source: memoryview, target: memoryview) -> float:
    queue = faster_fifo.Queue(max_size_bytes=5 * SIZE, loads=bytes, dumps=bytes)
    message = bytes(source)

    def receive() -> None:
        seen = 0
        while seen < BULK:
            messages = queue.get_many(timeout=60)
            target[:] = messages[-1]
            seen += len(messages)
        assert target[0] == target[-1] == 7

    def send() -> None:
        for _ in range(BULK):
            queue.put(message, timeout=60)

    return timed(send, receive)


def test_bulk_64_kilobytes(benchmark):
    source, target = memory(SIZE, SIZE)
    source[:] = bytes([7]) * SIZE
    kinds = {"textbook": textbook_bulk, "memcpy_twice": memcpy_twice, "pipe": pipe_bulk}
    if faster_fifo is not None:
        kinds["faster_fifo"] = faster_fifo_bulk
    peers = {name: lambda bulk=bulk: bulk(source, target) / BULK for name, bulk in kinds.items()}
    side_by_side(benchmark, lambda: ring_bulk(source, target) / BULK, peers, rounds=5)


# ---- ringing with nobody asleep (B6) ---------------------------------------------------------


@pytest.mark.benchmark(group="a million rings with nobody asleep")
def test_bell(benchmark):
    (bell,) = memory(DOORBELL_BYTES)
    taken = benchmark.pedantic(probe_slots.ring_bell, (bell, 1_000_000), rounds=10)
    assert Doorbell(bell).wakes == 0
    report(benchmark, ns_per_ring=taken / 1e6)
