"""Environments: ids, factories, spaces, action scaling."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from fdql.config import BadValueError, ConfigError
from fdql.env_spec import ActionScale, EnvSpec
from fdql.envs import describe, make_env
from fdql.frames import FrameStacks, to_rows


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
    with pytest.raises(ConfigError, match=r"extra 'bullet': .*pip install .*\[bullet\]"):
        make_env("HopperBulletEnv-v0")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("UnboundedAction", "bounds must be finite"),
        ("MultiAction", "Discrete and Box"),
        ("MultiAction", "ActionWrapper"),
        ("WholeSteps", "ActionWrapper"),
        ("ScaledPicture", "images must be uint8"),
        ("Dark", "images from 0 to 1"),
        ("ColouredStack", "need not be stacked"),
        ("DictObservation", "FlattenObservation"),
        ("ManyBands", "GrayscaleObservation"),
        ("ColouredStack", "up to 16 frames"),
        ("Screen", "100800 observation components"),
        ("Screen", "ResizeObservation"),
    ],
)
def test_an_unsupported_space_is_named(own_environments, name, says):
    made = make_env(f"own_envs:{name}")
    with pytest.raises(ConfigError) as caught:
        describe(f"own_envs:{name}", made)
    made.close()
    assert says in str(caught.value)


def test_an_environment_that_takes_no_render_mode_is_made_but_not_drawn(own_environments):
    from own_envs import Counting

    gym.register("Plain-v0", entry_point=Counting)
    try:
        make_env("Plain-v0").close()
        with pytest.raises(ConfigError, match=r"cannot be drawn.*leaving --video out works"):
            make_env("Plain-v0", "rgb_array")
    finally:
        del gym.registry["Plain-v0"]


def test_facts_of_known_environments():
    for env, threshold, episodes in (("CartPole-v1", 475.0, 20), ("Pendulum-v1", -180.0, 100)):
        made = make_env(env)
        spec = describe(env, made)
        made.close()
        assert (spec.return_threshold, spec.eval_episodes) == (threshold, episodes)
        assert EnvSpec.from_dict(spec.to_dict()) == spec


def test_a_matrix_of_numbers_is_a_vector(own_environments):
    made = make_env("own_envs:Matrix")
    spec = describe("own_envs:Matrix", made)
    assert (spec.image, spec.stack, spec.obs_dim) == (None, 1, 2560)
    made.close()


def test_a_factory_is_solved_when_its_user_says_so(own_environments):
    made = make_env("own_envs:shaped")
    assert made.spec.reward_threshold == -110.0
    assert describe("own_envs:shaped", made).return_threshold is None
    made.close()


@pytest.mark.parametrize("name", ["ALE/Pong", "ale_py:ALE/Pong-v5"])
def test_a_game_by_another_name(name):
    """Gymnasium takes the newest version, and imports what stands before a colon."""
    made = make_env(name)
    spec = describe(name, made)
    assert (spec.atari, spec.image) == (True, (1, 84, 84))
    assert made.unwrapped.ale.getFloat("repeat_action_probability") == 0.25
    made.close()


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


@pytest.mark.parametrize(
    ("game", "sticky"),
    [("ALE/Pong-v5", 0.25), ("PongNoFrameskip-v4", 0.0), ("Pong-v4", 0.0), ("Pong-v0", 0.25)],
)
def test_a_game_of_atari(game, sticky):
    made = make_env(game)
    spec = describe(game, made)
    ale = made.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == sticky
    assert (spec.image, spec.stack, spec.atari) == ((1, 84, 84), 4, True)
    assert (spec.obs_dim, spec.obs_shape, spec.action_dim) == (7056, (84, 84), 6)
    assert (spec.return_threshold, spec.eval_episodes) == (None, 10)
    assert spec.eval_epsilon == (0.0 if sticky else 0.01)
    assert EnvSpec.from_dict(spec.to_dict()) == spec
    first, info = made.reset(seed=1)
    assert 1 + 4 <= info["frame_number"] <= 30 + 4  # idle ones, then the button
    after, _, _, _, info_after = made.step(2)
    assert info_after["frame_number"] == info["frame_number"] + 4
    for frame in (first, after):
        assert (frame.shape, frame.dtype) == ((84, 84), np.uint8)
        assert frame.any()
        assert np.shares_memory(spec.to_row(frame), frame)
    made.close()


def test_a_game_that_waits_for_the_button_does_not_wait_for_ever():
    """Breakout without a hand on the paddle: five balls, each served, each lost at once."""
    made = make_env("BreakoutNoFrameskip-v4")
    _, info = made.reset(seed=0)
    lives, steps, over = [info["lives"]], 0, False
    while not over:
        _, _, terminated, truncated, info = made.step(0)
        over, steps = terminated or truncated, steps + 1
        if info["lives"] != lives[-1]:
            lives.append(info["lives"])
        assert steps < 1000
    made.close()
    assert lives == [5, 4, 3, 2, 1, 0]


def test_the_memory_of_an_atari_machine_is_a_vector():
    import ale_py  # noqa: F401
    import gymnasium as gym

    made = gym.make("ALE/Pong-v5", obs_type="ram")
    spec = describe("own:ram", made)
    row = spec.to_row(made.reset(seed=1)[0])
    made.close()
    assert (spec.image, spec.stack, spec.atari, spec.obs_dim) == (None, 1, False, 128)
    assert (row.shape, row.dtype) == ((128,), np.float32)


@pytest.mark.parametrize("game", ["ALE/Pong-v5", "PongNoFrameskip-v4", "NoSuchGame-v4"])
def test_a_game_without_the_extra_names_its_command(monkeypatch, game):
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)  # import raises ImportError
    with pytest.raises(ConfigError, match=r"extra 'atari': .*pip install .*\[atari\]"):
        make_env(game)


@pytest.mark.parametrize(
    ("name", "image", "stack"),
    [
        ("Picture", (1, 40, 40), 4),
        ("Coloured", (3, 37, 41), 4),
        ("Stacked", (5, 36, 40), 1),
        ("GreyFirst", (1, 36, 40), 4),
        ("Grid", None, 1),
    ],
)
def test_how_an_image_lies(own_environments, name, image, stack):
    made = make_env(f"own_envs:{name}")
    spec = describe(f"own_envs:{name}", made)
    obs, _ = made.reset(seed=1)
    row = spec.to_row(obs)
    made.close()
    assert (spec.image, spec.stack, spec.atari, spec.obs_shape) == (image, stack, False, obs.shape)
    assert (spec.eval_episodes, spec.obs_dim) == (20, obs.size)
    assert (row.shape, row.dtype) == ((obs.size,), np.float32 if image is None else np.uint8)
    expected = np.moveaxis(obs, -1, 0) if name == "Coloured" else obs
    assert row.tolist() == expected.ravel().tolist()
    many = np.stack([obs, obs + 1] * stack)  # two stacks
    if image is not None:
        shape = many.shape if stack == 1 else (2, stack, *obs.shape)
        rows = to_rows(many.reshape(shape), spec.obs_shape, spec.image, spec.stack)
        assert (rows.shape, rows.dtype) == ((2, stack * obs.size), np.uint8)
        assert rows.ravel().tolist() == [x for o in many for x in spec.to_row(o).tolist()]


def test_an_image_that_is_none_is_told(own_environments):
    made = make_env("own_envs:FloatPicture")
    spec = describe("own_envs:FloatPicture", made)
    with pytest.raises(BadValueError, match="image of float64"):
        spec.to_row(made.reset(seed=1)[0])
    made.close()


def test_a_stack_is_what_gymnasium_stacks(own_environments):
    from gymnasium.wrappers import FrameStackObservation

    made = make_env("own_envs:Coloured")
    spec = describe("own_envs:Coloured", made)
    made.unwrapped.places = False
    wrapped = FrameStackObservation(made, spec.stack)
    memory = np.full((2, 128 + spec.stack * spec.obs_dim), 77, dtype=np.uint8)
    stacks = FrameStacks(memory[:, 128:], spec.stack)  # rows lie apart, as those of slots do
    for _ in range(2):
        stacked, _ = wrapped.reset(seed=1)
        stacks.reset(1, spec.to_row(stacked[-1]))
        for _ in range(6):
            rows = to_rows(stacked, spec.obs_shape, spec.image, spec.stack)
            assert stacks.rows[1].tolist() == rows[0].tolist()
            assert stacks.newest[1].tolist() == spec.to_row(stacked[-1]).tolist()
            stacked = wrapped.step(1)[0]
            stacks.push(1, spec.to_row(stacked[-1]))
    wrapped.close()
    assert (memory[0] == 77).all()
    assert (memory[1, :128] == 77).all()
