"""One environment of a worker: its seed, its episode, and the check of what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.config import BadValueError
from fdql.env_spec import EnvSpec
from fdql.registry import Env


@dataclass(slots=True)
class EnvState:
    """One environment of this worker and the episode it is in."""

    env: Env
    lane: int  # index within the worker
    seed: int  # of the first reset
    steps: int = 0  # since that reset
    episode_return: float = 0.0
    episode_length: int = 0
    lives: int = 0  # left in an Atari game
    random: dict[str, Any] | None = None  # before the last reset without a seed (serial mode)


@dataclass(slots=True)
class Finished:
    """Episodes that ended since the last report: returns and lengths."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def env_seed(seed: int, lane: int, incarnation: int, resumes: int = 0) -> int:
    """Seed of an environment's first reset: own stream per lane of the run, restart and resume."""
    words = [seed, 1, lane, incarnation, *([resumes] if resumes else [])]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def random_state(env: Env) -> dict[str, Any] | None:
    """State of the generator that Gymnasium gives an environment; None when it has another."""
    rng = getattr(env.unwrapped, "_np_random", None)
    state: Any = rng.bit_generator.state if isinstance(rng, np.random.Generator) else None
    return state if state and state["bit_generator"] == "PCG64" else None


def bad_observation(error: BadValueError, spec: EnvSpec, state: EnvState) -> BadValueError:
    """The error of `spec.to_row` with the environment's name, seed and step before it."""
    return BadValueError(
        f"environment {spec.env!r} (seed {state.seed}, step {state.steps} since that seed) "
        f"returned {error}"
    )


def check_finite(values: NDArray[Any], what: str, spec: EnvSpec, state: EnvState) -> None:
    """Raises BadValueError when `values` holds NaN or an infinity (float32 overflow included)."""
    if not np.isfinite(values).all():
        raise BadValueError(
            f"environment {spec.env!r} (seed {state.seed}, step {state.steps} since that seed) "
            f"returned {what} "
            f"{np.array2string(np.asarray(values), threshold=8)}: every number must be finite in "
            "float32; clip or "
            "repair it in the environment"
        )
