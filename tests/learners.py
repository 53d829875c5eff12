"""The learners under test, and small networks and batches to drive them with."""

import numpy as np
import pytest
from fdql.config import SacConfig
from fdql.sac.kernels import CompiledLearner
from fdql.sac.nets import NetSpec, actor_shapes, critic_shapes, views
from fdql.sac.update import TorchLearner

LEARNERS = [TorchLearner, CompiledLearner]
every_learner = pytest.mark.parametrize("make", LEARNERS)
both_actions = pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])

every_head = pytest.mark.parametrize("head", ["hl_gauss", "tqc"])

TINY = {"critic_width": 8, "actor_width": 8, "bins": 11, "quantiles": 11}


def tiny(discrete, **settings):
    config = SacConfig(**TINY | settings)
    return NetSpec(obs_dim=3, action_dim=2, discrete=discrete, **config.net_shape), config


def batch(spec, seed=0, size=6):
    """(obs, action, reward, discount, next_obs, obs_mean, obs_scale, reward_scale, priority_out)"""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    if spec.discrete:
        action = rng.integers(0, spec.action_dim, size).astype(np.int32)
    else:
        action = np.tanh(normal(size, spec.action_dim))
    discount = np.full(size, 0.97, dtype=np.float32)
    discount[0] = 0
    return [
        normal(size, spec.obs_dim) * 3,  # some beyond the clip at 5
        action,
        normal(size) * 4,
        discount,
        normal(size, spec.obs_dim) * 3,
        normal(spec.obs_dim) * 0.1,
        np.exp(normal(spec.obs_dim) * 0.1),
        np.array([2.0], dtype=np.float32),
        np.full(size, np.nan),
    ]


def scattered(make, spec, config, seed=0, **changes):
    """A learner whose parameters are all away from their special initial values."""
    learner = make(spec, config, 0.4, seed)
    state = learner.state()
    rng = np.random.default_rng(99)
    for name in ("params", "target"):
        state[name] = rng.normal(0, 0.5, state[name].shape).astype(np.float32)
    for name, value in changes.items():
        state[name] = value
    learner.load_state(state)
    return learner


def everything(learner):
    return {name: array.tobytes() for name, array in learner.state().items()}


def named(learner, flat):
    return views(flat, critic_shapes(learner.spec) | actor_shapes(learner.spec))
