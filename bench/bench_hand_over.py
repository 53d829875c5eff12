"""Transitions of 4 KB, 64 to a chunk, from process to process in Python: an env worker's moment.

    pytest bench/bench_hand_over.py --benchmark-group-by=group -s

numpy fills a slot row by row, the reader copies the chunk out. Beside it in the same run:
multiprocessing's Queue and Pipe and, where installed, faster-fifo. Every chunk is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fdql.shm.ring import DOORBELL_BYTES, Doorbell, RingReader, RingWriter, init_ring, ring_bytes
from partner import FORK, SECOND, faster_fifo, memory, needs_faster_fifo, report, timed

STEPS, WIDTH, CHUNKS = 64, 1024, 200


def check(rows: Any, chunk: int) -> None:
    assert rows[0][0] == rows[-1][-1] == chunk


def through_ring(transitions: np.ndarray) -> float:
    view, bell_memory = memory(ring_bytes(8, transitions.nbytes), DOORBELL_BYTES)
    init_ring(view, 8, transitions.nbytes, 0)

    def receive() -> None:
        bell, reader, batch = Doorbell(bell_memory), RingReader(view, 0), np.empty_like(transitions)
        done = 0
        while done < CHUNKS:
            ticket = bell.arm()
            n = reader.peek()
            if n == 0:
                bell.sleep(ticket, SECOND)
                continue
            bell.disarm()
            for k in range(n):
                batch[:] = np.frombuffer(reader.payload(k), np.float32).reshape(STEPS, WIDTH)
                check(batch, done + k)
            reader.release(n)
            done += n

    def send() -> None:
        writer = RingWriter(view, 0, Doorbell(bell_memory))
        slots = [
            np.frombuffer(writer.payload(s), np.float32).reshape(STEPS, WIDTH)
            for s in range(writer.capacity)
        ]
        for chunk in range(CHUNKS):
            while not writer.wait_not_full(SECOND):
                pass
            rows = slots[writer.reserve()]
            for step in range(STEPS):
                rows[step] = transitions[step]
            rows[0, 0] = rows[-1, -1] = chunk
            writer.commit(STEPS, STEPS, 0)

    return timed(send, receive)


def stamped(transitions: np.ndarray, chunk: int) -> np.ndarray:
    rows = transitions.copy()
    rows[0, 0] = rows[-1, -1] = chunk
    return rows


def through_faster_fifo(transitions: np.ndarray) -> float:
    queue = faster_fifo.Queue(max_size_bytes=10 * transitions.nbytes)

    def receive() -> None:
        rows: list[np.ndarray] = []
        for chunk in range(CHUNKS):
            while len(rows) < STEPS:
                rows += queue.get_many(timeout=60)
            check(rows[:STEPS], chunk)
            rows = rows[STEPS:]

    def send() -> None:
        for chunk in range(CHUNKS):
            queue.put_many(list(stamped(transitions, chunk)), timeout=60)

    return timed(send, receive)


def through_queue(transitions: np.ndarray) -> float:
    queue = FORK.Queue(maxsize=10 * STEPS)

    def receive() -> None:
        for chunk in range(CHUNKS):
            check([queue.get() for _ in range(STEPS)], chunk)

    def send() -> None:
        for chunk in range(CHUNKS):
            for row in stamped(transitions, chunk):
                queue.put(row)

    return timed(send, receive)


def through_pipe(transitions: np.ndarray) -> float:
    """One message per chunk: kinder than a message per transition."""
    out, into = FORK.Pipe(duplex=False)

    def receive() -> None:
        for chunk in range(CHUNKS):
            check(np.frombuffer(out.recv_bytes(), np.float32).reshape(STEPS, WIDTH), chunk)

    def send() -> None:
        for chunk in range(CHUNKS):
            into.send_bytes(stamped(transitions, chunk).data.cast("B"))

    return timed(send, receive)


@pytest.mark.benchmark(group="200 chunks of 64 transitions of 4 KB")
@pytest.mark.parametrize(
    "through",
    [
        through_ring,
        pytest.param(through_faster_fifo, marks=needs_faster_fifo),
        through_queue,
        through_pipe,
    ],
)
def test_hand_over(benchmark, through):
    transitions, taken = np.random.default_rng(0).random((STEPS, WIDTH), np.float32), []
    rounds = 3 if through is through_queue else 6
    benchmark.pedantic(lambda: taken.append(through(transitions)), rounds=rounds, warmup_rounds=1)
    report(benchmark, us_per_transition=min(taken) / 1000 / (CHUNKS * STEPS))
