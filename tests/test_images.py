"""Images: the encoder's shapes, what it learns, and that acting sees what learning saw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fdql import evaluate, load, train
from fdql.config import Config, ConfigError, EvalConfig, SacConfig
from fdql.machine import resolve
from fdql.sac.encoder import encode, less_mean
from fdql.sac.kernels import CompiledLearner
from fdql.sac.nets import (
    NetSpec,
    encoder_shapes,
    initialise,
    policy_shapes,
    size_of,
    value_shapes,
    views,
)
from fdql.sac.policy import Policy
from fdql.sac.shares import Shares
from fdql.sac.update import TorchLearner
from learners import both_actions
from plans import small_config, small_plan

SIDE, STACK = 36, 2
NOTHING = np.zeros(0, dtype=np.float32)
MEAN = np.random.default_rng(9).integers(0, 256, STACK * SIDE * SIDE).astype(np.float32)
ONE = np.ones(1, dtype=np.float32)
SMALL = {"critic_width": 16, "actor_width": 16, "bins": 11}
FLOAT32 = {"image_dtype": "float32"}


def spec_of(discrete):
    return NetSpec(
        obs_dim=STACK * SIDE * SIDE, action_dim=2, discrete=discrete, image=(STACK, SIDE, SIDE),
        **SMALL,
    )  # fmt: skip


def images(rng, n):
    return rng.integers(0, 256, (n, STACK * SIDE * SIDE), dtype=np.uint8)


def learn(learner, obs, action, reward):
    """One update; returns the new priorities."""
    n = len(obs)
    priority = np.zeros(n)
    learner.update(
        obs, action, reward, np.zeros(n, dtype=np.float32), obs, MEAN, NOTHING, ONE, priority
    )
    return priority


def test_shapes_of_the_encoder_counted_by_hand():
    spec = NetSpec(obs_dim=4 * 84 * 84, action_dim=6, discrete=True, image=(4, 84, 84))
    shapes = encoder_shapes(spec)
    assert shapes["encoder.w0"] == (16, 4, 8, 8)
    assert shapes["encoder.w3"] == (32 * 7 * 7, 256)
    assert size_of(shapes) == 16 * 257 + 32 * 257 + 32 * 289 + 1568 * 256 + 3 * 256
    assert (spec.features, spec.scales, spec.critic_in) == (256, 0, 256)
    assert list(policy_shapes(spec))[-1] == "encoder.h3"


def test_the_encoder_starts_orthogonal():
    spec = spec_of(True)
    named = views(initialise(spec, np.random.default_rng(0)), value_shapes(spec))
    for layer in range(3):
        w = named[f"encoder.w{layer}"].reshape(named[f"encoder.w{layer}"].shape[0], -1)
        np.testing.assert_allclose(w @ w.T, 2 * np.eye(len(w)), atol=1e-5)
    assert named["encoder.g3"].min() == named["encoder.g3"].max() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_planes_become_pixels_less_their_mean(channels, dtype):
    """Every one of the 256 values less the same or the farthest mean, exactly, channels last in
    memory.
    """
    rng = np.random.default_rng(0)
    planes = np.arange(256, dtype=np.uint8).repeat(channels).reshape(2, -1, channels)
    planes = (
        np.ascontiguousarray(planes.transpose(0, 2, 1))
        + np.arange(channels, dtype=np.uint8)[:, None]
    )
    mean = np.where(rng.random(planes[0].shape) < 0.5, 0, rng.integers(0, 256, planes[0].shape))
    flat = mean.astype(np.float32).ravel()
    pixels = less_mean(planes.reshape(2, -1), (channels, 8, 16), flat, dtype)
    assert (pixels.shape, pixels.dtype) == ((2, channels, 8, 16), dtype)
    assert pixels.permute(0, 2, 3, 1).is_contiguous()
    wanted = (planes - mean.astype(np.float64)).reshape(pixels.shape)
    np.testing.assert_array_equal(pixels.to(torch.float64), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_moved_after_their_mean_is_taken_away(channels, dtype):
    """By every shift of up to 3 rows and columns, edges repeated, as numpy's pad does it."""
    rng = np.random.default_rng(0)
    shape, most = (channels, 6, 9), 3
    steps = range(-most, most + 1)
    shift = np.array([(down, right) for down in steps for right in steps], np.int32)
    planes = rng.integers(0, 256, (len(shift), *shape), dtype=np.uint8)
    mean = rng.integers(0, 256, shape).astype(np.float32)
    pixels = less_mean(planes.reshape(len(shift), -1), shape, mean.ravel(), dtype, shift)
    around = ((0, 0), (0, 0), (most, most), (most, most))
    padded = np.pad(planes - mean, around, mode="edge")
    for one, wide, (down, right) in zip(pixels, padded, shift, strict=True):
        wanted = wide[:, most + down : most + down + 6, most + right : most + right + 9]
        np.testing.assert_array_equal(one.to(torch.float64), wanted)


