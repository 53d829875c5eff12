"""The ring and the doorbell between threads and between processes: sleeping, stop, sudden death."""

from __future__ import annotations

import threading

import pytest
from fdql.shm.ring import FLAG_INCARNATION, RingError, RingReader, RingWriter
from shm_blocks import SCHEMA, SECOND, ring_block, wait_until_armed
from shm_children import number_of


def full_ring():
    block = ring_block(2, 8)
    writer = RingWriter(block.memory, SCHEMA, block.bell, block.control)
    for _ in range(2):
        writer.reserve()
        writer.commit(1, 1, 1)
    return block, writer


def test_ring_between_arm_and_sleep_is_not_lost():
    bell = ring_block(2, 8).bell
    ticket = bell.arm()
    bell.ring()
    bell.sleep(ticket, 600 * SECOND)  # returns at once: the ticket is void
    assert bell.wakes == 1


def test_ring_with_nobody_armed_is_free():
    bell = ring_block(2, 8).bell
    bell.ring()
    bell.sleep(bell.arm(), 0)
    bell.disarm()
    bell.ring()
    assert bell.wakes == 0


def test_writer_sleeps_until_a_slot_is_free():
    block, writer = full_ring()
    reader = RingReader(block.memory, SCHEMA)
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(writer.wait_not_full(600 * SECOND)))
    thread.start()
    while not block.memory[384 + 4]:  # not_full.waiting
        pass
    reader.peek()
    reader.release(1)
    thread.join()
    assert result == [True]


def test_stop_ends_waits():
    block, writer = full_ring()
    bell = block.bell
    sleeper = threading.Thread(target=lambda: bell.sleep(bell.arm(), 600 * SECOND))
    waiter = threading.Thread(target=lambda: writer.wait_not_full(600 * SECOND))
    sleeper.start()
    waiter.start()
    wait_until_armed(block)
    block.stop()
    sleeper.join()
    waiter.join()
    bell.sleep(bell.arm(), 600 * SECOND)  # and no new wait begins


def test_child_writes_parent_reads():
    block = ring_block(4, 200, shared=True)
    reader, bell, chunks = RingReader(block.memory, SCHEMA), block.bell, 5000
    with block.child("write_ring", chunks) as child:
        drain(reader, bell, 0, chunks)
        assert child.wait() == 0
    assert reader.peek() == 0
    assert reader.consumed_steps == reader.committed_steps == sum(1 + i % 3 for i in range(chunks))


def drain(reader: RingReader, bell, first: int, until: int) -> list[tuple[int, int, int]]:
    """(number, incarnation, flags) of chunks first .. until - 1, each checked."""
    seen = []
    while first < until:
        ticket = bell.arm()
        n = min(reader.peek(), until - first)
        if n == 0:
            bell.sleep(ticket, SECOND)
            continue
        bell.disarm()
        for k in range(n):
            chunk = reader.chunk(k)
            assert number_of(reader.payload(k)) == chunk.seq - 1 == chunk.policy_version == first
            seen.append((first, chunk.incarnation, chunk.flags))
            first += 1
        reader.release(n)
    return seen


def test_killed_writer_and_its_successors():
    """SIGKILL wherever the writer happens to be: nothing lost, nothing doubled, nothing torn."""
    block = ring_block(4, 3000, shared=True)
    reader, bell = RingReader(block.memory, SCHEMA), block.bell
    seen: list[tuple[int, int, int]] = []
    lives = 6
    for life in range(1, lives + 1):
        with block.child("write_ring", 1 << 40) as child:
            assert child.stdout.readline() == "attached\n"
            seen += drain(reader, bell, len(seen), len(seen) + 97 * life)
            child.kill()
            child.wait()
        seen += drain(reader, bell, len(seen), len(seen) + reader.peek())
    firsts = {incarnation: number for number, incarnation, _ in reversed(seen)}
    assert sorted(firsts) == list(range(1, lives + 1))
    for number, incarnation, flags in seen:
        first_of_successor = incarnation > 1 and firsts[incarnation] == number
        assert flags == (FLAG_INCARNATION if first_of_successor else 0)


def test_second_writer_is_refused_while_the_first_lives():
    block = ring_block(4, 64, shared=True)
    with block.child("write_ring", 1 << 40) as child:
        assert child.stdout.readline() == "attached\n"
        reader = RingReader(block.memory, SCHEMA)
        drain(reader, block.bell, 0, 3)
        with pytest.raises(RingError, match="alive"):
            RingWriter(block.memory, SCHEMA)
        child.kill()
        child.wait()
    RingWriter(block.memory, SCHEMA)


def test_sleeping_process_is_woken():
    block = ring_block(2, 8, shared=True)
    with block.child("sleep_on_bell", 3) as child:
        while child.poll() is None:
            block.bell.ring()
        assert child.returncode == 0
    assert block.bell.wakes >= 3
