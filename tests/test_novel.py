"""bench/novel.py: what is hidden and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.parametrize(
    ("name", "plain", "seen"),
    [
        ("CartPoleNoVel", "CartPole-v1", [0, 2]),
        ("PendulumNoVel", "Pendulum-v1", [0, 1]),
        ("MountainCarContinuousNoVel", "MountainCarContinuous-v0", [0]),
    ],
)
def test_velocities_are_hidden_in_every_frame(
    monkeypatch: pytest.MonkeyPatch, name: str, plain: str, seen: list[int]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import novel

    env, same = getattr(novel, name)(), gym.make(plain)
    frames: list[Any] = [same.reset(seed=3)[0]] * 4
    given, _ = env.reset(seed=3)
    env.action_space.seed(5)
    for _ in range(6):
        assert given.shape == (4, same.observation_space.shape[0])
        assert env.observation_space.contains(given)
        assert np.array_equal(given[:, seen], np.array(frames)[-4:, seen])
        assert not np.delete(given, seen, axis=1).any()
        action = env.action_space.sample()
        given, *rest = env.step(action)
        plain_obs, *plain_rest = same.step(action)
        frames.append(plain_obs)
        assert rest[:3] == plain_rest[:3]
    env.close()
    same.close()
