"""The replay as a whole, by hand: batches, stale priorities, refusals, sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from chunks import DISCRETE, SHAPES, VECTOR, chunk_of, make, numbered
from fdql.config import ConfigError
from fdql.replay.replay import Batch
from fdql.replay.size import default_capacity, nbytes_for, row_nbytes
from fdql.replay.sum_tree import NotEnoughData, PriorityError
from fdql.shm.chunk import RowShape
from oracles import BOUNDARY, RESET, TERMINATED, TRUNCATED, Row


@pytest.mark.parametrize("shape", [VECTOR, DISCRETE])
def test_a_batch_by_hand(shape):
    """One sampleable row: discount .9, rewards 0, 1, 2, n = 3."""
    memory = make(shape=shape, batch_size=4)
    assert memory.ingest(chunk_of(numbered(4), shape), 4, 2, lanes_of_worker=2) == 4
    assert (memory.steps, memory.size) == (4, 1)
    out = Batch.allocate(4, shape)
    memory.sample(out)
    lane_rows = memory.capacity // 4
    assert out.leaf.tolist() == [2 * lane_rows] * 4
    assert out.serial.tolist() == [0] * 4
    assert out.obs.tolist() == [[0, 0, 0]] * 4
    assert out.next_obs.tolist() == [[3, 3, 3]] * 4
    assert out.action.tolist() == ([0] * 4 if shape.discrete else [[0, 0]] * 4)
    assert out.reward == pytest.approx([0 + 0.9 * 1 + 0.81 * 2] * 4)
    assert out.discount == pytest.approx([0.729] * 4)
    assert out.version.tolist() == [0] * 4
    assert out.obs_mean == pytest.approx([1.5] * 3, rel=1e-3)
    # sums 0, 1, 2.9, 5.61: deviation 2.132
    assert out.reward_scale[0] == pytest.approx(np.std([0, 1, 2.9, 5.61]))
    kinds = {f: getattr(out, f).dtype for f in Batch.__dataclass_fields__}
    assert kinds == {
        "obs": np.float32, "action": np.int32 if shape.discrete else np.float32,
        "reward": np.float32, "discount": np.float32, "next_obs": np.float32, "leaf": np.int64,
        "serial": np.int64, "priority": np.float64, "version": np.uint32, "obs_mean": np.float32,
        "obs_scale": np.float32, "reward_scale": np.float32, "action_words": np.int32,
    }  # fmt: skip


def test_the_final_observation_is_used_and_never_the_reset_one():
    memory = make(batch_size=64)
    flags = {1: TRUNCATED, 2: BOUNDARY, 3: RESET, 4: TERMINATED, 5: BOUNDARY, 6: RESET}
    memory.ingest(chunk_of(numbered(7, flags)), 7, 0, lanes_of_worker=1)
    out = Batch.allocate(64, VECTOR)
    memory.sample(out)
    assert set(out.leaf.tolist()) == {0, 1, 3, 4}
    for leaf, after, discount in zip(out.leaf, out.next_obs[:, 0], out.discount, strict=True):
        assert after == {0: 2, 1: 2, 3: 5, 4: 5}[leaf]
        assert discount == pytest.approx({0: 0.81, 1: 0.9, 3: 0, 4: 0}[leaf])


def test_nothing_to_sample_yet():
    memory = make()
    out = Batch.allocate(32, VECTOR)
    with pytest.raises(NotEnoughData):
        memory.sample(out)
    memory.ingest(chunk_of(numbered(3)), 3, 0, lanes_of_worker=1)
    with pytest.raises(NotEnoughData):
        memory.sample(out)
    memory.ingest(chunk_of(numbered(1)), 1, 0, lanes_of_worker=1)
    memory.sample(out)


def test_stale_priorities_are_dropped():
    # 64 lanes: 16 rows each. Drawn, then overwritten by 16 newer rows: nothing may be written.
    memory = make(n_lanes=64, batch_size=8)
    memory.ingest(chunk_of(numbered(8)), 8, 0, lanes_of_worker=1)
    out = Batch.allocate(8, VECTOR)
    memory.sample(out)
    memory.ingest(chunk_of(numbered(16)), 16, 0, lanes_of_worker=1)
    before = memory.tree.tree.copy()
    assert memory.update_priorities(out.leaf, out.serial, np.full(8, 9.0)) == 0
    assert memory.stale == 8
    assert np.array_equal(memory.tree.tree, before)
    memory.sample(out)
    assert memory.update_priorities(out.leaf, out.serial, np.full(8, 9.0)) == 8
    assert memory.stale == 8
    memory.check_valid()


def test_rows_that_cannot_be_sampled_take_no_priority():
    # 5 waits for its window, 4 is a BOUNDARY row, 6 was never written (its serial would be -250)
    memory = make(n_lanes=4)
    flags = {3: TERMINATED, 4: BOUNDARY}
    memory.ingest(chunk_of(numbered(6, flags)), 6, 0, lanes_of_worker=1)
    leaf, serial = np.array([5, 4, 6]), np.array([5, 4, 6 - 256])
    assert memory.update_priorities(leaf, serial, np.full(3, 2.0)) == 0
    assert memory.stale == 3
    memory.check_valid()


def test_a_row_drawn_twice_keeps_its_last_priority():
    memory = make(batch_size=3)
    memory.ingest(chunk_of(numbered(4)), 4, 0, lanes_of_worker=1)
    out = Batch.allocate(3, VECTOR)
    memory.sample(out)
    assert memory.update_priorities(out.leaf, out.serial, np.array([3.0, 5.0, 2.0])) == 3
    assert memory.tree.leaves[0] == memory.tree.total == 2.0


def test_new_rows_get_the_running_mean_priority():
    # 1 + .01 (11 - 1) = 1.1, then 1.1 + .01 (.5 - 1.1) = 1.094, and never below 1
    memory = make(batch_size=2)
    memory.ingest(chunk_of(numbered(4)), 4, 0, lanes_of_worker=1)
    leaf, serial = np.zeros(2, np.int64), np.zeros(2, np.int64)
    memory.update_priorities(leaf, serial, np.array([10.0, 12.0]))
    assert memory.new_priority == pytest.approx(1.1)
    memory.update_priorities(leaf, serial, np.array([0.5, 0.5]))
    assert memory.new_priority == pytest.approx(1.094)
    memory.ingest(chunk_of(numbered(1)), 1, 0, lanes_of_worker=1)
    assert memory.tree.leaves[:2] == pytest.approx([0.5, 1.094])
    for _ in range(200):
        memory.update_priorities(leaf, serial, np.array([0.5, 0.5]))
    assert memory.new_priority == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_refused_priorities_change_nothing(bad):
    memory = make(batch_size=2)
    memory.ingest(chunk_of(numbered(6)), 6, 0, lanes_of_worker=1)
    before = memory.tree.tree.copy()
    with pytest.raises(PriorityError, match="priority"):
        memory.update_priorities(
            np.array([0, 1]), np.array([0, 1]), np.array([2.0, bad], dtype=np.float64)
        )
    with pytest.raises(IndexError):
        memory.update_priorities(np.array([0, 9999]), np.array([0, 1]), np.ones(2))
    with pytest.raises(ValueError, match="2 leaves and 1 serials"):
        memory.update_priorities(np.array([0, 1]), np.array([0]), np.ones(2))
    assert memory.update_priorities(np.zeros(0, np.int64), np.zeros(0, np.int64), np.ones(0)) == 0
    assert np.array_equal(memory.tree.tree, before)
    assert (memory.new_priority, memory.stale) == (1.0, 0)


def test_refused_chunks_change_nothing():
    memory = make()
    rows = chunk_of(numbered(4, lane=1))
    wrong = ((5, 0, 2), (-1, 0, 2), (4, 3, 2), (4, -1, 2), (4, 0, 1), (4, 0, 0))
    for n_rows, first_lane, lanes_of_worker in wrong:
        with pytest.raises(ValueError, match=r"lane|rows"):
            memory.ingest(rows, n_rows, first_lane, lanes_of_worker=lanes_of_worker)
    with pytest.raises(ValueError, match=r"lanes 0\.\.4: this replay has 4"):
        memory.close_lanes(0, 5)
    with pytest.raises(ValueError, match="a batch of 31: this replay draws 32 rows"):
        memory.sample(Batch.allocate(31, VECTOR))
    assert memory.steps == 0
    assert not memory.rows.table.any()


def test_the_reward_scale_is_looked_at_often_at_first_then_now_and_then():
    memory = make(capacity=8192, n_lanes=1)
    memory.ingest(chunk_of([(0, Row((0, 0, 0), reward=10.0))]), 1, 0, lanes_of_worker=1)
    assert memory.reward_scale == pytest.approx(10 / 4.5)  # at the first step: one sum of 10
    many = chunk_of([(0, Row((0, 0, 0), reward=100.0))] * 100)
    for _ in range(10):
        memory.ingest(many, 100, 0, lanes_of_worker=1)
    # A warm-up's updates come when it ends: the scale is that of nearly all of it by then.
    assert memory.reward_scale == pytest.approx(1000 / 4.5, rel=0.01)  # sums near 100 / .1
    assert 1001 < memory.rescale_at <= 1001 * 9 / 8
    more = chunk_of([(0, Row((0, 0, 0), reward=200.0))] * 100)
    for _ in range(100):
        memory.ingest(many, 100, 0, lanes_of_worker=1)
    looks = set()
    for _ in range(20):
        memory.ingest(more, 100, 0, lanes_of_worker=1)
        looks.add(memory.rescale_at)
    assert len(looks) <= 3  # at most one look every 1000 steps


def test_a_successor_starts_new_episodes():
    memory = make(batch_size=16)
    memory.ingest(chunk_of(numbered(3)), 3, 0, lanes_of_worker=1)
    memory.ingest(chunk_of(numbered(3)), 3, 0, new_incarnation=True, lanes_of_worker=1)
    memory.check_valid()
    # row 2 became the boundary of rows 0 and 1; no row says RESET: 0, 1, 2.9, 2.61, 3.349, 5.0141
    assert np.flatnonzero(memory.tree.leaves).tolist() == [0, 1]
    assert memory.statistics.running[0].tolist() == pytest.approx([5.0141, 5.0141])
    memory.close_lanes(0, 1)
    assert np.flatnonzero(memory.tree.leaves).tolist() == [0, 1, 3, 4]
    memory.check_valid()


def test_too_many_lanes_for_the_capacity():
    with pytest.raises(ConfigError, match=r"replay.capacity = 1024: 1024 environments get 8 rows"):
        make(n_lanes=1024, n_step=7)
    assert make(n_lanes=1024, n_step=6).capacity == 8192


@pytest.mark.parametrize(("n_lanes", "capacity"), [(1, 1024), (7, 1024), (64, 4096), (3, 100_000)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_announced_size_is_the_real_one(n_lanes, capacity, shape):
    memory = make(n_lanes=n_lanes, capacity=capacity, shape=shape)
    assert memory.nbytes == nbytes_for(capacity, n_lanes, shape)
    assert capacity <= memory.capacity <= capacity + 8 * n_lanes
    # lanes of whole nodes: 8 more rows per lane at most; sums a seventh of the leaves
    assert memory.nbytes <= (capacity + 8 * n_lanes) * row_nbytes(shape) + 4096


def discrete(obs_dim, **kind) -> RowShape:
    return RowShape(obs_dim=obs_dim, action_dim=4, discrete=True, **kind)


def test_the_default_capacity():
    assert default_capacity(discrete(4)) == 1_000_000
    # an observation of 28,224 floats: 2 GiB hold 19,018 rows of 112,919 bytes
    assert default_capacity(discrete(28_224)) == (2 << 30) // (4 * 28_224 + 4 + 9 + 10)
    assert default_capacity(discrete(10**7)) == 1024


def test_the_size_of_images():
    # 84 x 84 bytes, whatever the stack, for each frame is stored once; 2 GiB hold 303,359 of them
    frames = discrete(84 * 84, pixels=True, stack=4)
    assert row_nbytes(frames) == 7056 + 4 + 9 + 10
    assert default_capacity(frames) == (2 << 30) // 7079 == 303_359