def test_a_batch_is_learned_from_moved_images(monkeypatch):
    """s and s' by draws of their own, rows by all that image_shift allows; at 0 by none."""
    seen = []

    def recorded(images, image, mean, dtype, shift):
        seen.append(shift)
        return less_mean(images, image, mean, dtype, shift)

    monkeypatch.setattr("fdql.sac.update.encoder.less_mean", recorded)
    spec, n = spec_of(True), 512
    obs, action = images(np.random.default_rng(0), n), np.zeros(n, np.int32)
    for image_shift, values in ((0.05, [-1, 0, 1]), (0.0, [0])):  # of a side of 36
        seen.clear()
        config = SacConfig(**SMALL, image_shift=image_shift)
        learn(TorchLearner(spec, config, 0.4, 0), obs, action, np.zeros(n, np.float32))
        now, later = (np.concatenate(seen[what::2]) for what in (0, 1))
        assert now.shape == later.shape == (n, 2)
        for column in (*now.T, *later.T):
            np.testing.assert_array_equal(np.unique(column), values)
        if image_shift:
            assert (now != later).mean() > 0.5
            assert (now[:, 0] != now[:, 1]).mean() > 0.5


def naive_encode(p, pixels):
    """Features (256,) of one image (C, H, W) in float64, by the definition."""
    x = (pixels - MEAN.reshape(pixels.shape)) / 255.0
    for layer, stride in enumerate((4, 2, 1)):
        w, b = p[f"encoder.w{layer}"].astype(np.float64), p[f"encoder.b{layer}"]
        k = w.shape[-1]
        rows, cols = ((n - k) // stride + 1 for n in x.shape[1:])
        out = np.zeros((len(w), rows, cols))
        for r in range(rows):
            for c in range(cols):
                patch = x[:, r * stride : r * stride + k, c * stride : c * stride + k]
                out[:, r, c] = (w * patch).sum((1, 2, 3)) + b
        x = np.maximum(out, 0)
    h = x.transpose(1, 2, 0).reshape(-1) @ p["encoder.w3"].astype(np.float64) + p["encoder.b3"]
    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
    return np.maximum(p["encoder.g3"] * h + p["encoder.h3"], 0)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=["float32", "bfloat16"]
)
def test_features_by_the_definition(dtype, error):
    """Order of channels, places and weights; the mean; what bfloat16 costs."""
    spec = spec_of(True)
    rng = np.random.default_rng(1)
    flat = initialise(spec, rng)
    flat += rng.normal(0, 0.02, flat.shape).astype(np.float32)  # biases and scales too
    named = views(flat, value_shapes(spec))
    x = images(rng, 2)
    tensors = {k: torch.from_numpy(v) for k, v in named.items()}
    features = encode(tensors, less_mean(x, spec.image, MEAN, dtype))
    wanted = [naive_encode(named, one.reshape(STACK, SIDE, SIDE)) for one in x]
    assert (features.shape, features.dtype) == ((2, 256), torch.float32)
    np.testing.assert_allclose(features, wanted, atol=error)


@both_actions
def test_what_never_moves_is_not_seen(discrete):
    """Another picture behind the same things that move: the same actions. The brighter it is, the
    more it would otherwise drown them (docs/adr/0019).
    """
    spec, rng = spec_of(discrete), np.random.default_rng(0)
    learner = TorchLearner(spec, SacConfig(**SMALL), 0.4, 0)
    learner.params += rng.normal(0, 0.05, learner.params.shape).astype(np.float32)
    moving = rng.integers(0, 50, (8, STACK * SIDE * SIDE), dtype=np.uint8)
    seen = []
    for brightness in (0, 200):
        behind = rng.integers(brightness, brightness + 5, spec.obs_dim, dtype=np.uint8)
        flat = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
        learner.snapshot(flat, behind.astype(np.float32), NOTHING, ONE)
        seen.append(Policy(spec, flat).features(moving + behind))
    np.testing.assert_array_equal(*seen)
    assert seen[0].std() > 0.1


