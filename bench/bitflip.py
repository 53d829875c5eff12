"""Bits to be flipped until they are the goal's (Andrychowicz 2017, section 3.1): a reward that
chance does not find, the task that hindsight goals were made for. fdql has none (docs/adr/0017).

    python bench/learning.py --env bench.bitflip:BitFlip15 --who fdql --seeds 0 --max-seconds 60
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class BitFlip(gym.Env[Any, Any]):
    """State and goal, `bits` each; an action flips one. 1 when they are the same, which ends it;
    0 until then, at most `bits` steps: the mean return is the share of goals that are reached.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.steps = bits, 0
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2 * bits,), np.float32)
        self.action_space = gym.spaces.Discrete(bits)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A random state and another one as the goal."""
        super().reset(seed=seed)
        self.steps = 0
        self.row = self.np_random.integers(0, 2, 2 * self.bits).astype(np.float32)
        if self._reached():
            self.row[0] = 1 - self.row[0]
        return self.row.copy(), {}

    def _reached(self) -> bool:
        return bool((self.row[: self.bits] == self.row[self.bits :]).all())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Flip bit `action` of the state."""
        self.row[action] = 1 - self.row[action]
        self.steps += 1
        reached = self._reached()
        return self.row.copy(), float(reached), reached, self.steps >= self.bits, {}


def BitFlip15() -> BitFlip:
    """15 bits."""
    return BitFlip(15)
