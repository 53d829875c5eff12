"""Gymnasium's registry and the packages that add to it: id -> environment. Imports neither torch
nor numba.
"""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from fdql.config import ConfigError
from fdql.extras import missing

Env = gym.Env[Any, Any]

# Packages that register their environments when imported, and the extra that brings them.
_PLUGINS = {
    "Bullet": ("pybullet_envs_gymnasium", "bullet"),
    "ALE/": ("ale_py", "atari"),
    "NoFrameskip-v": ("ale_py", "atari"),
}
# What else ale_py may have registered: Pong-v4, Breakout-v0, ...
_LEGACY_ATARI = re.compile(r"^\w+-v[04]$")
# Which extra brings what a registered environment needs, by its entry point.
_EXTRAS = {"box2d": "box2d", "classic_control": "classic", "mujoco": "mujoco", "ale_py": "atari"}


def from_registry(env: str, render_mode: str | None = None) -> Env:
    """Make the environment of a Gymnasium id, an Atari game with its preprocessing.

    Raises ConfigError: unknown id (with near ones), missing extra (with the command).
    """
    for part, (package, extra) in _PLUGINS.items():
        if part in env:
            try:
                _import_plugin(package)
            except ImportError as error:
                raise missing(f"env = {env!r}", extra, error) from None
    registered, aside = _lookup(env)
    entry = str(getattr(registered, "entry_point", ""))
    # Named only when it is asked for: not every environment has such an argument.
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        if "ale_py" in entry:
            return _atari(env, **drawn)
        # Gymnasium's passive checker only warns, and does so at the price of every step.
        made: Env = gym.make(env, disable_env_checker=True, **drawn)
    except gym.error.DependencyNotInstalled as error:
        extra = next((x for key, x in _EXTRAS.items() if key in entry), "envs")
        raise missing(f"env = {env!r}", extra, error) from None
    except TypeError as error:
        if render_mode is None:
            raise
        raise ConfigError(
            f"env = {env!r} cannot be drawn: it does not take render_mode = {render_mode!r} "
            f"({error}); leaving --video out works"
        ) from None
    except (gym.error.Error, ModuleNotFoundError) as error:
        near = difflib.get_close_matches(env, list(gym.registry), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "CartPole-v1 works"
        raise ConfigError(
            f"env = {env!r}: Gymnasium knows no such environment ({error}); {hint} "
            f"Your own is given as module:factory{aside}"
        ) from None
    return made


def _import_plugin(package: str) -> None:
    module = importlib.import_module(package)
    if package == "ale_py":  # it greets on stderr, which the board draws on
        module.ALEInterface.setLoggerMode(module.LoggerMode.Error)


def _spec(env: str) -> Any:
    """As `gym.make` finds it: behind "module:", and in the newest version where none is named."""
    module, colon, name = env.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        space, short, version = parse_env_id(name)
        newest = find_highest_version(space, short) if version is None else version
        return gym.spec(get_env_id(space, short, newest))
    except (gym.error.Error, ModuleNotFoundError):
        return None


def _lookup(env: str) -> tuple[Any, str]:
    """What the id is registered as, None when it is not; and what else there is to say then."""
    found = _spec(env)
    if found is None and _LEGACY_ATARI.search(env):
        try:
            _import_plugin("ale_py")
        except ImportError as error:
            reason = missing(f"env = {env!r}", "atari", error)
            return None, f". If it is an Atari game: {reason}"
        found = _spec(env)
    return found, ""


def _atari(env: str, **drawn: Any) -> Env:
    # Grey screens save the making of coloured ones, which nobody looks at.
    screens = gym.make(env, frameskip=1, obs_type="grayscale", disable_env_checker=True, **drawn)
    game: Env = gym.wrappers.AtariPreprocessing(
        screens, noop_max=30, frame_skip=4, screen_size=84, terminal_on_life_loss=False
    )
    meanings = list(getattr(game.unwrapped, "get_action_meanings", list)())
    return FireToStart(game, meanings.index("FIRE")) if "FIRE" in meanings else game


class FireToStart(gym.Wrapper[Any, Any, Any, Any]):
    """Presses the button once at the start of a game and of each further life, as ALE's own vector
    environments do at the start: a greedy policy that does not know the button would wait until the
    game is cut.
    """

    def __init__(self, env: Env, fire: int) -> None:
        super().__init__(env)
        self.fire, self.lives = fire, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        first, info = self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, after = self.env.step(self.fire)
        if terminated or truncated:
            first, info = self.env.reset(options=options)
        else:
            first, info = obs, info | after
        self.lives = info.get("lives", 0)
        return first, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        lives = info.get("lives", 0)
        if lives < self.lives and not (terminated or truncated):
            obs, more, terminated, truncated, info = self.env.step(self.fire)
            reward = float(reward) + float(more)
        self.lives = info.get("lives", 0)
        return obs, reward, terminated, truncated, info
