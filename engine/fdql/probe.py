"""An environment looked at before a run: made, reset, stepped and timed in a process of its own.

An environment that hangs, aborts, ends its process, fills the terminal or returns what its spaces
do not say does so there, and is named before anything of the run is started or written.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from fdql.apart import Outcome, Say, run_apart
from fdql.config import BadValueError, Config, ConfigError
from fdql.env_spec import ActionScale, EnvSpec
from fdql.envs import describe, make_env
from fdql.outlet import told

SECONDS, STEPS = 0.03, 200  # of timed stepping, whichever ends first
LONG_US = 500_000.0  # a step that takes longer is timed once
CLOSE_SECONDS = 5.0  # that closing may take
TRACE_LINES = 12  # of a traceback that are shown

MAKING, RESETTING, STEPPING = "while it was made", "at its first reset", "at its first step"
TIMING = "while its steps were timed"


def probe(config: Config, *, quiet: bool = False) -> tuple[EnvSpec, float]:
    """What the engine needs to know of `config.env`, and the median time of its step, microseconds.

    Raises ConfigError as `look_at` does.
    """
    limit = config.engine.start_timeout
    return look_at(config.env, config.seed, limit, setting="engine.start_timeout", quiet=quiet)


def look_at(
    env: str, seed: int, limit: float, *, setting: str = "", quiet: bool = False
) -> tuple[EnvSpec, float]:
    """The same of an environment that may be silent for `limit` seconds, which `setting` sets.

    Raises ConfigError when it cannot be made, reset and stepped, or when it returns what cannot be
    used: which stage, what happened, what it printed.
    """
    rule = f"{setting} = {limit:g}" if setting else ""
    if not hasattr(os, "fork"):
        said: list[Any] = []
        _look(env, seed, said.append)
        outcome = Outcome(said, [], "")
    else:
        outcome = run_apart(
            lambda say: _look(env, seed, say),
            lambda said: CLOSE_SECONDS if said and "step_us" in said[-1] else limit,
            lambda said: None if quiet else _tell(env, _stage(said), rule or f"{limit:g}"),
        )
    return _judged(env, rule, outcome)


def _tell(env: str, stage: str, most: str) -> None:
    told(f"fdql: still waiting for env = {env!r}, {stage} (at most {most} s)")


def _stage(said: list[Any]) -> str:
    stages = [str(s["stage"]) for s in said if "stage" in s]
    return stages[-1] if stages else MAKING


def _judged(env: str, rule: str, outcome: Outcome) -> tuple[EnvSpec, float]:
    """The answer, or ConfigError; `rule` is the setting that limits its silence."""
    known: dict[str, Any] = {}
    for values in outcome.said:
        known |= values
    if "step_us" in known:  # how it ended while it was closed is its own affair
        return EnvSpec.from_dict(known["spec"]), float(known["step_us"])
    if "refused" in known:
        raise ConfigError(known["refused"])
    what = known.get("raised") or outcome.ending or "ended its process with exit code 0"
    message = f"env = {env!r} {what} {_stage(outcome.said)}"
    if rule and what.startswith("did not return"):
        message += f" ({rule}); a larger one waits longer"
    else:
        message += "; it must come through make, reset(seed=...) and step on its own first"
    shown = outcome.output + known.get("trace", [])
    raise ConfigError("\n  ".join([message, *shown]))


def _look(env: str, seed: int, say: Say) -> None:
    """In the process apart: report the stage, then what was found or what went wrong."""
    made: gym.Env[Any, Any] | None = None
    try:
        say({"stage": MAKING})
        made = make_env(env)
        spec = describe(env, made)
        say({"stage": RESETTING, "spec": spec.to_dict()})
        _check_reset(spec, made, made.reset(seed=seed))
        action = _actions(spec, seed)
        say({"stage": STEPPING})
        t0 = time.perf_counter()
        result = made.step(next(action))
        first_us = 1e6 * (time.perf_counter() - t0)
        over = _check_step(spec, made, result)
        say({"stage": TIMING})
        say({"step_us": _median_step_us(made, action, over, first_us)})
    except ConfigError as error:
        say({"refused": str(error)})
    except BaseException as error:  # SystemExit and KeyboardInterrupt are its own here
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        say({"raised": f"raised {said}", "trace": own_frames(error)})
    if made is not None:
        made.close()


def own_frames(error: BaseException) -> list[str]:
    """Where it was raised, without the frames of this package, lines of a traceback."""
    here = str(Path(__file__).parent)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(here)
    ]
    lines = "".join(traceback.format_list(frames)).rstrip().splitlines()
    return lines[-TRACE_LINES:]


def _refuse(spec: EnvSpec, what: str, rule: str) -> ConfigError:
    return ConfigError(f"env = {spec.env!r}: {what}; {rule}")


def _check_reset(spec: EnvSpec, made: gym.Env[Any, Any], result: Any) -> None:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise _refuse(
            spec,
            f"reset returned {_brief(result)}",
            "Gymnasium's reset returns a pair, (observation, info) with a dict; (obs, {}) works",
        )
    _check_obs(spec, made, result[0], "reset")


def _check_step(spec: EnvSpec, made: gym.Env[Any, Any], result: Any) -> bool:
    """True when the episode is over."""
    if not (isinstance(result, tuple) and len(result) == 5):
        raise _refuse(
            spec,
            f"step returned {_brief(result)}",
            "Gymnasium's step returns five things; (obs, reward, terminated, truncated, {}) works",
        )
    obs, reward, terminated, truncated, _ = result
    _check_obs(spec, made, obs, "step")
    try:
        number = np.ndim(reward) == 0 and bool(np.isfinite(np.float32(reward)))
    except (TypeError, ValueError):
        number = False
    if not number:
        rule = "a finite number works, and of an array of one its reward.item()"
        raise _refuse(spec, f"step returned the reward {_brief(reward)}", rule)
    return bool(terminated or truncated)


def _check_obs(spec: EnvSpec, made: gym.Env[Any, Any], obs: Any, where: str) -> None:
    space = made.observation_space
    try:
        row = spec.to_row(obs)
    except BadValueError as error:
        raise _refuse(spec, f"{where} returned {error}", f"what {space} says works") from None
    if not np.isfinite(row).all():
        raise _refuse(
            spec,
            f"{where} returned the observation {_brief(obs)}",
            "every number must be finite in float32; clip or repair it in the environment",
        )


def _brief(value: Any) -> str:
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    text = repr(value)
    length = f" of {len(value)}" if isinstance(value, tuple) else ""
    return f"{type(value).__name__}{length}{shape} {text if len(text) <= 80 else text[:77] + '...'}"


def _actions(spec: EnvSpec, seed: int) -> Iterator[Any]:
    """Random actions, of the kinds that a run gives to the environment."""
    random, scale = np.random.default_rng(seed), ActionScale(spec)
    while True:
        if spec.discrete:
            drawn = random.integers(0, spec.action_dim, 1, dtype=np.int32)
        else:
            drawn = random.uniform(-1.0, 1.0, (1, spec.action_dim)).astype(np.float32)
        yield scale(drawn)[0]


def _median_step_us(
    env: gym.Env[Any, Any], actions: Iterator[Any], over: bool, first_us: float
) -> float:
    """Median time of a step with random actions; of one that takes long the first is enough."""
    times: list[float] = []
    if first_us > LONG_US:
        return first_us
    began = time.perf_counter()
    while len(times) < 3 or (len(times) < STEPS and time.perf_counter() - began < SECONDS):
        if over:
            env.reset()
        action = next(actions)
        t0 = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(1e6 * (time.perf_counter() - t0))
        over = terminated or truncated
    return float(np.median(times))
