"""Running scales of observations and rewards: numbers by hand, then two-pass sums."""

from __future__ import annotations

import numpy as np
import pytest
from fdql.replay.statistics import Statistics
from fdql.shm.chunk import ChunkSchema, ChunkViews, RowShape
from oracles import BOUNDARY, RESET, TERMINATED, TRUNCATED


def shape_of(obs_dim: int, pixels: bool = False) -> RowShape:
    return RowShape(obs_dim=obs_dim, action_dim=1, discrete=True, pixels=pixels)


def chunk_of(rewards, obs=None, *, lanes=None, flags=None, pixels=False) -> tuple[ChunkViews, int]:
    n = len(rewards)
    obs = np.zeros((n, 2)) if obs is None else np.asarray(obs)
    schema = ChunkSchema(n, shape_of(obs.shape[1], pixels))
    views = schema.views(bytearray(schema.nbytes))
    views.reward[:] = rewards
    views.obs[:] = obs
    views.lane[:] = 0 if lanes is None else lanes
    views.flags[:] = 0 if flags is None else flags
    return views, n


def fresh(discount=0.9, v_max=5.0, n_lanes=4, obs_dim=2, pixels=False) -> Statistics:
    shape = shape_of(obs_dim, pixels)
    return Statistics(n_lanes=n_lanes, shape=shape, discount=discount, v_max=v_max)


def test_reward_scale_by_hand():
    # sums 1, 1.9, 2.71: deviation .698, largest / 4.5 .602; scale .698, a reward of 1 becomes 1.432
    statistics = fresh()
    statistics.observe(*chunk_of([1, 1, 1]), 0)
    statistics.rescale()
    assert statistics.reward_scale == pytest.approx(0.698, abs=5e-4)
    assert 1 / statistics.reward_scale == pytest.approx(1.432, abs=5e-4)


def test_largest_sum_decides_when_the_sums_hardly_vary():
    # one reward of 20: deviation 0, 20 / (0.9 * 5)
    statistics = fresh()
    statistics.observe(*chunk_of([-20]), 0)
    statistics.rescale()
    assert statistics.reward_scale == pytest.approx(4.444, abs=1e-3)


def test_rewards_of_zero_give_the_smallest_scale():
    statistics = fresh()
    statistics.rescale()
    assert statistics.reward_scale == 1e-8
    statistics.observe(*chunk_of([0, 0]), 0)
    statistics.rescale()
    assert statistics.reward_scale == 1e-8


@pytest.mark.parametrize(
    "flags",
    [
        [0, TERMINATED, BOUNDARY, RESET, 0],
        [0, TRUNCATED, BOUNDARY, RESET, 0],
        [0, 0, BOUNDARY, 0, 0],  # RESET forgotten
        [0, TERMINATED, BOUNDARY | 0, 0, 0],
    ],
)
def test_sums_start_again_with_the_episode(flags):
    # rewards 1, 1 | not read | 1, 1: sums 1, 1.9, 1, 1.9: mean 1.45, deviation .45, largest 1.9;
    # but past a time limit 1, 1.9, 2.71, 3.439
    statistics = fresh(v_max=100)
    statistics.observe(*chunk_of([1, 1, 1e30, 1, 1], flags=flags), 0)
    largest = 1.9 if TERMINATED in flags else 3.439
    assert statistics.sums.tolist() == pytest.approx([4, 1.45, 4 * 0.45**2, largest])
    assert statistics.running[0].tolist() == pytest.approx([1.9, largest])


def test_sums_start_again_although_the_boundary_row_is_missing():
    for flags in ([0, 0, RESET, 0], [0, TERMINATED, 0, 0], [0, TRUNCATED, RESET, 0]):
        statistics = fresh()
        statistics.observe(*chunk_of([1, 1, 1, 1], flags=flags), 0)
        assert statistics.sums[1] == pytest.approx(1.45)


