"""Learning health: values and dead units against other ways to get them, bias by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fdql.proc.arena import Arena, Evaluation
from fdql.sac import health
from fdql.sac.nets import policy_shapes, size_of, views
from fdql.sac.policy import Policy
from fdql.sac.update import TorchLearner
from learners import batch, both_actions, scattered, tiny
from plans import small_plan


def policy_of(discrete):
    """A policy with parameters at random, and a batch."""
    spec, config = tiny(discrete)
    learner = scattered(TorchLearner, spec, config)
    b = batch(spec)
    flat = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
    learner.snapshot(flat, b[5], b[6], b[7])
    return spec, flat, b


def test_values_of_discrete_actions_are_those_that_acting_sees():
    spec, flat, b = policy_of(True)
    policy = Policy(spec, flat)
    q = policy.q_values(b[0])
    np.testing.assert_allclose(
        policy.action_values(b[0], b[1]), q[np.arange(len(q)), b[1]], atol=1e-5
    )


def test_values_of_continuous_actions_are_those_that_learning_sees():
    spec, flat, b = policy_of(False)
    import torch
    from fdql.sac import heads
    from fdql.sac.forward import critic_outputs

    named = {k: torch.from_numpy(v) for k, v in views(flat, policy_shapes(spec)).items()}
    x = heads.normalised_obs(torch.from_numpy(b[0]), named["obs_mean"], named["obs_scale"])
    logits = critic_outputs(named, torch.cat([x, torch.from_numpy(b[1])], 1))
    q = heads.expected_value(logits, heads.bin_centres(spec.bins, spec.v_max)).mean(0).numpy()
    np.testing.assert_allclose(Policy(spec, flat).action_values(b[0], b[1]), q, atol=1e-5)


@both_actions
def test_dead_units_are_counted(discrete):
    spec, flat, b = policy_of(discrete)
    named = views(flat, policy_shapes(spec))
    for name in ("critic.g0", "critic.g1"):
        named[name][:] = 1.0
    for name in ("critic.h0", "critic.h1"):
        named[name][:] = 100.0  # always above 0
    policy = Policy(spec, flat)
    assert policy.dead_share(b[0], b[1]) == 0.0
    named["critic.h0"][1, :2] = -100.0  # two of 8 units, in one of two layers of one of two critics
    policy.load(flat)
    assert policy.dead_share(b[0], b[1]) == pytest.approx(2 / 32)


def test_the_bias_of_values_by_hand():
    values = np.array([2.0, 1.0], dtype=np.float32)
    e = Evaluation(np.zeros(2), np.ones(2, dtype=np.int64), np.array([4.0, 8.0]), values)
    assert e.q_bias(4.0) == pytest.approx((1.0 - 1.0) / 2)
    assert e.q_bias(8.0) == pytest.approx((1.5 + 0.0) / 2)


def test_an_evaluation_sums_rewards_as_the_learner_does(tmp_path):
    """own_envs:Counting pays 1, 2, 3, ...; cut after 3 steps, discount 0.5; Q of the first step."""

    class Judge:
        asked = 0

        def greedy(self, rows, actions):
            actions[:] = 0

        def action_values(self, rows, actions):
            self.asked += len(rows)
            assert not rows[:, 1].any()  # the step within the episode
            return np.full(len(rows), 5.0, dtype=np.float32)

    arena = Arena(small_plan("own_envs:Counting", tmp_path).env, list(range(40)), 3, 0.5)
    judge = Judge()
    result = arena.play(judge, lambda: True)
    arena.close()
    assert judge.asked == 40
    assert result.discounted.tolist() == [1 + 2 / 2 + 3 / 4] * 40
    assert result.q_bias(1.0) == pytest.approx(5 - 2.75)


def test_a_critic_that_promises_nothing_has_no_bias_where_nothing_comes():
    spec, _ = tiny(True)
    zero = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
    network = views(zero, policy_shapes(spec))
    x, action = np.ones((4, 3), np.float32), np.zeros(4, np.int32)
    np.testing.assert_allclose(health.action_values(spec, network, x, action), 0, atol=1e-6)
    assert health.dead_share(spec, network, x, action) == 1.0


def test_the_age_and_the_spread_of_a_batch_by_hand():
    # ages 20 and 10, the warm-up's two left out; 4 over the mean of 1, 1, 2, 4
    version = np.array([0, 0, 10, 20], dtype=np.uint32)
    found = health.data_health(version, np.array([1.0, 1.0, 2.0, 4.0]), 30)
    assert found == {"data_age": 15.0, "priority_spread": 2.0}
    assert health.data_health(version * 0, np.ones(4), 30) == {"priority_spread": 1.0}


@pytest.mark.parametrize(("batch", "seen"), [(256, 64), (64, 64), (100, 100), (1, 1)])
def test_rows_that_are_looked_at_lie_evenly(batch, seen):
    rows = np.arange(batch)[health.some_rows(batch)]
    assert len(rows) == seen
    assert len(set(np.diff(rows))) <= 1


@pytest.mark.parametrize(("reward", "q", "bias"), [(1.0, 10.0, 3.487), (-1.0, -10.0, -3.487)])
def test_a_cut_counts_as_if_nothing_came_after(reward, q, bias):
    """Ten rewards of 1 at discount 0.9 are 6.513; the critic, which sees no cut, says 10."""
    discounted = np.array([reward * sum(0.9**k for k in range(10))])
    e = Evaluation(np.zeros(1), np.ones(1, dtype=np.int64), discounted, np.array([q], np.float32))
    assert e.q_bias(1.0) == pytest.approx(bias, abs=1e-3)
