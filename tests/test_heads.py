"""The update's formulas against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from fdql.config import SacConfig
from fdql.sac import heads
from fdql.sac.learner import target_entropy
from fdql.sac.nets import NetSpec
from hypothesis import given
from hypothesis import strategies as st

CENTRES = heads.bin_centres(101, 5.0, torch.float64)
EDGES = heads.bin_edges(101, 5.0, torch.float64)
SIGMA = 0.075


def f64(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_bins_are_a_tenth_apart():
    assert heads.bin_width(101, 5.0) == pytest.approx(0.1)
    assert CENTRES[[0, 50, 100]].tolist() == pytest.approx([-5, 0, 5])
    assert EDGES[[0, 101]].tolist() == pytest.approx([-5.05, 5.05])


def test_hl_gauss_at_a_centre():
    # bin 50 spans -.05..05 = +-2/3 sigma: 2 Phi(2/3) - 1 = .49501; the next to 2 sigma: .22974
    p = heads.hl_gauss_target(f64(0.0), EDGES, SIGMA)[0]
    assert p[48:53].tolist() == pytest.approx(
        [0.02232, 0.22974, 0.49501, 0.22974, 0.02232], abs=1e-5
    )
    assert p.sum().item() == pytest.approx(1)
    assert (p @ CENTRES).item() == pytest.approx(0, abs=1e-12)


def test_hl_gauss_between_two_centres():
    # both bins reach from the mean to 4/3 sigma: Phi(4/3) - 1/2 = .40879 each
    p = heads.hl_gauss_target(f64(0.05), EDGES, SIGMA)[0]
    assert p[[50, 51]].tolist() == pytest.approx([0.40878, 0.40878], abs=1e-5)
    assert (p @ CENTRES).item() == pytest.approx(0.05)


def test_hl_gauss_at_the_end_is_renormalised():
    # value 5: bin 100 holds +-2/3 sigma, .49501, of the .74751 that lie below the last edge
    p = heads.hl_gauss_target(f64(5.0), EDGES, SIGMA)[0]
    assert p[100].item() == pytest.approx(0.49501 / 0.74751, abs=1e-5)
    assert p.sum().item() == pytest.approx(1)


@given(st.floats(-4.7, 4.7))
def test_hl_gauss_keeps_its_mean(value):
    p = heads.hl_gauss_target(f64(value), EDGES, SIGMA)[0]
    assert (p >= 0).all()
    assert p.sum().item() == pytest.approx(1)
    assert (p @ CENTRES).item() == pytest.approx(value, abs=1e-3)


def test_expected_value():
    # equal logits: the mean of symmetric bins; a single high one: its centre
    assert heads.expected_value(torch.zeros(101, dtype=torch.float64), CENTRES).item() == (
        pytest.approx(0, abs=1e-12)
    )
    peak = torch.full((101,), -1e3, dtype=torch.float64)
    peak[73] = 0.0
    assert heads.expected_value(peak, CENTRES).item() == pytest.approx(2.3)


def test_cross_entropy():
    # uniform prediction over 4 bins costs ln 4 whatever the target, for each of two critics
    target = torch.softmax(f64([[1, 2, 3, 4], [0, 0, 0, 5]])[0], -1)
    loss = heads.cross_entropy(torch.zeros(2, 2, 4, dtype=torch.float64), target)
    assert loss.item() == pytest.approx(2 * math.log(4))
    # a certain target costs -ln of the probability it was given: 1/4, then 1/2
    certain = f64([[1, 0]])[0]
    logits = torch.log(f64([[[0.25, 0.75]], [[0.5, 0.5]]])[0])
    assert heads.cross_entropy(logits, certain).item() == pytest.approx(math.log(4) + math.log(2))


def test_cross_entropy_has_the_gradient_of_a_softmax():
    # d/dl_j = (softmax(l)_j - p_j) / B
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.softmax(torch.randn(3, 5, dtype=torch.float64), -1)
    (gradient,) = torch.autograd.grad(heads.cross_entropy(logits, target), logits)
    torch.testing.assert_close(gradient, (torch.softmax(logits.detach(), -1) - target) / 3)


def test_bellman_target():
    # n-step sum 1 + .9 * 2 + .81 * 3 = 5.23, V = 10: .729 * 10 more when it goes on: 12.52;
    # cut after two steps by a time limit: 2.8 + .81 * 10; by an end: 2.8 alone
    y = heads.bellman_target(f64(5.23, 2.8, 2.8), f64(0.729, 0.81, 0.0), f64(10, 10, 10))
    assert y.tolist() == pytest.approx([12.52, 10.90, 2.80])


def test_boltzmann():
    # e / (e + 1) = .7311; V = 1 * .7311 + 0 * .2689 without entropy
    q = f64([1.0, 0.0])
    ln_policy = heads.boltzmann_policy(q, 1.0)
    assert ln_policy.exp()[0].tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)
    assert heads.policy_entropy(ln_policy).item() == pytest.approx(0.5822, abs=1e-4)
    assert heads.policy_mean(ln_policy.exp(), q).item() == pytest.approx(0.7311, abs=1e-4)
    # with the entropy it would be ln(e + 1) = 1.3133
    soft = heads.policy_mean(ln_policy.exp(), q) + heads.policy_entropy(ln_policy)
    assert soft.item() == pytest.approx(1.3133, abs=1e-4)


def test_temperature_root_of_two_actions():
    # Q = (.01, 0) at temperature .01 is Q = (1, 0) at 1: entropy .58220
    root = heads.temperature_root(f64([0.01, 0.0]), 0.58220, 1e-5)
    assert root == pytest.approx(math.log(0.01), abs=-math.log(1e-5) / 4096)


def test_temperature_root_stays_in_its_interval():
    step = -math.log(1e-5) / 4096
    q = f64([1.0, 0.0])
    assert heads.temperature_root(q, math.log(2), 1e-5) == pytest.approx(0, abs=step)
    assert heads.temperature_root(q, 0.0, 1e-5) < math.log(0.1)
    even = torch.zeros(3, 2, dtype=torch.float64)  # entropy ln 2 at every temperature
    assert heads.temperature_root(even, 0.2, 1e-5) == pytest.approx(math.log(1e-5), abs=step)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0.05, 1.0))
def test_temperature_root_is_monotone(values, share):
    """More wanted entropy never lowers the temperature, and entropy grows with temperature."""
    q = torch.tensor(values, dtype=torch.float64).view(2, 3)
    goals = [share * math.log(3) * k / 4 for k in range(1, 5)]
    roots = [heads.temperature_root(q, goal, 1e-5) for goal in goals]
    assert roots == sorted(roots)
    grid = [
        heads.policy_entropy(heads.boltzmann_policy(q, t)).mean().item() for t in (0.01, 0.1, 1.0)
    ]
    assert grid[0] <= grid[1] + 1e-12 <= grid[2] + 2e-12


def test_ln_std_range():
    assert heads.ln_std_of(f64(-50, 0, 50)).tolist() == pytest.approx([-10, -4, 2])


def test_squash_correction():
    # standard normal noise 0 at std 1 has density 1/sqrt(2 pi); at u = 2 the correction is -2.65
    zero = f64([0.0])
    plain = -0.5 * math.log(2 * math.pi)
    assert heads.squashed_normal_ln_density(zero, zero, zero).item() == pytest.approx(plain)
    at_two = heads.squashed_normal_ln_density(f64([2.0]), zero, zero).item()
    assert at_two - plain == pytest.approx(2.65, abs=1e-3)


def test_squashed_density_integrates_to_one():
    mean, std = 0.4, 0.7
    u = torch.linspace(-8, 8, 20001, dtype=torch.float64)[:, None]
    ln_density = heads.squashed_normal_ln_density(
        u, (u - mean) / std, torch.full_like(u, math.log(std))
    )
    assert torch.trapezoid(ln_density.exp(), torch.tanh(u[:, 0])).item() == pytest.approx(
        1, abs=1e-4
    )


def test_squashed_density_is_finite_where_tanh_is_one():
    # tanh(30) rounds to 1 and ln(1 - 1) would be -inf; ln(1 - tanh(u)^2) -> ln 4 - 2u
    zero = f64([0.0])
    got = heads.squashed_normal_ln_density(f64([30.0]), zero, zero).item()
    assert got == pytest.approx(-0.5 * math.log(2 * math.pi) - (math.log(4) - 60))


def test_actor_loss():
    # temperature .5: (.5 * 2 - (1 + 3) / 2 + .5 * -4 - (0 + 2) / 2) / 2 = (-1 - 3) / 2
    q = f64([1.0, 0.0], [3.0, 2.0])
    assert heads.actor_loss(f64(2.0, -4.0), q, 0.5).item() == pytest.approx(-2)


def test_lap_priority():
    # errors of .5, 2 and 8 bins of .1: 1, 2^.4, 8^.4; the sign does not matter
    p = heads.lap_priority(f64(0.05, -0.2, 0.8), 0.1, 0.4)
    assert p.tolist() == pytest.approx([1, 1.3195, 2.2974], abs=1e-4)
    assert (p / p.sum()).tolist() == pytest.approx([0.2166, 0.2858, 0.4976], abs=1e-4)
    assert heads.lap_priority(f64(0.05, 0.8), 0.1, 0.0).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("actions", "nats"),
    [(2, 0.199), (3, 0.291), (4, 0.349), (6, 0.421), (9, 0.485), (18, 0.580)],
)
def test_discrete_target_entropy(actions, nats):
    # two actions: chances .95 and .05: .0487 + .1498
    spec = NetSpec(obs_dim=1, action_dim=actions, discrete=True)
    assert target_entropy(spec, SacConfig()) == pytest.approx(nats, abs=5e-4)


def test_discrete_target_entropy_of_one_action():
    assert target_entropy(NetSpec(obs_dim=1, action_dim=1, discrete=True), SacConfig()) == 0


def test_continuous_target_entropy():
    # ln(.15 sqrt(2 pi e)) = ln .15 + 1.4189 = -.4782 per component; -1 would be a deviation of .089
    spec = NetSpec(obs_dim=1, action_dim=3, discrete=False)
    assert target_entropy(spec, SacConfig()) == pytest.approx(3 * -0.4782, abs=1e-3)
    assert target_entropy(spec, SacConfig(target_std=0.089)) == pytest.approx(-3, abs=1e-2)


def test_continuous_target_entropy_falls_in_long_runs():
    # a deviation of .15 until update 25,000, of .15 / 2 at four times that
    spec = NetSpec(obs_dim=1, action_dim=3, discrete=False)
    assert target_entropy(spec, SacConfig(), 25_000) == target_entropy(spec, SacConfig())
    later = target_entropy(spec, SacConfig(target_std=0.3), 100_000)
    assert later == pytest.approx(target_entropy(spec, SacConfig()))


def test_observations_are_clipped():
    x = heads.normalised_obs(f64([3.0, -90.0]), f64(1.0, 0.0), f64(0.5, 1.0))
    assert x.tolist() == [[1.0, -5.0]]
    assert np.isnan(heads.normalised_obs(f64([math.nan]), f64(0.0), f64(1.0)).item())
