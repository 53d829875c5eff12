"""An environment that costs nothing and says where it is: whatever is lost or doubled shows.

Used as rates.null_env:Null. Its observation is (number of the environment in its process, episode,
step): row i of its lane must be (number, i // (LENGTH + 1), i % (LENGTH + 1)), boundaries included.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np

LENGTH = 1000  # steps of an episode; every other one ends by time limit
_numbers = itertools.count()

Obs = np.ndarray[Any, np.dtype[np.float32]]


class Null(gym.Env[Obs, Any]):
    """Two actions without effect; the reward of a step is its number in the episode, from 1."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 2.0**24, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.where = np.array([next(_numbers), -1, 0], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        self.where[1] += 1
        self.where[2] = 0
        return self.where, {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        self.where[2] += 1
        at = int(self.where[2])
        over, by_time = at == LENGTH, self.where[1] % 2 == 1
        return self.where, float(at), bool(over and not by_time), bool(over and by_time), {}


class Stamping(Null):
    """In a worker, appends the monotonic time of its first step to the file $FDQL_BENCH_STAMPS.

    Not where a run looks at its environment beforehand, nor in evaluation.
    """

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        program = sys.modules["__main__"].__spec__
        if program and program.name == "fdql.proc.env_worker" and not self.where[1:].any():
            with open(os.environ["FDQL_BENCH_STAMPS"], "a") as file:
                file.write(f"{time.monotonic()}\n")
        return super().step(action)


class Sleeping(Null):
    """Waits 5 ms in every step, as for a simulator elsewhere: what remains is the engine's cost."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        time.sleep(0.005)
        return super().step(action)