@both_actions
def test_acting_sees_what_learning_saw(discrete):
    spec = spec_of(discrete)
    learner = TorchLearner(spec, SacConfig(**SMALL), 0.4, 0)
    rng = np.random.default_rng(0)
    obs = images(rng, 8)
    action = np.zeros(8, np.int32) if discrete else np.zeros((8, 2), np.float32)
    for _ in range(3):
        learn(learner, obs, action, rng.normal(size=8).astype(np.float32))
    flat = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
    learner.snapshot(flat, MEAN, NOTHING, ONE)
    policy = Policy(spec, flat)
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v) for k, v in views(flat, policy_shapes(spec)).items()}
        x = encode(tensors, less_mean(obs, spec.image, MEAN)).numpy()
    plain = NetSpec(obs_dim=256, action_dim=2, discrete=discrete, **SMALL)
    network = flat[spec.obs_dim :]
    identity = np.concatenate([np.zeros(256), np.ones(256), network]).astype(np.float32)
    twin = Policy(plain, identity[: size_of(policy_shapes(plain))])
    assert x.max() < 5  # where the twin's clip of normalised vectors does nothing
    if discrete:
        np.testing.assert_allclose(policy.q_values(obs), twin.q_values(x), atol=1e-5)
    else:
        np.testing.assert_allclose(policy.distribution(obs), twin.distribution(x), atol=1e-5)


def test_values_of_images_are_learned():
    """Bright images pay 3, dark ones -3, whatever is done: only the encoder can tell them apart."""
    spec = spec_of(True)
    learner = TorchLearner(spec, SacConfig(**SMALL, learning_rate=1e-3), 0.4, 0)
    rng = np.random.default_rng(0)
    start = learner.params.copy()
    for _ in range(120):
        bright = rng.random(32) < 0.5
        obs = images(rng, 32) // 2 + np.where(bright, 120, 0).astype(np.uint8)[:, None]
        reward = np.where(bright, 3.0, -3.0).astype(np.float32)
        learn(learner, obs, rng.integers(0, 2, 32).astype(np.int32), reward)
    flat = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
    learner.snapshot(flat, MEAN, NOTHING, ONE)
    policy = Policy(spec, flat)
    test = images(rng, 2) // 2
    test[1] += 120
    dark, light = policy.q_values(test).mean(1)
    assert dark < -1 < 1 < light
    moved = views(learner.params != start, value_shapes(spec))
    assert all(moved[name].any() for name in encoder_shapes(spec))
    target = views(learner.target, value_shapes(spec))
    assert np.abs(target["encoder.w0"] - views(start, value_shapes(spec))["encoder.w0"]).max() > 0


@both_actions
def test_quantiles_of_images_are_learned(discrete):
    """TQC on the encoder: rewards of 3 raise every value from 0, and errors become smaller."""
    sac = SacConfig(critic_width=16, actor_width=16, head="tqc", quantiles=5, policy_delay=1)
    shape = {"obs_dim": STACK * SIDE * SIDE, "image": (STACK, SIDE, SIDE), "discrete": discrete}
    spec = NetSpec(action_dim=2, **shape, **sac.net_shape)
    learner, rng = TorchLearner(spec, sac, 0.4, 0), np.random.default_rng(0)
    obs, reward = images(rng, 8), np.full(8, 3.0, dtype=np.float32)
    action = np.zeros(8, np.int32) if discrete else np.zeros((8, 2), np.float32)
    flat = np.zeros(size_of(policy_shapes(spec)), dtype=np.float32)
    values, priorities = [], []
    for _ in range(2):
        learner.snapshot(flat, MEAN, NOTHING, ONE)
        values.append(Policy(spec, flat.copy()).action_values(obs, action))
        for _ in range(15):
            priorities.append(learn(learner, obs, action, reward))
    assert np.isfinite(learner.params).all()
    assert (values[0] == 0).all()
    assert (values[1] > 0.05).all()
    assert (np.array(priorities) > 0).all()
    assert priorities[-1].mean() < priorities[0].mean()


@both_actions
def test_shares_of_a_batch_change_nothing(discrete):
    """One thread and two: the same bits. Three, with rows that do not divide: rounding."""
    spec, rng, sac = spec_of(discrete), np.random.default_rng(2), SacConfig(**SMALL, **FLOAT32)
    obs, reward = images(rng, 32), rng.normal(0, 1, 32).astype(np.float32)
    action = rng.integers(0, 2, 32).astype(np.int32)
    if not discrete:
        action = rng.uniform(-1, 1, (32, 2)).astype(np.float32)
    after = []
    for threads in (1, 2, 3):
        learner = TorchLearner(spec, sac, 0.4, 0, threads=threads)
        priorities = [learn(learner, obs, action, reward).copy() for _ in range(4)]
        after.append((learner.params.copy(), np.array(priorities), learner.metrics()))
    for i in range(2):
        np.testing.assert_array_equal(after[0][i], after[1][i])
    assert after[0][2] == after[1][2]
    np.testing.assert_allclose(after[0][1], after[2][1], rtol=1e-3)
    assert np.abs(after[0][0] - after[2][0]).mean() < 1e-6  # AdamW makes steps of 1e-3


def test_a_batch_of_one_has_one_share():
    learner = TorchLearner(spec_of(True), SacConfig(**SMALL), 0.4, 0, threads=2)
    one = np.ones(1, np.float32)
    learn(learner, images(np.random.default_rng(0), 1), np.zeros(1, np.int32), one)
    assert np.isfinite(learner.params).all()


