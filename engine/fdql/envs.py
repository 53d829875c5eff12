"""Environment id or factory -> environment, and the facts about its spaces. Imports neither torch
nor numba.

Stage 1 of 8, `step`: workers and the evaluator step what `make_env` returns; the spaces are checked
once, at the start, by `describe`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from fdql.config import Config, ConfigError
from fdql.env_spec import EnvSpec
from fdql.frames import check_pixels, image_layout
from fdql.registry import Env, from_registry

# Where gymnasium registers no threshold for an environment whose score has an agreed line:
# (mean return, episodes); Pendulum's score varies with its start, so it is averaged over more.
_LINES = {"Pendulum-v1": (-180.0, 100)}
MOST_COMPONENTS = 65_536  # of an observation
SMALLER = (
    "; gymnasium.wrappers.ResizeObservation(env, (84, 84)) or GrayscaleObservation in your own "
    "factory make images smaller"
)
ATARI_EPISODES = 10  # of an evaluation: a game takes up to 27,000 steps
ATARI_EPSILON = 0.01  # of an evaluation, where nothing else is random: docs/adr/0021


def is_factory(env: str) -> bool:
    """True for module:factory; module:Name-v0 is Gymnasium's own notation for an id."""
    return ":" in env and not re.search(r"-v\d+$", env)


def sticky_actions(made: Env) -> float:
    """Chance that a game of ale-py repeats the last action instead of the one that it is given."""
    ale: Any = made.unwrapped.ale  # type: ignore[attr-defined]
    return float(ale.getFloat("repeat_action_probability"))


def make_env(env: str, render_mode: str | None = None) -> Env:
    """Make the environment named by a Gymnasium id or by `module:factory`.

    The id of an Atari game gives it as gymnasium.wrappers.AtariPreprocessing does: 84 x 84 grey
    pixels, 4 frames to a step, up to 30 idle frames at the start; where there is a button it is
    pressed at the start of every life. Whether actions stick is the id's to say: with probability
    0.25 in ALE/*-v5 and *-v0, never in *-v4. What a factory makes is left as it is; it is given the
    render_mode, Gymnasium's "rgb_array", when one is asked for.

    Raises ConfigError: unknown id (with near ones), missing extra (with the command), a factory
    that cannot be imported or does not return an environment.
    """
    if is_factory(env):
        return _from_factory(env, render_mode)
    return from_registry(env, render_mode)


_importing: list[str] = []  # factories whose module is being imported just now


def check_train_call(config: Config) -> None:
    """Raises ConfigError where a run would start itself again, or its processes would not find
    the environment.
    """
    if _importing:
        raise ConfigError(
            f"env = {_importing[0]!r}: importing its module calls fdql.train again, and every "
            'process of a run imports it; put the call behind if __name__ == "__main__":'
        )
    if config.env.startswith("__main__:") and not config.serial:
        raise ConfigError(
            f"env = {config.env!r}: the processes of a run import the environment's module, and "
            "what a script or a notebook defines itself cannot be imported; move it to a file "
            "beside it, my_module.py, and env = 'my_module:factory' works (so does serial = True)"
        )


def _from_factory(env: str, render_mode: str | None) -> Env:
    module_name, _, factory = env.partition(":")
    # `python -m` and the console script differ in this; users expect their folder.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    _importing.append(env)
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"env = {env!r}: cannot import module {module_name!r} ({error}); it is looked for on "
            f"the Python path and in {here}"
        ) from None
    finally:
        _importing.pop()
    for name in factory.split("."):
        if not hasattr(target, name):
            raise ConfigError(f"env = {env!r}: {module_name!r} has no attribute {factory!r}")
        target = getattr(target, name)
    if not callable(target):
        raise ConfigError(
            f"env = {env!r}: {factory!r} is not callable; it must return a gymnasium.Env"
        )
    if render_mode is not None and not _takes(target, "render_mode"):
        raise ConfigError(
            f"env = {env!r}: to be drawn it must be made with render_mode = {render_mode!r}, and "
            f"{factory!r} has no such argument; def {factory}(render_mode=None) works"
        )
    made = target() if render_mode is None else target(render_mode=render_mode)
    if not isinstance(made, gym.Env):
        raise ConfigError(
            f"env = {env!r}: {factory!r} returned {type(made).__name__}, not a gymnasium.Env"
        )
    return made


