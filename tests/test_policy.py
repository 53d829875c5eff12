"""Acting: values and actions against plain numpy, noise against its distribution by hand."""

import math

import numpy as np
import pytest
from fdql.config import ExploreConfig
from fdql.sac import nets
from fdql.sac.kernels_act import hold_steps
from fdql.sac.policy import Explorer, Policy, explorer_mask, hold_distribution


def small_spec(discrete):
    return nets.NetSpec(
        obs_dim=5,
        action_dim=3,
        discrete=discrete,
        critic_width=12,
        actor_width=12,
        bins=11,
        v_max=2.0,
    )


def random_snapshot(spec, seed=0):
    """Every parameter away from its special initial value, so that a mixed-up view shows."""
    shapes = nets.policy_shapes(spec)
    rng = np.random.default_rng(seed)
    flat = rng.normal(0, 0.5, nets.size_of(shapes)).astype(np.float32)
    v = nets.views(flat, shapes)
    v["obs_scale"][:] = rng.uniform(0.5, 2, spec.obs_dim)
    v["temperature"][:] = 0.2
    v["reward_scale"][:] = 3.0
    return flat


def net_forward(v, name, x, pick=...):
    """The network of nets.py in float64, from the named views."""
    p = {k.split(".")[1]: a[pick].astype(np.float64) for k, a in v.items() if k.startswith(name)}
    for layer in "01":
        z = x @ p[f"w{layer}"] + p[f"b{layer}"]
        z = z - z.mean(1, keepdims=True)
        z = z / np.sqrt((z * z).mean(1, keepdims=True) + nets.LAYER_NORM_EPS)
        x = np.maximum(p[f"g{layer}"] * z + p[f"h{layer}"], 0)
    return x @ p["w2"] + p["b2"]


def expected_q(spec, flat, obs):
    v = nets.views(flat, nets.policy_shapes(spec))
    x = np.clip((obs.astype(np.float64) - v["obs_mean"]) * v["obs_scale"], -5, 5)
    support = np.linspace(-spec.v_max, spec.v_max, spec.bins)
    values = []
    for k in range(2):
        logits = net_forward(v, "critic", x, k).reshape(len(x), spec.action_dim, spec.bins)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        values.append((e / e.sum(-1, keepdims=True)) @ support)
    return np.mean(values, axis=0)


def observations(spec, n, seed=1):
    return np.random.default_rng(seed).normal(0, 3, (n, spec.obs_dim)).astype(np.float32)


def empty_actions(spec, n):
    return np.zeros(n, np.int32) if spec.discrete else np.zeros((n, spec.action_dim), np.float32)


