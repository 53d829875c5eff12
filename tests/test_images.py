"""Images: the encoder's shapes, what it learns, and that acting sees what learning saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fdql.config import SacConfig
from fdql.sac.encoder import centred, encode
from fdql.sac.kernels import CompiledLearner
from fdql.sac.kernels_images import channels_last
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
from fdql.sac.update import TorchLearner
from learners import both_actions

SIDE, STACK = 36, 2
NOTHING = np.zeros(0, dtype=np.float32)
ONE = np.ones(1, dtype=np.float32)
SMALL = {"critic_width": 16, "actor_width": 16, "bins": 11}


def spec_of(discrete):
    return NetSpec(
        obs_dim=STACK * SIDE * SIDE, action_dim=2, discrete=discrete, image=(STACK, SIDE, SIDE),
        **SMALL,
    )  # fmt: skip


def images(rng, n):
    return rng.integers(0, 256, (n, STACK * SIDE * SIDE), dtype=np.uint8)


def learn(learner, obs, action, reward):
    n = len(obs)
    priority = np.zeros(n)
    learner.update(
        obs, action, reward, np.zeros(n, dtype=np.float32), obs, NOTHING, NOTHING, ONE, priority
    )
    return priority


def test_shapes_of_the_encoder_counted_by_hand():
    spec = NetSpec(obs_dim=4 * 84 * 84, action_dim=6, discrete=True, image=(4, 84, 84))
    shapes = encoder_shapes(spec)
    assert shapes["encoder.w0"] == (16, 4, 8, 8)
    assert shapes["encoder.w3"] == (32 * 7 * 7, 256)
    assert size_of(shapes) == 16 * 257 + 32 * 257 + 32 * 289 + 1568 * 256 + 3 * 256
    assert (spec.features, spec.statistics, spec.critic_in) == (256, 0, 256)
    assert list(policy_shapes(spec))[-1] == "encoder.h3"


def test_the_encoder_starts_orthogonal():
    spec = spec_of(True)
    named = views(initialise(spec, np.random.default_rng(0)), value_shapes(spec))
    for layer in range(3):
        w = named[f"encoder.w{layer}"].reshape(named[f"encoder.w{layer}"].shape[0], -1)
        np.testing.assert_allclose(w @ w.T, 2 * np.eye(len(w)), atol=1e-5)
    assert named["encoder.g3"].min() == named["encoder.g3"].max() == 1.0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_planes_become_pixels(channels):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (2, channels, 5, 6), dtype=np.uint8)
    pixels = channels_last(planes.reshape(2, -1), (channels, 5, 6))
    np.testing.assert_array_equal(pixels, planes.transpose(0, 2, 3, 1))


def test_features_of_one_image_by_hand():
    """One convolution position computed with numpy, so that the order of channels is pinned."""
    spec = spec_of(True)
    named = views(initialise(spec, np.random.default_rng(1)), value_shapes(spec))
    x = images(np.random.default_rng(2), 1)
    pixels = x.reshape(STACK, SIDE, SIDE) / 255.0 - 0.5
    w = named["encoder.w0"]
    first = np.maximum([(w[o] * pixels[:, 4:12, 8:16]).sum() for o in range(16)], 0)
    with torch.no_grad():
        whole = torch.nn.functional.conv2d(
            torch.from_numpy(pixels[None].astype(np.float32)), torch.from_numpy(w), stride=4
        ).relu()
    np.testing.assert_allclose(whole[0, :, 1, 2], first, atol=1e-5)
    tensors = {k: torch.from_numpy(v) for k, v in named.items()}
    features = encode(tensors, centred(torch.from_numpy(channels_last(x, spec.image))))
    assert features.shape == (1, 256)
    assert features.min() == 0.0
    np.testing.assert_allclose((features > 0).float().mean(), 0.5, atol=0.2)


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
    learner.snapshot(flat, NOTHING, NOTHING, ONE)
    policy = Policy(spec, flat)
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v) for k, v in views(flat, policy_shapes(spec)).items()}
        x = encode(tensors, centred(torch.from_numpy(channels_last(obs, spec.image)))).numpy()
    plain = NetSpec(obs_dim=256, action_dim=2, discrete=discrete, **SMALL)
    identity = np.concatenate([np.zeros(256), np.ones(256), flat]).astype(np.float32)
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
    learner.snapshot(flat, NOTHING, NOTHING, ONE)
    policy = Policy(spec, flat)
    test = images(rng, 2) // 2
    test[1] += 120
    dark, light = policy.q_values(test).mean(1)
    assert dark < -1 < 1 < light
    moved = views(learner.params != start, value_shapes(spec))
    assert all(moved[name].any() for name in encoder_shapes(spec))
    target = views(learner.target, value_shapes(spec))
    assert np.abs(target["encoder.w0"] - views(start, value_shapes(spec))["encoder.w0"]).max() > 0


def test_the_actor_does_not_train_the_encoder():
    """With critics that are right already, the actor's step leaves the encoder where it is."""
    spec = spec_of(False)
    config = SacConfig(**SMALL, weight_decay=0.0, learning_rate=1e-3)
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
    assert config.step_size == 1e-3


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
