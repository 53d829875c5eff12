"""Every learner against the naive float64 twin, then each rule of the update alone."""

import math

import numpy as np
import pytest
import torch
from fdql.config import SacConfig
from fdql.sac import heads
from fdql.sac.forward import actor_moments, critic_outputs
from fdql.sac.learner import target_entropy
from fdql.sac.nets import NetSpec, actor_shapes, critic_shapes, initialise, is_matrix, views
from learners import batch, both_actions, every_head, every_learner, named, scattered, tiny
from oracle_sac import NaiveLearner


@pytest.mark.parametrize(
    "settings",
    [
        {"pessimism": 1.0},
        {"pessimism": 0.3, "entropy_backup": 0.5},
        {"head": "tqc", "quantiles_dropped": 3},
        {"head": "tqc", "quantile_huber": 0.3, "entropy_backup": 1.0},
    ],
    ids=str,
)
@every_learner
@both_actions
def test_three_updates_follow_the_naive_twin(make, discrete, settings):
    """Losses, gradients (central differences), AdamW, temperature, target average, priorities.

    Covers policy delay 2: the actor moves at updates 0 and 2. float32 against float64.
    """
    spec, config = tiny(discrete, **settings)
    learner = scattered(make, spec, config, seed=4)
    naive = NaiveLearner(
        named(learner, learner.params),
        views(learner.target, critic_shapes(spec)),
        config,
        discrete=discrete,
        actions=spec.action_dim,
        ln_temperature=learner.ln_temperature,
        goal=target_entropy(spec, config),
        exponent=0.4,
    )
    rng = np.random.default_rng(4)
    initialise(spec, rng)  # the draws before the first update
    for k in range(3):
        b = batch(spec, seed=k)
        learner.update(*b)
        priority = naive.update(*b[:8], lambda: rng.standard_normal((6, 2), dtype=np.float32))
        np.testing.assert_allclose(b[8], priority, rtol=1e-4)
        assert learner.ln_temperature == pytest.approx(naive.ln_temperature, abs=1e-5)
        first, second = (named(learner, m) for m in learner.moments)
        params, target = named(learner, learner.params), views(learner.target, critic_shapes(spec))
        for name, exact in naive.first.items():
            np.testing.assert_allclose(first[name], exact, rtol=1e-3, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(second[name], naive.second[name], rtol=2e-3, atol=1e-8)
            # Adam divides by the gradient's size: where that is tiny, so is the agreement
            sure = np.sqrt(naive.second[name]) > 1e-4
            np.testing.assert_allclose(params[name][sure], naive.p[name][sure], atol=1e-5)
        for name, exact in naive.target.items():
            np.testing.assert_allclose(target[name], exact, atol=1e-4, err_msg=name)
    assert learner.updates == 3


@both_actions
def test_losses_pass_torch_gradcheck(discrete):
    """float64 gradients of the reference's own graph against finite differences."""
    spec, _ = tiny(discrete)
    rng = np.random.default_rng(1)
    shapes = critic_shapes(spec) | actor_shapes(spec)
    names = list(shapes)
    leaves = [torch.from_numpy(rng.normal(0, 0.5, s)).requires_grad_() for s in shapes.values()]
    x = torch.from_numpy(rng.normal(size=(4, spec.obs_dim)))
    noise = torch.from_numpy(rng.normal(size=(4, 2)))
    y = torch.tensor([-4.0, 0.1, 1.0, 5.0], dtype=torch.float64)
    target = heads.hl_gauss_target(y, heads.bin_edges(11, 5.0, torch.float64), 0.75)

    def critic_loss(*flat):
        p = dict(zip(names, flat, strict=True))
        if discrete:
            return heads.cross_entropy(critic_outputs(p, x)[:, :, :11], target)
        return heads.cross_entropy(critic_outputs(p, torch.cat([x, noise], 1)), target)

    def actor_loss(*flat):
        p = dict(zip(names, flat, strict=True))
        mean, ln_std = actor_moments(p, x)
        u = mean + ln_std.exp() * noise
        density = heads.squashed_normal_ln_density(u, noise, ln_std)
        logits = critic_outputs(p, torch.cat([x, torch.tanh(u)], 1))
        q = heads.expected_value(logits, heads.bin_centres(11, 5.0, torch.float64))
        return heads.actor_loss(density, q, 0.3)

    assert torch.autograd.gradcheck(critic_loss, leaves)
    if not discrete:
        assert torch.autograd.gradcheck(actor_loss, leaves)


@every_learner
@every_head
def test_two_armed_bandit_converges_to_the_hand_solution(make, head):
    """Arm 0 pays 1, arm 1 pays 0, then it ends: Q = (1, 0).

    epsilon-greedy .1 wants chances .95 and .05, so temperature 1 / ln(.95 / .05) = .3396.
    """
    spec, config = tiny(True, learning_rate=0.01, head=head)
    learner = make(spec, config, 0.4, 0)
    obs = np.ones((32, 3), dtype=np.float32)
    action = (np.arange(32) % 2).astype(np.int32)
    reward = (1 - action).astype(np.float32)
    zero, one = np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32)
    for _ in range(300):
        learner.update(obs, action, reward, reward * 0, obs, zero, one, one[:1], np.empty(32))
    p = {n: a.astype(np.float64) for n, a in named(learner, learner.params).items()}
    naive = NaiveLearner(
        p, {}, config, discrete=True, actions=2, ln_temperature=0.0, goal=0.0, exponent=0.4
    )
    q = naive.q(naive.logits(p, obs)).mean(0)[0]
    np.testing.assert_allclose(q, [1, 0], atol=0.03)
    assert math.exp(learner.ln_temperature) == pytest.approx(0.3396, abs=0.03)
    assert learner.metrics()["entropy"] == pytest.approx(0.199, abs=0.02)


