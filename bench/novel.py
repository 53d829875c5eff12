"""Control tasks whose velocities are hidden, as RL Zoo hides them for PPO-LSTM (its
MaskVelocityWrapper sets them to 0), with the newest four observations instead of a memory.

    python bench/learning.py --env bench.novel:CartPoleNoVel --who fdql --seeds 0
    python main.py --env bench.novel:PendulumNoVel
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation, TransformObservation

FRAMES = 4

Env = gym.Env[Any, Any]


def _without(env: str, seen: list[float]) -> Env:
    made: Env = gym.make(env)
    mask = np.array(seen, dtype=np.float32)
    hidden: Env = TransformObservation(made, lambda obs: obs * mask, made.observation_space)
    return FrameStackObservation(hidden, FRAMES)


def CartPoleNoVel() -> Env:
    """CartPole-v1: position and angle, neither's velocity."""
    return _without("CartPole-v1", [1, 0, 1, 0])


def PendulumNoVel() -> Env:
    """Pendulum-v1: where it points, not how fast it turns."""
    return _without("Pendulum-v1", [1, 1, 0])


def MountainCarContinuousNoVel() -> Env:
    """MountainCarContinuous-v0: the position alone."""
    return _without("MountainCarContinuous-v0", [1, 0])
