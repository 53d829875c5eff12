from __future__ import annotations

import time

import numpy as np
import pytest
from fdql.shm.records import (
    CONTROL_BYTES,
    N_BUCKETS,
    Control,
    Record,
    bucket_of,
    bucket_upper,
    now_ns,
    record_bytes,
)
from fdql.shm.ring import DOORBELL_BYTES, Doorbell
from fdql.shm.segment import Segment
from hypothesis import given
from hypothesis import strategies as st

U64 = st.integers(0, 2**64 - 1)


def memory_of(nbytes: int) -> memoryview:
    return Segment.create([(6, 0, nbytes)], 0, shared=False).section(6, 0)


def record_of(n_counters: int, n_hists: int) -> Record:
    return Record(memory_of(record_bytes(n_counters, n_hists)), n_counters, n_hists)


def test_bytes_by_hand():
    # a line of 128, 3 counters in one line of 128, 2 histograms of 4096
    assert record_bytes(3, 2) == 128 + 128 + 2 * 4096
    assert record_bytes(0, 0) == 128


def test_buckets_by_hand():
    # 0..7 have their own; 8..15 one each; 16..31 two values each; 1000 = 0b1111101000: doubling
    # 6 (512..1023, 64 values to a bucket), sub-bucket 7 -> 8 * 6 + 15 = 63, up to 1023
    assert [bucket_of(v) for v in (0, 7, 8, 15, 16, 17, 18, 31)] == [0, 7, 8, 15, 16, 16, 17, 23]
    assert (bucket_of(1000), bucket_upper(63)) == (63, 1023)
    assert bucket_of(2**64 - 1) == N_BUCKETS - 1
    assert bucket_upper(N_BUCKETS - 1) == 2**64 - 1
    with pytest.raises(IndexError):
        bucket_upper(N_BUCKETS)


@given(U64)
def test_bucket_holds_its_value_within_an_eighth(value):
    i = bucket_of(value)
    lower = bucket_upper(i - 1) + 1 if i else 0
    assert lower <= value <= bucket_upper(i)
    assert (bucket_upper(i) - lower) * 8 <= lower


def test_buckets_cover_all_values():
    uppers = [bucket_upper(i) for i in range(N_BUCKETS)]
    assert uppers == sorted(set(uppers))
    assert all(bucket_of(u) == i for i, u in enumerate(uppers))
    assert all(bucket_of(u + 1) == i + 1 for i, u in enumerate(uppers[:-1]))


@given(st.lists(U64.map(lambda v: v >> 8), max_size=50))
def test_histogram_against_a_list(values):
    record = record_of(0, 2)
    for value in values:
        record.observe(1, value)
    counts = np.frombuffer(record.counts(1), np.uint64)
    expected = np.zeros(N_BUCKETS, np.uint64)
    for value in values:
        expected[bucket_of(value)] += 1
    assert np.array_equal(counts, expected)
    assert record.sum_ns(1) == sum(values) % 2**64
    assert record.max_ns(1) == max(values, default=0)
    assert not any(record.counts(0))


def test_counters():
    record = record_of(17, 1)
    record.set(16, 5)
    record.add(16, 7)
    record.add(0, 2**64 - 1)
    assert [record.get(i) for i in (0, 1, 16)] == [2**64 - 1, 0, 12]
    assert not any(record.counts(0))
    for call in (lambda: record.get(17), lambda: record.set(17, 1), lambda: record.observe(1, 1)):
        with pytest.raises(IndexError):
            call()
    assert (record.n_counters, record.n_hists) == (17, 1)


def test_two_views_of_one_record():
    memory = memory_of(record_bytes(1, 1))
    writer, reader = Record(memory, 1, 1), Record(memory, 1, 1)
    writer.heartbeat(4)
    writer.add(0, 3)
    assert (reader.stage, reader.get(0)) == (4, 3)
    assert 0 < reader.heartbeat_ns <= now_ns()


def test_too_few_bytes_are_refused():
    with pytest.raises(ValueError, match="too few"):
        Record(memory_of(128), 1, 1)


def test_observe_since_chains():
    record = record_of(0, 1)
    start = now_ns()
    middle = record.observe_since(0, start)
    end = record.observe_since(0, middle)
    assert start <= middle <= end
    assert record.sum_ns(0) == end - start
    record.observe_since(0, end + 10**15)  # a start in the future counts as 0
    assert record.sum_ns(0) == end - start


def test_clock_is_the_system_clock_and_never_runs_back():
    """Between two readings of CLOCK_MONOTONIC, within 10 us, through several recalibrations."""
    last, end = 0, time.monotonic_ns() + 60_000_000
    while (before := time.monotonic_ns()) < end:
        now = now_ns()
        after = time.monotonic_ns()
        assert before - 10_000 <= now <= after + 10_000
        assert now >= last
        last = now


def test_control():
    control = Control(memory_of(CONTROL_BYTES))
    assert control.stop == 0
    control.stop = 3
    assert (control.stop, control.buffer[0]) == (3, 3)


def test_wake_voids_tickets():
    bell_memory = memory_of(DOORBELL_BYTES)
    bell, control = Doorbell(bell_memory), Control(memory_of(CONTROL_BYTES))
    ticket = bell.arm()
    control.wake([bell_memory, bell.buffer])
    bell.sleep(ticket, 600 * 10**9)
    assert bell.wakes == 2
    with pytest.raises(ValueError, match="too few"):
        control.wake([bell_memory[:64]])