@every_learner
@both_actions
def test_target_is_a_running_average(make, discrete):
    spec, config = tiny(discrete, target_rate=0.25)
    learner = scattered(make, spec, config)
    before = learner.target.copy()
    learner.update(*batch(spec))
    critic = learner.params[: len(before)]
    np.testing.assert_allclose(learner.target, 0.75 * before + 0.25 * critic, rtol=1e-5, atol=1e-6)


@every_learner
@both_actions
def test_only_matrices_decay(make, discrete):
    """Decay is decoupled: with and without it, the first steps differ by rate * decay * w."""
    plain, decayed = (
        scattered(make, *tiny(discrete, weight_decay=w, learning_rate=0.01)) for w in (0.0, 0.5)
    )
    before = {n: a.copy() for n, a in named(plain, plain.params).items()}
    b = batch(plain.spec)
    plain.update(*b)
    decayed.update(*b)
    with_decay = named(decayed, decayed.params)
    for name, without in named(plain, plain.params).items():
        if name.startswith("actor"):
            continue  # its gradient passed through critics that already differ
        lost = without - with_decay[name]
        want = 0.01 * 0.5 * before[name] if is_matrix(name) else np.zeros_like(lost)
        np.testing.assert_allclose(lost, want, atol=1e-6, err_msg=name)
    if not discrete:  # biases of the actor took no decay, so they moved at most by the rate
        moved = with_decay["actor.b0"] - before["actor.b0"]
        assert np.abs(moved).max() <= 0.01 + 1e-6


@every_learner
@both_actions
def test_each_network_is_clipped_by_itself(make, discrete):
    """The first moment after one update is a tenth of the gradient."""
    free = scattered(make, *tiny(discrete, gradient_clip=1e6))
    bound = scattered(make, *tiny(discrete, gradient_clip=0.01))
    b = batch(free.spec)
    free.update(*b)
    bound.update(*b)
    split = len(free.target)
    for part in (slice(0, split), slice(split, None))[: 1 if discrete else 2]:
        raw, clipped = free.moments[0, part] * 10, bound.moments[0, part] * 10
        assert np.linalg.norm(raw) > 0.02
        assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-3)
        if part.start == 0:
            np.testing.assert_allclose(clipped, raw * 0.01 / np.linalg.norm(raw), atol=1e-7)
    assert free.metrics()["critic_grad_norm"] == pytest.approx(
        np.linalg.norm(free.moments[0, :split] * 10), rel=1e-4
    )


@every_learner
def test_the_critics_know_no_temperature_continuous(make):
    """No entropy in the backup: the critics' gradient is the same at any temperature."""
    spec, config = tiny(False)
    first = []
    for ln_temperature in (-9.0, 0.0):
        temperature = np.array([ln_temperature, 0.0, 0.0])
        learner = scattered(make, spec, config, temperature=temperature)
        learner.update(*batch(spec))
        first.append(learner.moments[0, : len(learner.target)].tobytes())
    assert first[0] == first[1]


@every_learner
def test_the_critics_know_no_temperature_discrete(make):
    """Equal action values: the policy is uniform at any temperature, and ln 2 is not in V."""
    spec, config = tiny(True)
    first = []
    for ln_temperature in (-9.0, 0.0):
        learner = make(spec, config, 0.4, 0)  # fresh critics value every action 0
        learner.load_state(learner.state() | {"temperature": np.array([ln_temperature, 0.0, 0.0])})
        b = batch(spec)
        learner.update(*b)
        first.append(learner.moments[0].tobytes())
        # Q = 0 and V = 0, so the error is the scaled reward, one bin is 1
        np.testing.assert_allclose(
            b[8], np.maximum(np.minimum(np.abs(b[2] / 2), 5), 1) ** 0.4, rtol=1e-5
        )
    assert first[0] == first[1]


@every_learner
@both_actions
def test_a_terminated_row_has_no_bootstrap(make, discrete):
    """Discount 0: the next observation cannot matter; discount .97: it does."""

    def gradient(discount, next_scale):
        learner = scattered(make, *tiny(discrete))
        b = batch(learner.spec)
        b[3][:] = discount
        b[4] *= np.float32(next_scale)
        learner.update(*b)
        return learner.moments[0, : len(learner.target)].tobytes(), b[8].tobytes()

    assert gradient(0.0, 1.0) == gradient(0.0, 0.1)
    assert gradient(0.97, 1.0) != gradient(0.97, 0.1)


