"""Layouts and initial values, counted by hand."""

import math

import numpy as np
import pytest
from fdql.sac.nets import (
    LOG_STD_HALF,
    LOG_STD_MIN,
    NetSpec,
    actor_shapes,
    critic_shapes,
    initialise,
    is_matrix,
    policy_shapes,
    size_of,
    views,
)

DISCRETE = NetSpec(obs_dim=4, action_dim=2, discrete=True)
CONTINUOUS = NetSpec(obs_dim=3, action_dim=2, discrete=False)


def test_sizes_counted_by_hand():
    # a discrete critic: 4*128 weights, 3*128 of bias, scale, shift; 128*128, 3*128; 128*202, 202
    assert size_of(critic_shapes(DISCRETE)) == 2 * (512 + 384 + 16384 + 384 + 25856 + 202) == 87444
    # continuous: 3 + 2 inputs, 101 outputs; the actor 3 inputs, 2 means and 2 deviations
    assert size_of(critic_shapes(CONTINUOUS)) == 2 * (640 + 384 + 16384 + 384 + 12928 + 101)
    assert size_of(actor_shapes(CONTINUOUS)) == 384 + 384 + 16384 + 384 + 512 + 4
    assert actor_shapes(DISCRETE) == {}


def test_a_discrete_snapshot_is_statistics_and_critics():
    # 4 means, 4 scales, temperature, reward scale before the critics
    assert size_of(policy_shapes(DISCRETE)) == 10 + 87444
    assert list(policy_shapes(DISCRETE))[4:] == list(critic_shapes(DISCRETE))


def test_a_continuous_snapshot_is_statistics_and_actor():
    networks = actor_shapes(CONTINUOUS) | critic_shapes(CONTINUOUS)
    assert size_of(policy_shapes(CONTINUOUS)) == 8 + size_of(networks)
    assert list(policy_shapes(CONTINUOUS))[4:] == list(networks)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS])
def test_views_cover_the_vector_once_in_order(spec):
    shapes = critic_shapes(spec) | actor_shapes(spec)
    flat = np.arange(size_of(shapes), dtype=np.float32)
    parts = views(flat, shapes)
    assert np.concatenate([p.ravel() for p in parts.values()]).tolist() == flat.tolist()
    assert {n: p.shape for n, p in parts.items()} == shapes
    assert all(np.shares_memory(p, flat) for p in parts.values())


def test_only_weights_are_matrices():
    names = [*critic_shapes(CONTINUOUS), *actor_shapes(CONTINUOUS)]
    assert [n for n in names if is_matrix(n)] == [
        f"{net}.w{layer}" for net in ("critic", "actor") for layer in (0, 1, 2)
    ]


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS])
def test_initial_values(spec):
    shapes = critic_shapes(spec) | actor_shapes(spec)
    flat = initialise(spec, np.random.default_rng(0))
    assert flat.dtype == np.float32
    p = views(flat, shapes)
    for name, a in p.items():
        kind = name.split(".")[1]
        if kind in ("g0", "g1"):
            assert (a == 1).all()
        elif kind[0] in "bh" and name != "actor.b2":
            assert (a == 0).all()
    assert (p["critic.w2"] == 0).all()  # so Q is 0 everywhere: the bins are symmetric
    assert not np.array_equal(p["critic.w0"][0], p["critic.w0"][1])  # the twins differ
    for w in (*p["critic.w0"], *p["critic.w1"]):
        gram = w.astype(np.float64) @ w.T  # rows <= columns: orthogonal rows of length sqrt 2
        np.testing.assert_allclose(gram, 2 * np.eye(len(w)), atol=1e-5)


def test_a_fresh_actor_has_its_initial_deviation():
    p = views(
        initialise(CONTINUOUS, np.random.default_rng(0)),
        critic_shapes(CONTINUOUS) | actor_shapes(CONTINUOUS),
    )
    raw = p["actor.b2"][2:].astype(np.float64)
    # tanh(0.5476) = 0.4988 gives ln std -10 + 6 * 1.501 = -0.994 = ln 0.37
    np.testing.assert_allclose(
        np.exp(LOG_STD_MIN + LOG_STD_HALF * (1 + np.tanh(raw))), 0.37, rtol=1e-5
    )
    assert (p["actor.b2"][:2] == 0).all()
    w = p["actor.w2"].astype(np.float64)  # columns of length 0.01
    np.testing.assert_allclose(w.T @ w, 1e-4 * np.eye(4), atol=1e-9)


def test_more_inputs_than_units_give_orthogonal_columns():
    spec = NetSpec(obs_dim=20, action_dim=2, discrete=True, critic_width=8)
    p = views(initialise(spec, np.random.default_rng(1)), critic_shapes(spec))
    w = p["critic.w0"][1].astype(np.float64)
    np.testing.assert_allclose(w.T @ w, 2 * np.eye(8), atol=1e-5)


def test_a_seed_decides_every_value():
    a, b, c = (initialise(CONTINUOUS, np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert math.isfinite(float(a.sum()))
