from __future__ import annotations

from collections import deque

import pytest
from fdql.shm.ring import (
    FLAG_INCARNATION,
    FLAG_PARTIAL,
    RingError,
    RingReader,
    RingWriter,
    init_ring,
    ring_bytes,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shm_blocks import SCHEMA, ring_block


def ends(capacity: int = 4, payload_bytes: int = 100):
    block = ring_block(capacity, payload_bytes)
    writer = RingWriter(block.memory, SCHEMA, block.bell, block.control)
    return block, writer, RingReader(block.memory, SCHEMA)


def put(writer: RingWriter, value: int, n_steps: int = 1, flags: int = 0) -> None:
    writer.payload(writer.reserve())[:] = bytes([value]) * writer.payload_bytes
    writer.commit(n_steps + 1, n_steps, 10 * value, flags)


def test_bytes_by_hand():
    # header 512; slot 64 + 100 = 164, rounded up to 256; above 32 KiB rounded up to a page
    assert ring_bytes(4, 100) == 512 + 4 * 256
    assert ring_bytes(2, 32768) == 512 + 2 * 36864


def test_one_chunk_by_hand():
    _, writer, reader = ends()
    assert reader.peek() == 0
    put(writer, 7, n_steps=3, flags=FLAG_PARTIAL)
    assert reader.peek() == 1
    seq, incarnation, flags, n_rows, n_steps, version, t = reader.chunk(0)
    assert (seq, incarnation, flags, n_rows, n_steps, version) == (1, 1, FLAG_PARTIAL, 4, 3, 70)
    assert t > 0
    assert bytes(reader.payload(0)) == bytes([7]) * 100
    assert (writer.committed_steps, reader.committed_steps, reader.consumed_steps) == (3, 3, 0)
    reader.release(1)
    assert (reader.peek(), reader.consumed_steps) == (0, 3)


def test_full_ring_gives_no_slot_and_release_gives_it_back():
    _, writer, reader = ends(capacity=2)
    put(writer, 1)
    put(writer, 2)
    assert writer.reserve() == -1
    assert not writer.wait_not_full(0)
    with pytest.raises(RingError, match="reserve"):
        writer.commit(1, 1, 1)
    assert reader.peek() == 2
    reader.release(1)
    assert writer.reserve() == 0  # chunk 2 goes where chunk 0 was
    assert writer.wait_not_full(0)


def test_commit_needs_its_own_reserve():
    _, writer, _ = ends()
    put(writer, 1)
    with pytest.raises(RingError, match="reserve"):
        writer.commit(1, 1, 1)


def test_slots_keep_their_memory():
    _, writer, reader = ends(capacity=2)
    for i in range(5):
        slot = writer.reserve()
        assert slot == i % 2
        put(writer, i)
        reader.peek()
        assert reader.slot_index(0) == slot
        reader.release(1)


def test_reader_refuses_what_peek_did_not_show():
    _, writer, reader = ends()
    put(writer, 1)
    with pytest.raises(IndexError):
        reader.chunk(0)
    with pytest.raises(IndexError):
        reader.release(1)
    reader.peek()
    reader.release(0)
    reader.release(1)
    with pytest.raises(IndexError):
        reader.payload(0)


def test_overwritten_memory_is_noticed():
    block, writer, reader = ends()
    put(writer, 1)
    reader.peek()
    block.memory[512] = 99  # the first slot's number
    with pytest.raises(RingError, match="overwritten"):
        reader.chunk(0)


@pytest.mark.parametrize("capacity", [0, 1, 3, 6])
def test_capacity_rule(capacity):
    with pytest.raises(ValueError, match="power of two"):
        ring_bytes(capacity, 8)


def test_wrong_bytes_are_refused():
    block = ring_block(2, 8)
    with pytest.raises(RingError, match="schema"):
        RingReader(block.memory, SCHEMA + 1)
    with pytest.raises(RingError, match="init_ring"):
        RingReader(blank(512), SCHEMA)
    with pytest.raises(ValueError, match="too few"):
        init_ring(block.memory[:512], 2, 8, SCHEMA)
    with pytest.raises(ValueError, match="128-byte line"):
        RingReader(block.memory[8:], SCHEMA)
    with pytest.raises(ValueError, match="writable"):
        RingReader(block.memory.toreadonly(), SCHEMA)


def blank(n: int) -> memoryview:
    return ring_block(2, n).memory[512:]


def test_successor_starts_at_head_and_overwrites():
    block, writer, reader = ends()
    put(writer, 1, n_steps=5)
    writer.payload(writer.reserve())[:50] = b"x" * 50  # dies while filling
    successor = RingWriter(block.memory, SCHEMA)
    assert (successor.incarnation, successor.committed, successor.committed_steps) == (2, 1, 5)
    put(successor, 2)
    put(successor, 3)
    assert reader.peek() == 3
    chunks = [reader.chunk(k) for k in range(3)]
    assert [c.incarnation for c in chunks] == [1, 2, 2]
    assert [c.flags for c in chunks] == [0, FLAG_INCARNATION, 0]
    assert [reader.payload(k)[0] for k in range(3)] == [1, 2, 3]


def test_a_successor_rings_for_what_its_predecessor_may_not_have():
    # killed between the store that hands over and the ring, an end leaves a sleeper asleep
    block, writer, _ = ends()
    put(writer, 1)
    block.bell.arm()
    writer = RingWriter(block.memory, SCHEMA, block.bell, block.control)
    assert block.bell.wakes == 1
    put(writer, 2)  # the bell is still armed
    assert block.bell.wakes == 2


def test_reader_successor_sees_unreleased_chunks_again():
    block, writer, reader = ends()
    for i in range(3):
        put(writer, i, n_steps=2)
    reader.peek()
    reader.release(1)
    again = RingReader(block.memory, SCHEMA)
    assert (again.peek(), again.consumed_steps, again.chunk(0).seq) == (2, 2, 2)


class RingMachine(RuleBasedStateMachine):
    """The ring against a deque; either end may be replaced at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.writer, self.reader = ends(capacity=4, payload_bytes=16)
        self.model: deque[tuple[int, ...]] = deque()
        self.seen = self.number = self.incarnation = self.steps = self.consumed = 0
        self.incarnation, self.fresh = 1, False

    @rule(value=st.integers(0, 255), n_steps=st.integers(0, 9), flags=st.sampled_from([0, 2]))
    def write(self, value: int, n_steps: int, flags: int) -> None:
        if len(self.model) == 4:
            assert self.writer.reserve() == -1
            return
        put(self.writer, value, n_steps, flags)
        self.number, self.steps = self.number + 1, self.steps + n_steps
        flags |= FLAG_INCARNATION if self.fresh else 0
        self.fresh = False
        self.model.append((self.number, self.incarnation, flags, n_steps, value))

    @rule()
    def peek(self) -> None:
        self.seen = self.reader.peek()
        assert self.seen == len(self.model)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, self.seen - 1))
        c = self.reader.chunk(k)
        value = self.reader.payload(k)[0]
        assert (c.seq, c.incarnation, c.flags, c.n_steps, value) == self.model[k]
        assert bytes(self.reader.payload(k)) == bytes([value]) * 16

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, self.seen))
        self.reader.release(n)
        self.seen -= n
        self.consumed += sum(self.model.popleft()[3] for _ in range(n))

    @rule(garbage=st.binary(max_size=16))
    def replace_writer(self, garbage: bytes) -> None:
        slot = self.writer.reserve()
        if slot >= 0:
            self.writer.payload(slot)[: len(garbage)] = garbage
        self.writer = RingWriter(self.block.memory, SCHEMA)
        self.incarnation += 1
        self.fresh = True

    @rule()
    def replace_reader(self) -> None:
        self.reader = RingReader(self.block.memory, SCHEMA)
        self.seen = self.reader.peek()
        assert self.seen == len(self.model)

    @invariant()
    def counters(self) -> None:
        assert self.writer.committed == self.number
        assert self.writer.committed_steps == self.reader.committed_steps == self.steps
        assert self.reader.consumed_steps == self.consumed
        assert self.writer.incarnation == self.incarnation


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRingMachine = RingMachine.TestCase