@every_learner
def test_the_actor_moves_at_every_third_update(make):
    spec, config = tiny(False, policy_delay=3)
    learner = scattered(make, spec, config)
    split = len(learner.target)
    moved = []
    for k in range(7):
        before, warmth = learner.params[split:].copy(), learner.ln_temperature
        learner.update(*batch(spec, seed=k))
        moved.append(not np.array_equal(before, learner.params[split:]))
        assert (learner.ln_temperature != warmth) == moved[-1]
    assert moved == [True, False, False, True, False, False, True]


@every_learner
@pytest.mark.parametrize(("target_std", "sign"), [(1e-3, -1), (50.0, 1)])
def test_temperature_moves_towards_its_entropy(make, target_std, sign):
    """Adam's first step is the whole rate: down when the actor is noisier than wanted, else up."""
    spec, config = tiny(False, target_std=target_std)
    learner = make(spec, config, 0.4, 0)
    learner.update(*batch(spec))
    assert learner.ln_temperature - math.log(0.01) == pytest.approx(sign * 1e-3, rel=1e-4)


@every_learner
def test_temperature_follows_the_falling_entropy(make):
    """Wanted: a deviation of 50 at first, of 0.1 after 250,000 updates; the actor has 0.37."""
    spec, config = tiny(False, target_std=50.0, target_std_updates=1)
    learner = make(spec, config, 0.4, 0)
    learner.updates = 250_000
    learner.update(*batch(spec))
    assert learner.ln_temperature < math.log(0.01)
    assert learner.metrics()["target_entropy"] == target_entropy(spec, config, 250_001)


@every_learner
@pytest.mark.parametrize(("target_std", "end"), [(1e-3, math.log(1e-5)), (50.0, 0.0)])
def test_temperature_stays_in_its_interval(make, target_std, end):
    spec, config = tiny(False, target_std=target_std, temperature_learning_rate=30.0)
    learner = make(spec, config, 0.4, 0)
    learner.update(*batch(spec))
    assert learner.ln_temperature == end


@every_learner
def test_discrete_temperature_schedule(make):
    """Solved whole before updates 0, 10, ..., 50; from update 60 a tenth of the way."""
    spec, config = tiny(True)
    learner = scattered(make, spec, config)
    b = batch(spec)
    changed = []
    for k in range(71):
        before = learner.ln_temperature
        learner.update(*b)
        if learner.ln_temperature != before:
            changed.append(k)
    assert set(changed) <= {0, 10, 20, 30, 40, 50, 60, 70}
    assert changed[0] == 0
    for updates, rate in ((50, 1.0), (60, 0.1)):
        ends = []
        for start in (-8.0, -2.0):
            other = scattered(
                make,
                spec,
                config,
                updates=np.array([updates]),
                temperature=np.array([start, 0.0, 0.0]),
            )
            other.update(*batch(spec))
            ends.append(other.ln_temperature)
        # start + rate * (root - start), the same root: the starts' distance shrinks to 1 - rate
        assert ends[1] - ends[0] == pytest.approx(6.0 * (1 - rate), abs=1e-6)


@every_learner
@both_actions
@pytest.mark.parametrize(("reward", "value"), [(7.0, 5.0), (-7.0, -5.0)])
def test_a_target_of_seven_is_five(make, discrete, reward, value):
    """Q = 0, no future, bins to +-5: the error is 5, its priority (5 / 0.1) ** 0.4; then Q is 5."""
    spec = NetSpec(obs_dim=3, action_dim=2, discrete=discrete, critic_width=16, actor_width=16)
    learner = make(spec, SacConfig(learning_rate=0.01, batch_size=16), 0.4, 0)
    b = batch(spec)
    b[2][:], b[3][:], b[7][:] = reward, 0.0, 1.0
    learner.update(*b)
    assert learner.metrics()["td_error"] == pytest.approx(5.0, abs=1e-4)
    assert b[8] == pytest.approx(50**0.4, rel=1e-4)
    for _ in range(300):
        learner.update(*b)
    assert learner.metrics()["q_mean"] == pytest.approx(value, abs=0.3)


@every_learner
@both_actions
def test_rewards_are_scaled_and_targets_clipped(make, discrete):
    def after(reward, scale):
        learner = scattered(make, *tiny(discrete))
        b = batch(learner.spec)
        b[2][:] = reward
        b[7][:] = scale
        learner.update(*b)
        return learner.state()["params"].tobytes(), learner.metrics()["clipped_targets"]

    assert after(1.0, 1.0) == after(4.0, 4.0)
    assert after(20.0, 1.0) == after(400.0, 1.0)  # both beyond 5 + the lowest bootstrap, -4.85
    assert after(20.0, 1.0)[1] == 1.0
    assert after(1.0, 1.0)[1] < 1.0
