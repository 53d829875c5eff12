"""The TQC head: formulas by hand, in torch and in kernels, and its gradient against autograd."""

import math

import numpy as np
import pytest
import torch
from fdql.config import Config, ConfigError, SacConfig
from fdql.sac import heads
from fdql.sac import kernels_quantiles as kernels
from fdql.sac.nets import NetSpec, output_support, policy_shapes, size_of
from fdql.sac.policy import Policy
from learners import both_actions, every_learner, scattered, tiny
from plans import small_config


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_levels_are_the_middles_of_equal_shares():
    spec = NetSpec(obs_dim=1, action_dim=1, discrete=True, head="tqc", bins=5)
    np.testing.assert_allclose(output_support(spec), [0.1, 0.3, 0.5, 0.7, 0.9], rtol=1e-6)


def test_the_highest_of_both_critics_together_are_left_out():
    # 0 2 9 and 1 3 4 without the two highest: 0 1 2 3, whichever critic they are from
    both = torch.tensor([[[9.0, 0.0, 2.0]], [[1.0, 4.0, 3.0]]])
    assert heads.truncated_quantiles(both, 2).tolist() == [[0, 1, 2, 3]]
    rows = both.numpy().copy()
    for critic in rows:
        kernels.sort_rows(critic)
    assert rows.tolist() == [[[0, 2, 9]], [[1, 3, 4]]]
    z = np.full((1, 4), np.nan, dtype=np.float32)
    kernels.pooled_quantiles(np.ones((1, 1), np.float32), rows, z)
    assert z.tolist() == [[0, 1, 2, 3]]


def test_quantiles_of_a_policy_are_its_mean_quantile_by_quantile():
    # action 0 keeps 0 1 of (0 2, 1 3), action 1 keeps 4 5 of (4 6, 5 7): .25 (0 1) + .75 (4 5)
    both = f32(0, 2, 4, 6, 1, 3, 5, 7).reshape(2, 1, 4)
    z = np.zeros((1, 2), np.float32)
    kernels.pooled_quantiles(f32(0.25, 0.75).reshape(1, 2), both, z)
    assert z.tolist() == [[3, 4]]


def test_loss_and_gradient_by_hand():
    """Two quantiles at 0, levels 1/4 and 3/4, target 1 and -2, threshold 1: H(1) = 1/2, H(2) = 3/2.

    Quantile 0: (1/4 1/2 + 3/4 3/2) / 2 = .625, slope -(1/4 - 3/4) / 2; the other .375, -.25.
    """
    x, levels, z = torch.zeros(2, 1, 2), torch.tensor([0.25, 0.75]), torch.tensor([[1.0, -2.0]])
    assert heads.quantile_huber(x, levels, z, 1.0).item() == pytest.approx(2 * (0.625 + 0.375))
    ours, q = np.zeros((1, 2), np.float32), f32(9)
    loss = kernels.quantile_huber_gradient(ours, levels.numpy(), z.numpy(), 1.0, q)
    assert loss == pytest.approx(1.0)
    np.testing.assert_allclose(ours, [[0.25, -0.25]], rtol=1e-6)
    assert q[0] == 0