@pytest.mark.parametrize("limit", [10, 50, 200])
def test_values_of_short_episodes_fit_the_scale(limit):
    """A reward of 1 for ever, cut every `limit` steps, is worth 1 / (1 - discount) all the same."""
    statistics = fresh(discount=0.99)
    flags = [RESET, *[0] * (limit - 2), TRUNCATED, BOUNDARY] * (2000 // limit)
    statistics.observe(*chunk_of(np.ones(len(flags)), flags=flags), 0)
    statistics.rescale()
    assert 3.5 < 100 / statistics.reward_scale <= 4.5 + 1e-6


def test_the_scale_of_cartpole_as_it_learns():
    """Rewards of 1; episodes of 22 steps, as of a random policy, and of 500: the deviation."""
    for steps, expected in ((22, 5.69), (500, 24.46)):
        flags = [RESET, *[0] * (steps - 2), TERMINATED, BOUNDARY] * 8
        statistics = fresh(discount=0.99)
        statistics.observe(*chunk_of(np.ones(len(flags)), flags=flags), 0)
        statistics.rescale()
        assert statistics.reward_scale == pytest.approx(expected, abs=0.01)


def test_every_lane_has_its_own_sum_and_goes_on_in_the_next_chunk():
    # lane 2: 1, then .9 + 3 = 3.9; lane 3: 2, then 1.8 + 4 = 5.8
    statistics = fresh()
    statistics.observe(*chunk_of([1, 2], lanes=[0, 1]), 2)
    statistics.observe(*chunk_of([4, 3], lanes=[1, 0]), 2)
    assert statistics.running[:, 0].tolist() == pytest.approx([0, 0, 3.9, 5.8])


def test_observation_moments_by_hand():
    # 1, 3 and 5, 5 (a boundary row's 1e9 does not count): means 2 and 5, variances 1 and 0
    statistics = fresh()
    statistics.observe(
        *chunk_of([0, 0, 0], [[1, 5], [3, 5], [1e9, 1e9]], flags=[0, 0, BOUNDARY]), 0
    )
    assert statistics.obs_mean.tolist() == pytest.approx([2, 5], rel=1e-3)
    assert statistics.moments[1].tolist() == pytest.approx([1, 0], abs=3e-3)
    assert statistics.obs_scale[0] == pytest.approx(1, rel=1e-3)


def test_before_the_first_step_nothing_is_scaled():
    statistics = fresh()
    statistics.observe(*chunk_of([0], flags=[BOUNDARY]), 0)
    assert statistics.obs_mean.tolist() == [0, 0]
    assert statistics.obs_scale.tolist() == [1, 1]


def test_images_have_reward_sums_and_a_whole_mean():
    # sums 1, 1.9, 2.71 as above; means 127.5 and 1.5, then 85.33 and 1.33 without a boundary row
    statistics = fresh(pixels=True)
    statistics.observe(*chunk_of([1, 1], [[255, 1], [0, 2]], pixels=True), 0)
    assert statistics.obs_mean.tolist() == [128, 2]
    rows = chunk_of([1, 0], [[1, 1], [255, 255]], flags=[0, BOUNDARY], pixels=True)
    statistics.observe(*rows, 0)
    assert statistics.obs_mean.tolist() == [85, 1]
    assert statistics.obs_scale.size == 0
    statistics.rescale()
    assert statistics.reward_scale == pytest.approx(0.698, abs=5e-4)


def test_a_constant_component_has_a_finite_scale():
    statistics = fresh()
    for _ in range(100):
        statistics.observe(*chunk_of([0] * 64, np.full((64, 2), 3.0)), 0)
    assert statistics.obs_mean.tolist() == pytest.approx([3, 3], rel=1e-6)
    assert np.isfinite(statistics.obs_scale).all()
    assert (statistics.obs_scale <= 1e8).all()


def test_chunked_moments_equal_those_of_everything():
    rng = np.random.default_rng(3)
    obs = (rng.normal(size=(5000, 7)) * 10.0 ** np.arange(-3, 4) + 100).astype(np.float32)
    rewards = rng.normal(size=5000).astype(np.float32)
    statistics = fresh(obs_dim=7, discount=0.99)
    start = 0
    while start < 5000:
        n = int(rng.integers(1, 200))
        views, rows = chunk_of(rewards[start : start + n], obs[start : start + n])
        statistics.observe(views, rows, 0)
        start += n
    wide = obs.astype(np.float64)
    prior = 1e-12 * (1 + wide.mean(0) ** 2)  # of weight 1e-12, mean 0, variance 1
    assert statistics.moments[0] == pytest.approx(wide.mean(0), rel=1e-6)
    assert statistics.moments[1] == pytest.approx(wide.var(0) + prior / 5000, rel=1e-6)
    sums, g = [], 0.0
    for r in rewards:
        g = 0.99 * g + float(r)
        sums.append(g)
    statistics.rescale()
    assert statistics.reward_scale == pytest.approx(max(np.std(sums), np.abs(sums).max() / 5))
    assert statistics.obs_mean.dtype == statistics.obs_scale.dtype == np.float32
    floor = 1e-12 * statistics.moments[0] ** 2 + 1e-16
    expected = 1 / np.sqrt(statistics.moments[1] + floor)
    assert statistics.obs_scale == pytest.approx(expected, rel=1e-6)
