"""bench/novel.py: what is hidden and what is not; bench/bitflip.py: when the goal is reached."""

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


def test_bits_are_flipped_until_they_are_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import bitflip

    env = bitflip.BitFlip15()
    for seed in range(20):
        first, _ = env.reset(seed=seed)
        assert np.array_equal(env.reset(seed=seed)[0], first)
        wrong = np.flatnonzero(first[:15] != first[15:])
        assert len(wrong)
        for k in wrong:
            obs, reward, reached, _, _ = env.step(k)
            assert env.observation_space.contains(obs)
            assert (reward, reached) == ((1.0, True) if k == wrong[-1] else (0.0, False))
        assert np.array_equal(obs[:15], first[15:])
        assert np.array_equal(obs[15:], first[15:])
    env.reset(seed=0)
    ends = [env.step(0)[3] for _ in range(15)]
    assert ends == [False] * 14 + [True]