def test_what_a_share_raises_is_raised():
    shares = Shares(2, 2)
    assert shares(lambda rows: (rows.start, rows.stop), 5) == [(0, 2), (2, 5)]

    def fails(rows):
        if rows.start:
            raise ValueError("not these")

    with pytest.raises(ValueError, match="not these"):
        shares(fails, 4)


def test_the_actor_does_not_train_the_encoder():
    """With critics that are right already, the actor's step leaves the encoder where it is."""
    spec = spec_of(False)
    rng = np.random.default_rng(0)
    obs, action = images(rng, 8), np.zeros((8, 2), np.float32)
    actors = []
    for delay in (1, 2):  # the second update moves the actor, or not
        learner = TorchLearner(
            spec, SacConfig(**SMALL, weight_decay=0.0, policy_delay=delay), 0.4, 0
        )
        for _ in range(2):
            learn(learner, obs, action, np.zeros(8, dtype=np.float32))
        actors.append(learner.params[size_of(value_shapes(spec)) :].copy())
        encoder = views(learner.params, value_shapes(spec))["encoder.w0"].copy()
        if delay == 1:
            first = encoder
    assert not np.array_equal(*actors)
    np.testing.assert_array_equal(first, encoder)


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "asynchronous"])
def test_a_run_on_images(own_environments, tmp_path, serial):
    """Frames of 40 x 40 through workers, rings, replay, learner, policy file and evaluation."""
    config = small_config(
        "own_envs:Picture", serial=serial, total_timesteps=160, envs_per_worker=4,
        run_dir=str(tmp_path / "r"), sac=SacConfig(**SMALL, batch_size=8), ratio=8.0,
    )  # fmt: skip
    result = train(config, quiet=True)
    s = result.summary
    assert (s["exit_reason"], s["env_steps"], s["learner"]) == ("total_timesteps", 160, "torch")
    assert s["updates"] == 160
    policy = load(tmp_path / "r")
    assert policy.env.image == (1, 40, 40)
    stack = np.zeros((4, 40, 40), dtype=np.uint8)
    assert policy.predict(stack).shape == ()
    assert len(evaluate(policy, "own_envs:Picture", episodes=3).returns) == 3


def test_images_get_the_numbers_that_they_need(tmp_path):
    env = small_plan("own_envs:Picture", tmp_path).env
    config = resolve(Config(), cores=8, step_us=500.0, env=env)
    assert (config.ratio, config.sac.learning_rate, config.learner) == (8.0, 5e-4, "torch")
    assert config.workers * config.envs_per_worker == pytest.approx(16, abs=2)
    assert config.engine.learner_threads == 8 - 1 - config.workers
    assert (config.eval.episodes, config.eval.epsilon) == (20, 0.0)
    game = replace(env, atari=True, eval_episodes=10, eval_epsilon=0.01)
    config = resolve(Config(), cores=8, env=game)
    assert (config.eval.episodes, config.eval.epsilon) == (10, 0.01)
    given = Config(
        workers=6, ratio=16.0, sac=SacConfig(learning_rate=1e-3, pessimism=0.5),
        eval=EvalConfig(episodes=3, epsilon=0.0),
    )  # fmt: skip
    config = resolve(given, cores=8, env=game)
    assert (config.eval.episodes, config.eval.epsilon) == (3, 0.0)
    assert (config.ratio, config.sac.learning_rate, config.sac.pessimism) == (16.0, 1e-3, 0.5)
    assert config.engine.learner_threads == 2
    assert resolve(Config(), cores=2, step_us=500.0, env=env).engine.learner_threads == 2
    assert resolve(Config(), cores=1, step_us=500.0, env=env).engine.learner_threads == 1
    assert resolve(Config(), cores=64, step_us=500.0, env=env).engine.learner_threads == 8
    assert resolve(Config(serial=True), cores=8, env=env).engine.learner_threads == 2
    with pytest.raises(ConfigError, match=r"learner = 'compiled'.*'torch' works"):
        resolve(Config(learner="compiled"), cores=2, env=env)


def test_images_of_the_wrong_kind_are_refused():
    spec = spec_of(True)
    learner = TorchLearner(spec, SacConfig(**SMALL), 0.4, 0)
    obs = images(np.random.default_rng(0), 4)
    with pytest.raises(ValueError, match="float32"):
        learn(learner, obs.astype(np.float32), np.zeros(4, np.int32), np.zeros(4, np.float32))
    policy = Policy(spec, np.zeros(size_of(policy_shapes(spec)), dtype=np.float32))
    with pytest.raises(ValueError, match="must be C-contiguous uint8"):
        policy.greedy(obs.astype(np.float32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="TorchLearner"):
        CompiledLearner(spec, SacConfig(**SMALL), 0.4, 0)
