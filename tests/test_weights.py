from __future__ import annotations

import numpy as np
import pytest
from fdql.shm.weights import (
    WeightsError,
    WeightsReader,
    WeightsWriter,
    clear_pin,
    init_weights,
    weights_bytes,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from shm_blocks import weights_block
from shm_children import body, number_of


def test_bytes_by_hand():
    # header 256 and 2 pins of 128, one page; 4 buffers of 5000 bytes, two pages each
    assert weights_bytes(2, 5000) == 4096 + 4 * 8192


def test_nothing_published():
    block = weights_block(1, 8)
    reader = WeightsReader(block.memory, 0)
    version, data = reader.acquire()
    assert (version, bytes(data), reader.latest) == (0, bytes(8), 0)
    assert WeightsWriter(block.memory).version == 0


def test_pinned_snapshot_stays_by_hand():
    """1 reader, 3 buffers: version 1 pinned, versions 2, 3, 4 go round the other two."""
    block = weights_block(1, 8)
    writer, reader = WeightsWriter(block.memory), WeightsReader(block.memory, 0)
    writer.publish(np.full(1, 11, np.int64), 1)
    version, pinned = reader.acquire()
    assert version == 1
    for v in (2, 3, 4):
        writer.publish(np.full(1, 10 * v, np.int64), v)
    assert pinned[0] == 11
    assert (reader.latest, writer.version) == (4, 4)
    version, data = reader.acquire()
    assert (version, data[0]) == (4, 40)
    reader.release()


def test_snapshot_is_read_only():
    block = weights_block(1, 8)
    _, data = WeightsReader(block.memory, 0).acquire()
    with pytest.raises(TypeError):
        data[0] = 1


def test_misuse_is_refused():
    block = weights_block(1, 8)
    writer = WeightsWriter(block.memory)
    writer.publish(bytes(8), 3)
    for version in (3, 2, 0, 1 << 56):
        with pytest.raises(WeightsError, match="grow"):
            writer.publish(bytes(8), version)
    with pytest.raises(ValueError, match="8"):
        writer.publish(bytes(9), 4)
    with pytest.raises(IndexError):
        WeightsReader(block.memory, 1)
    with pytest.raises(IndexError):
        clear_pin(block.memory, 1)
    with pytest.raises(WeightsError, match="init_weights"):
        WeightsWriter(block.memory[4096:])
    with pytest.raises(ValueError, match="too few"):
        init_weights(block.memory, 2, 5000)
    with pytest.raises(ValueError, match="readers"):
        weights_bytes(254, 8)


def test_dead_readers_pin_is_cleared():
    """A dead reader's pin keeps one buffer for ever; cleared, its successor's number is free."""
    block = weights_block(1, 8)
    writer = WeightsWriter(block.memory)
    writer.publish(bytes(8), 1)
    WeightsReader(block.memory, 0).acquire()
    assert block.memory[256] != 0
    clear_pin(block.memory, 0)
    assert block.memory[256] == 0
    assert WeightsReader(block.memory, 0).acquire()[0] == 1


class WeightsMachine(RuleBasedStateMachine):
    """Snapshots against a dictionary version -> number; ends may be replaced at any time."""

    readers = st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.block = weights_block(3, 24)
        self.writer = WeightsWriter(self.block.memory)
        self.ends = [WeightsReader(self.block.memory, r) for r in range(3)]
        self.version = 0
        self.pinned: dict[int, tuple[int, memoryview]] = {}

    @rule(step=st.integers(1, 5))
    def publish(self, step: int) -> None:
        self.version += step
        self.writer.publish(body(self.version, 24), self.version)

    @rule(r=readers)
    def acquire(self, r: int) -> None:
        self.pinned[r] = self.ends[r].acquire()
        assert self.pinned[r][0] == self.version

    @rule(r=readers)
    def release(self, r: int) -> None:
        self.ends[r].release()
        self.pinned.pop(r, None)

    @rule(r=readers)
    def replace_reader(self, r: int) -> None:
        self.ends[r] = WeightsReader(self.block.memory, r)
        clear_pin(self.block.memory, r)
        self.pinned.pop(r, None)

    @rule()
    def replace_writer(self) -> None:
        self.writer = WeightsWriter(self.block.memory)

    @invariant()
    def pinned_snapshots_are_whole(self) -> None:
        assert self.writer.version == self.ends[0].latest == self.version
        for version, data in self.pinned.values():
            if version:
                assert number_of(data) == version


WeightsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWeightsMachine = WeightsMachine.TestCase


def test_two_readers_in_processes():
    block = weights_block(2, 4000, shared=True)
    writer = WeightsWriter(block.memory)
    children = [block.child("read_weights", r, 3000) for r in range(2)]
    for child in children:
        assert child.stdout.readline() == "attached\n"
    for version in range(1, 3001):
        writer.publish(body(version, 4000), version)
    for child in children:
        with child:
            assert child.wait() == 0


def test_killed_reader_and_writer():
    """Kill a reader holding a pin, then writers in the middle of publishing: no torn snapshot."""
    block = weights_block(1, 200_000, shared=True)
    for life in range(1, 6):
        with block.child("write_weights", 1 << 40) as child:
            assert child.stdout.readline() == "attached\n"
            reader = WeightsReader(block.memory, 0)
            until = reader.latest + 10 * life
            while reader.latest < until:
                version, data = reader.acquire()
                assert version == 0 or number_of(data) == version
            child.kill()
            child.wait()
        version, data = reader.acquire()
        assert number_of(data) == version == reader.latest
        reader.release()
    writer = WeightsWriter(block.memory)
    with block.child("read_weights", 0, 1 << 40) as child:
        assert child.stdout.readline() == "attached\n"
        child.kill()
        child.wait()
    clear_pin(block.memory, 0)
    writer.publish(body(writer.version + 1, 200_000), writer.version + 1)
    with block.child("read_weights", 0, writer.version) as child:
        assert child.wait() == 0