@pytest.mark.parametrize(
    "rows", [1, 2, 3, 8, 23, 24, 40]
)  # odd and even, below and above BLAS's share
def test_values_and_distribution_equal_numpy(rows):
    spec = small_spec(True)
    flat, obs = random_snapshot(spec), observations(spec, rows)
    policy, best = Policy(spec, flat), empty_actions(spec, rows)
    q = policy.q_values(obs)
    np.testing.assert_allclose(q, expected_q(spec, flat, obs), rtol=1e-4, atol=1e-5)
    policy.greedy(obs, best)
    assert best.tolist() == q.argmax(1).tolist()

    spec = small_spec(False)
    flat, obs = random_snapshot(spec), observations(spec, rows)
    policy, best = Policy(spec, flat), empty_actions(spec, rows)
    v = nets.views(flat, nets.policy_shapes(spec))
    x = np.clip((obs - v["obs_mean"]) * v["obs_scale"], -5, 5)
    raw = net_forward({k: a for k, a in v.items() if "." in k}, "actor", x)
    mean, std = policy.distribution(obs)
    np.testing.assert_allclose(mean, raw[:, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, np.exp(-10 + 6 * (1 + np.tanh(raw[:, 3:]))), rtol=1e-4)
    policy.greedy(obs, best)
    np.testing.assert_allclose(best, np.tanh(raw[:, :3]), rtol=1e-4, atol=1e-6)


def test_fresh_actor_has_the_initial_deviation():
    spec = nets.NetSpec(obs_dim=3, action_dim=2, discrete=False, actor_width=8, critic_width=8)
    flat = nets.initialise(spec, np.random.default_rng(0))
    head = np.array([0, 0, 0, 1, 1, 1, 0.01, 1], np.float32)
    critics, actor = np.split(flat, [nets.size_of(nets.critic_shapes(spec))])
    policy = Policy(spec, np.concatenate([head, actor, critics]))
    _, std = policy.distribution(np.zeros((4, 3), np.float32))
    np.testing.assert_allclose(std, 0.37, rtol=0.05)
    assert policy.temperature == pytest.approx(0.01)
    assert policy.reward_scale == 1.0


def test_snapshot_is_copied_and_refused_when_it_does_not_fit():
    spec = small_spec(True)
    flat = random_snapshot(spec)
    policy, obs = Policy(spec, flat), observations(spec, 2)
    before = policy.q_values(obs)
    flat[:] = 0
    assert policy.q_values(obs).tolist() == before.tolist()
    policy.load(flat)
    assert np.abs(policy.q_values(obs)).max() < 1e-5  # zero logits: uniform over the support
    with pytest.raises(ValueError, match=r"snapshot is float32 \(3,\)"):
        policy.load(flat[:3])
    with pytest.raises(ValueError, match="continuous"):
        policy.distribution(obs)
    with pytest.raises(ValueError, match="discrete"):
        Policy(small_spec(False), random_snapshot(small_spec(False))).q_values(obs)


def test_hold_distribution_by_hand():
    # k ** -2 for k = 1, 2, 3: 1, 1/4, 1/9, together 49/36: 36/49, 45/49, 1
    cumulative = hold_distribution(2.0, 3)
    np.testing.assert_allclose(cumulative, [36 / 49, 45 / 49, 1])
    assert [hold_steps(cumulative, u) for u in (0.0, 0.73, 0.74, 0.91, 0.92, 0.999)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_boltzmann_frequencies():
    # two actions whose values differ by d: P(first) = 1 / (1 + exp(-d / temperature))
    spec = small_spec(True)
    flat, obs = random_snapshot(spec), observations(spec, 1)
    policy = Policy(spec, flat)
    q = policy.q_values(obs)[0].astype(np.float64)
    p = np.exp(q / policy.temperature)
    p /= p.sum()
    explorer = Explorer(spec, ExploreConfig(), 4, explorer_mask(0.0, 4), seed=0)
    n, rounds = 4, 1500
    counts, out = np.zeros(3), empty_actions(spec, n)
    for _ in range(rounds):
        explorer.act(policy, np.repeat(obs, n, 0), np.arange(n), False, out)
        counts += np.bincount(out, minlength=3)
    deviation = np.sqrt(p * (1 - p) / (n * rounds))
    assert np.all(np.abs(counts / (n * rounds) - p) < 5 * deviation + 1e-9)


def test_tanh_normal_noise_of_explorers_is_held_and_wide_others_may_be_white():
    spec = small_spec(False)
    policy, obs = Policy(spec, random_snapshot(spec)), observations(spec, 1)
    mean, std = policy.distribution(obs)
    config = ExploreConfig(
        explorer_std_factor=0.0, explorer_min_std=0.25, hold_longest=8, policy_hold_longest=1
    )
    explorer = Explorer(spec, config, 2, explorer_mask(0.5, 2), seed=3)
    assert explorer.explorer.tolist() == [True, False]
    rows, out = np.repeat(obs, 2, 0), empty_actions(spec, 2)
    noise = []
    for _ in range(3000):
        explorer.act(policy, rows, np.arange(2), False, out)
        with np.errstate(divide="ignore"):
            noise.append(np.arctanh(out.astype(np.float64)) - mean)
    held, white = np.array(noise).transpose(1, 0, 2)[:, :, np.argmin(np.abs(mean[0]) + std[0])]
    width = std[0, np.argmin(np.abs(mean[0]) + std[0])]
    assert np.isfinite(held).all()
    repeats = np.isclose(held[1:], held[:-1], atol=1e-4).mean()
    # mean hold = sum k**-1 / sum k**-2 over 1..8 = 2.718 / 1.527 = 1.779 steps, all but one repeat
    assert repeats == pytest.approx(1 - 1 / 1.779, abs=0.05)
    starts = held[1:][~np.isclose(held[1:], held[:-1], atol=1e-4)]
    assert starts.std() == pytest.approx(0.25, rel=0.1)
    if np.isfinite(white).all():
        assert white.std() == pytest.approx(width, rel=0.1)
    assert not np.isclose(white[1:], white[:-1], atol=1e-7).any()


def test_continuous_explorers_retire_and_hold_the_noise_of_the_others():
    spec = small_spec(False)
    policy, obs = Policy(spec, random_snapshot(spec)), observations(spec, 1)
    config = ExploreConfig(
        explorer_std_factor=0.0, explorer_min_std=1e-3, explorer_steps=100, policy_hold_longest=4
    )
    explorer = Explorer(spec, config, 1, explorer_mask(1.0, 1), seed=3)
    out = empty_actions(spec, 1)
    mean, std = policy.distribution(obs)
    k = np.argmin(np.abs(mean[0]) + std[0])
    noise = []
    for _ in range(3100):
        explorer.act(policy, obs, np.zeros(1, np.int64), False, out)
        with np.errstate(divide="ignore"):
            noise.append(float(np.arctanh(out.astype(np.float64)[0, k]) - mean[0, k]))
    assert np.abs(noise[:99]).max() < 5e-3  # as wide as an explorer's ...
    later = np.array(noise[100:])
    assert later.std() == pytest.approx(std[0, k], rel=0.15)  # ... then as the policy's
    repeats = np.isclose(later[1:], later[:-1], atol=1e-6).mean()
    # mean hold = sum k**-1 / sum k**-2 over 1..4 = 2.083 / 1.424 = 1.463 steps
    assert repeats == pytest.approx(1 - 1 / 1.463, abs=0.05)


@pytest.mark.parametrize(("std", "wide"), [(0.5, 1.5), (0.2, 1.0)])
def test_an_explorer_is_as_wide_as_its_factor_or_its_least_says(std, wide):
    """Three times the policy's deviation, and at least 1; the mean is 0 everywhere."""
    spec = nets.NetSpec(obs_dim=5, action_dim=2, discrete=False, actor_width=8, critic_width=8)
    flat = np.zeros(nets.size_of(nets.policy_shapes(spec)), dtype=np.float32)
    bias = nets.views(flat, nets.policy_shapes(spec))["actor.b2"]
    bias[2:] = math.atanh((math.log(std) - nets.LOG_STD_MIN) / nets.LOG_STD_HALF - 1)
    policy, obs = Policy(spec, flat), observations(spec, 1)
    assert policy.distribution(obs)[1] == pytest.approx(std, rel=1e-3)
    explorer = Explorer(spec, ExploreConfig(hold_longest=1), 1, explorer_mask(1.0, 1), seed=0)
    out, noise = empty_actions(spec, 1), []
    for _ in range(3000):
        explorer.act(policy, obs, np.zeros(1, np.int64), False, out)
        noise.append(np.arctanh(out.astype(np.float64).clip(-1 + 1e-7, 1 - 1e-7)))
    assert np.std(noise) == pytest.approx(wide, rel=0.05)


def test_a_discrete_explorer_leaves_its_policy_as_often_as_epsilon_says():
    """A certain policy, one explorer of 3 actions: 0.1 * 2 / 3 of its actions are others."""
    spec = nets.NetSpec(obs_dim=5, action_dim=3, discrete=True, critic_width=8)
    flat = np.zeros(nets.size_of(nets.policy_shapes(spec)), dtype=np.float32)
    named = nets.views(flat, nets.policy_shapes(spec))
    named["critic.b2"].reshape(2, 3, spec.bins)[:, 0, -1] = 50.0  # action 0 is worth 5, others 0
    named["temperature"][:] = 0.01
    policy, obs = Policy(spec, flat), observations(spec, 1)
    explorer = Explorer(spec, ExploreConfig(hold_longest=1), 1, explorer_mask(1.0, 1), seed=0)
    out, others, n = empty_actions(spec, 1), 0, 6000
    for _ in range(n):
        explorer.act(policy, obs, np.zeros(1, np.int64), False, out)
        others += int(out[0] != 0)
    assert others / n == pytest.approx(0.1 * 2 / 3, abs=0.016)


def test_no_explorer_steps_are_no_explorers():
    spec = small_spec(False)
    explorer = Explorer(spec, ExploreConfig(explorer_steps=0), 2, explorer_mask(1.0, 2), seed=0)
    assert not explorer.explorer.any()
    spec = small_spec(True)  # discrete explorers stay
    explorer = Explorer(spec, ExploreConfig(explorer_steps=0), 2, explorer_mask(1.0, 2), seed=0)
    assert explorer.explorer.all()


def test_warmup_holds_uniform_actions_without_a_policy():
    config = ExploreConfig(hold_longest=4)
    for discrete in (True, False):
        spec = small_spec(discrete)
        explorer = Explorer(spec, config, 3, explorer_mask(0.0, 3), seed=1)
        out, seen = empty_actions(spec, 3), []
        for _ in range(2000):
            explorer.act(None, np.zeros((3, 5), np.float32), np.array([2, 0, 1]), True, out)
            seen.append(out.copy())
        actions = np.array(seen)[:, 0].astype(np.float64)
        if discrete:
            assert np.bincount(actions.astype(int), minlength=3).min() > 2000 / 3 * 0.85
        else:
            assert np.abs(actions).max() <= 1
            assert actions.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
            changes = (np.diff(actions[:, 0]) != 0).mean()
            # mean hold = (1 + 1/2 + 1/3 + 1/4) / (1 + 1/4 + 1/9 + 1/16) = 1.4634
            assert changes == pytest.approx(1 / 1.4634, abs=0.05)


def test_discrete_explorer_holds_for_its_lane_only():
    spec = small_spec(True)
    policy, obs = Policy(spec, random_snapshot(spec)), observations(spec, 1)
    config = ExploreConfig(explorer_epsilon=1.0, hold_exponent=0.0, hold_longest=50)
    explorer = Explorer(spec, config, 2, np.array([True, False]), seed=0)
    both, one = empty_actions(spec, 2), empty_actions(spec, 1)
    explorer.act(policy, np.repeat(obs, 2, 0), np.array([1, 0]), False, both)
    left, held = explorer._left[0], both[1]
    assert left > 3  # the draw of this seed
    for _ in range(left):
        explorer.act(policy, obs, np.array([0]), False, one)
        assert one[0] == held
    assert explorer._left.tolist() == [0, 0]


@pytest.mark.parametrize("discrete", [True, False])
def test_same_seed_same_actions(discrete):
    spec = small_spec(discrete)
    policy, obs = Policy(spec, random_snapshot(spec)), observations(spec, 4)
    runs = []
    for _ in range(2):
        explorer = Explorer(spec, ExploreConfig(), 4, explorer_mask(0.5, 4), seed=7)
        actions = []
        for t in range(20):
            out = empty_actions(spec, 4)
            explorer.act(policy, obs, np.arange(4), t < 5, out)
            actions.append(out)
        runs.append(np.array(actions))
    assert runs[0].tobytes() == runs[1].tobytes()


def test_wrong_arrays_are_named():
    spec = small_spec(True)
    policy, obs = Policy(spec, random_snapshot(spec)), observations(spec, 2)
    explorer = Explorer(spec, ExploreConfig(), 2, explorer_mask(0.5, 2), seed=0)
    out, lanes = empty_actions(spec, 2), np.arange(2)
    with pytest.raises(ValueError, match=r"obs is float64 \(2, 5\)"):
        policy.greedy(obs.astype(np.float64), out)
    with pytest.raises(ValueError, match=r"out is int64 \(2,\), must be C-contiguous int32 \(2,\)"):
        policy.greedy(obs, out.astype(np.int64))
    for wrong in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
            explorer.act(policy, obs, np.array(wrong), False, out)
    with pytest.raises(ValueError, match="warm-up only"):
        explorer.act(None, obs, lanes, False, out)
    with pytest.raises(ValueError, match=r"explorer is bool \(3,\)"):
        Explorer(spec, ExploreConfig(), 2, np.ones(3, bool), seed=0)