@pytest.mark.parametrize("threshold", [0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 5, 8), (40, 25, 46)], ids=str)
def test_loss_and_gradient_equal_autograd(shape, threshold):
    rows, count, kept = shape
    rng = np.random.default_rng(3)
    x, z = (rng.normal(0, 0.5, s).astype(np.float32) for s in ((rows, count), (rows, kept)))
    levels = ((np.arange(count) + 0.5) / count).astype(np.float32)
    exact = torch.from_numpy(x.copy()).double().requires_grad_()
    target = torch.from_numpy(z).double()
    loss = heads.quantile_huber(exact[None], torch.from_numpy(levels).double(), target, threshold)
    (gradient,) = torch.autograd.grad(loss, exact)
    ours, q = x.copy(), np.zeros(rows, np.float32)
    got = kernels.quantile_huber_gradient(ours, levels, z, threshold, q)
    assert got == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(q, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(ours, gradient, atol=1e-6 * float(gradient.abs().max()) + 1e-7)


def test_quantiles_settle_at_the_quantiles_of_the_target():
    """Returns 0 and 1, equally likely, a narrow threshold: three levels below 1/2, three above."""
    levels = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
    x, z = np.full((1, 6), 0.5, np.float32), f32(0, 1).reshape(1, 2)
    for _ in range(2000):
        step, q = x.copy(), f32(0)
        kernels.quantile_huber_gradient(step, levels.numpy(), z, 0.01, q)
        x -= np.float32(0.01) * step
    np.testing.assert_allclose(x[0], [0, 0, 0, 1, 1, 1], atol=0.02)


def test_a_nan_is_not_lost():
    """min and max that drop a NaN would hide it from the check of the gradient."""
    for x, z in ((f32(0, math.nan), f32(1, 2)), (f32(0, 1), f32(math.nan, 2))):
        step, q = x.reshape(1, 2), f32(0)
        kernels.quantile_huber_gradient(step, f32(0.25, 0.75), z.reshape(1, 2), 1.0, q)
        assert np.isnan(step).any()


@every_learner
@both_actions
def test_more_dropped_is_more_pessimistic(make, discrete):
    """The critics' mean target falls with the number of quantiles left out."""
    errors = []
    for dropped in (0, 2, 4):
        spec, config = tiny(discrete, head="tqc", quantiles=5, quantiles_dropped=dropped)
        learner = scattered(make, spec, config, seed=1)
        n = 16
        obs = np.random.default_rng(0).standard_normal((n, 3), dtype=np.float32)
        action = np.zeros(n, np.int32) if discrete else np.zeros((n, 2), np.float32)
        low, one = np.zeros(3, np.float32), np.ones(3, np.float32)
        nothing, g = np.zeros(n, np.float32), np.full(n, 0.9, np.float32)
        before = learner.params.copy()
        learner.update(obs, action, nothing - 50, g, obs, low, one, one[:1], np.zeros(n))
        errors.append(learner.metrics()["td_error"])  # targets are all far below: y - Q = -error
        assert np.isfinite(learner.params).all()
        assert (learner.params != before).any()
    assert errors == sorted(errors)
    assert errors[0] < errors[2] - 0.1


def test_settings_that_cannot_work():
    for make, says in (
        (lambda: SacConfig(quantiles=4, quantiles_dropped=4), "sac.quantiles_dropped = 4"),
        (lambda: SacConfig(head="tqc", pessimism=1.0), "sac.quantiles_dropped takes its place"),
        (lambda: SacConfig(quantile_huber=0.0), "sac.quantile_huber = 0.0"),
        (lambda: SacConfig(quantiles=0), "sac.quantiles = 0"),
        (lambda: SacConfig(entropy_backup=1.5), "sac.entropy_backup = 1.5"),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert says in str(caught.value)


@both_actions
def test_values_of_a_policy_are_the_mean_of_its_quantiles(discrete):
    spec, _ = tiny(discrete, head="tqc", quantiles=5)
    flat = np.zeros(size_of(policy_shapes(spec)), np.float32)
    flat[-10 if not discrete else -20 :] = np.tile(f32(1, 2, 3, 4, 10), 2 if not discrete else 4)
    policy, obs = Policy(spec, flat), np.zeros((3, 3), np.float32)
    action = np.zeros(3, np.int32) if discrete else np.zeros((3, 2), np.float32)
    np.testing.assert_allclose(policy.action_values(obs, action), 4.0)
    if discrete:
        np.testing.assert_allclose(policy.q_values(obs), 4.0)


def test_a_run_and_what_it_leaves(own_environments, tmp_path):
    from fdql import evaluate, load, train

    sac = SacConfig(critic_width=16, actor_width=16, batch_size=32, head="tqc", quantiles=7)
    config: Config = small_config(
        "own_envs:Counting", total_timesteps=400, serial=True, run_dir=str(tmp_path / "r"), sac=sac
    )
    train(config, quiet=True)
    policy = load(tmp_path / "r")
    assert (policy.network.spec.head, policy.network.spec.bins) == ("tqc", 7)
    assert math.isfinite(evaluate(policy, "own_envs:Counting", episodes=2).mean)
