"""Environments: ids, factories, spaces, action scaling."""

from __future__ import annotations

import numpy as np
import pytest
from fdql.config import ConfigError
from fdql.envs import ActionScale, EnvSpec, describe, make_env


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole-v77", "CartPole-v77"),
        ("NoSuchNamespace/Thing-v0", "NoSuchNamespace"),
        ("no_such_module:make", "cannot import module 'no_such_module'"),
        ("own_envs:Nothing", "has no attribute 'Nothing'"),
        ("own_envs:not_callable", "is not callable"),
        ("own_envs:returns_text", "returned str, not a gymnasium.Env"),
    ],
)
def test_an_environment_that_cannot_be_made(own_environments, env, says):
    with pytest.raises(ConfigError) as caught:
        make_env(env)
    assert says in str(caught.value)
    assert repr(env) in str(caught.value)


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pybullet_envs_gymnasium", None)  # import raises ImportError
    with pytest.raises(ConfigError, match=r"extra 'bullet': pip install .*\[bullet\]"):
        make_env("HopperBulletEnv-v0")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("UnboundedAction", "bounds must be finite"),
        ("MultiAction", "Discrete and Box"),
        ("DictObservation", "FlattenObservation"),
        ("Picture", "image observations"),
    ],
)
def test_an_unsupported_space_is_named(own_environments, name, says):
    made = make_env(f"own_envs:{name}")
    with pytest.raises(ConfigError) as caught:
        describe(f"own_envs:{name}", made)
    made.close()
    assert says in str(caught.value)


def test_facts_of_known_environments():
    for env, threshold, episodes in (("CartPole-v1", 475.0, 20), ("Pendulum-v1", -180.0, 100)):
        made = make_env(env)
        spec = describe(env, made)
        made.close()
        assert (spec.return_threshold, spec.eval_episodes) == (threshold, episodes)
        assert EnvSpec.from_dict(spec.to_dict()) == spec


def test_actions_reach_the_bounds_of_the_box(own_environments):
    made = make_env("own_envs:Steering")
    scale = ActionScale(describe("own_envs:Steering", made))
    made.close()
    # the Box is [-3, 1]: -1 -> -3, 1 -> 1, 0 -> the middle, -1
    for action, expected in ((-1.0, -3.0), (1.0, 1.0), (0.0, -1.0)):
        assert scale(np.array([[action]], np.float32))[0].tolist() == [expected]


def test_discrete_actions_start_where_the_space_starts():
    spec = EnvSpec(
        env="x",
        obs_dim=1,
        obs_shape=(1,),
        discrete=True,
        action_dim=3,
        action_shape=(),
        action_start=5,
        low=(),
        high=(),
        return_threshold=None,
        eval_episodes=20,
    )
    assert list(ActionScale(spec)(np.arange(3, dtype=np.int32))) == [5, 6, 7]
