"""What measuring costs: a clock reading and a count in a histogram, compiled and from Python.

pytest bench/bench_records.py --benchmark-group-by=group -s
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from fdql.profile import RECORD_NBYTES, Stage, open_record
from fdql.shm import probe_slots
from fdql.shm.records import (
    CONTROL_BYTES,
    EVENT_BYTES,
    Control,
    Record,
    Track,
    now_ns,
    record_bytes,
    track_bytes,
)
from fdql.shm.segment import Segment

N = 100_000


@pytest.fixture
def record() -> Record:
    nbytes = record_bytes(4, 2)
    return Record(Segment.create([(6, 0, nbytes)], 0, shared=False).section(6, 0), 4, 2)


@pytest.mark.benchmark(group="100,000 observations, compiled")
def test_compiled(benchmark, record):
    histogram = record.buffer[256 : 256 + 4096]  # the first one: after a line and the counters
    benchmark(probe_slots.observe, histogram, N)
    assert np.frombuffer(record.counts(0), np.uint64).sum() % N == 0
    assert record.sum_ns(0) > 0


@pytest.mark.benchmark(group="one call from Python")
def test_observe_since(benchmark, record):
    benchmark(record.observe_since, 0, now_ns())
    assert record.max_ns(0) > 0


@pytest.mark.benchmark(group="one call from Python")
def test_heartbeat(benchmark, record):
    benchmark(record.heartbeat, 3)
    assert record.stage == 3


@pytest.mark.benchmark(group="one call from Python")
def test_system_clock(benchmark):
    assert benchmark(time.monotonic_ns) > 0


def _traced(record: Record, n_events: int, *, window_open: bool) -> Track:
    nbytes = track_bytes(n_events)
    control = Control(Segment.create([(1, 0, CONTROL_BYTES)], 0, shared=False).section(1, 0))
    track = Track(Segment.create([(7, 0, nbytes)], 0, shared=False).section(7, 0))
    record.trace_into(track, control.buffer)
    if window_open:
        control.open_trace(1, 2**63)
    return track


def _observe(record: Record, n: int) -> None:
    observe_since, t0 = record.observe_since, now_ns()
    for _ in range(n):
        t0 = observe_since(0, t0)


@pytest.mark.benchmark(group="100,000 observations from Python: without trace, closed, open")
@pytest.mark.parametrize("trace", ["none", "closed", "open"])
def test_observe_since_with_a_trace(benchmark, trace):
    tracks: list[Track] = []

    def setup() -> tuple[tuple[Record, int], dict[str, object]]:
        nbytes = record_bytes(4, 2)
        record = Record(Segment.create([(6, 0, nbytes)], 0, shared=False).section(6, 0), 4, 2)
        if trace != "none":
            tracks.append(_traced(record, N, window_open=trace == "open"))
        return (record, N), {}

    benchmark.pedantic(_observe, setup=setup, rounds=20, warmup_rounds=1)
    assert all(len(t.events()) // EVENT_BYTES == N * (trace == "open") for t in tracks)
    assert not any(t.dropped for t in tracks)


@pytest.mark.benchmark(group="1000 records from Python (B19: at most 30 ns each, 30 us here)")
@pytest.mark.parametrize("looked_up", [False, True])
def test_observe(benchmark, looked_up):
    """Looked up: with the attribute of the enumeration, as the loops write it (68 ns in 3.11)."""
    segment = Segment.create([(6, 0, RECORD_NBYTES)], 0, shared=False)
    record = open_record(segment.section(6, 0))
    stage = Stage.INFER_FORWARD

    def bound() -> None:
        for _ in range(1000):
            record.observe(stage, 1234)

    def by_name() -> None:
        for _ in range(1000):
            record.observe(Stage.INFER_FORWARD, 1234)

    benchmark(by_name if looked_up else bound)
    n = int(np.frombuffer(record.counts(stage), np.uint64).sum())
    assert n >= 1000
    assert n % 1000 == 0
    assert record.sum_ns(stage) == 1234 * n