def _takes(factory: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # one that is not written in Python
        return False
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def describe(env: str, made: Env) -> EnvSpec:
    """Check the spaces of an environment and collect what the engine needs of it.

    fdql.frames.image_layout says which observations are images, and how many the network sees; all
    others become float32 vectors. A factory's rewards, lives and thresholds are its own affair.

    Raises ConfigError naming the space and what is supported: observations are a Box of at most
    65,536 numbers, actions a Discrete or a Box of floats with finite bounds. Also
    for what frames.check_pixels refuses.
    """
    obs, act = made.observation_space, made.action_space
    if not isinstance(obs, gym.spaces.Box):
        raise ConfigError(
            f"env = {env!r} has observations {obs}: a Box is supported; "
            "gymnasium.wrappers.FlattenObservation in your own factory makes one of it; "
            "where there is an image, TransformObservation gives it alone"
        )
    check_pixels(env, obs)
    image, stack = image_layout(env, obs.shape) if obs.dtype == np.uint8 else (None, 1)
    obs_dim = math.prod(obs.shape)
    if not 1 <= obs_dim <= MOST_COMPONENTS:
        raise ConfigError(
            f"env = {env!r} has {obs_dim} observation components, {obs}: 1 to 65536 are supported"
            f"{SMALLER if image else ''}"
        )
    entry = str(getattr(made.spec, "entry_point", ""))
    atari = image is not None and "ale_py" in entry and not is_factory(env)
    line = _LINES.get(env, (None, ATARI_EPISODES if atari else 20))
    threshold = line[0]
    registered = None if is_factory(env) else made.spec  # a factory may have changed the rewards
    if threshold is None and registered is not None and registered.reward_threshold is not None:
        threshold = float(registered.reward_threshold)
    common: dict[str, Any] = {
        "env": env, "obs_dim": obs_dim, "obs_shape": tuple(obs.shape), "image": image,
        "stack": stack, "atari": atari, "return_threshold": threshold, "eval_episodes": line[1],
        "eval_epsilon": ATARI_EPSILON if atari and not sticky_actions(made) else 0.0,
    }  # fmt: skip
    if isinstance(act, gym.spaces.Discrete):
        if act.n < 2:
            raise ConfigError(
                f"env = {env!r} has {act.n} action: at least 2 are needed to learn anything"
            )
        return EnvSpec(
            **common,
            discrete=True,
            action_dim=int(act.n),
            action_shape=(),
            action_start=int(act.start),
            low=(),
            high=(),
        )
    if isinstance(act, gym.spaces.Box) and act.dtype.kind != "f":
        raise ConfigError(
            f"env = {env!r} has actions {act}: a Box of floats is supported; a Discrete works, "
            "and so does an ActionWrapper in your own factory that rounds a Box of floats"
        )
    if isinstance(act, gym.spaces.Box) and act.shape and math.prod(act.shape) >= 1:
        low, high = act.low.astype(np.float64).ravel(), act.high.astype(np.float64).ravel()
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low < high)))
        if bad.size:
            i = int(bad[0])
            raise ConfigError(
                f"env = {env!r}: component {i} of its action lies in [{low[i]}, {high[i]}]: "
                "bounds must be finite with low < high; gymnasium.wrappers.RescaleAction or a Box "
                "of your own sets them"
            )
        return EnvSpec(
            **common,
            discrete=False,
            action_dim=low.size,
            action_shape=tuple(act.shape),
            action_start=0,
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
        )
    raise ConfigError(
        f"env = {env!r} has actions {act}: Discrete and Box (with bounds) are supported; an "
        "ActionWrapper in your own factory that numbers the combinations makes a Discrete of others"
    )
