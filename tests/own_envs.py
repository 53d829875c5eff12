"""Environments for tests: ones that tell where they are, ones that misbehave, ones that are easy to
solve.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from fdql.shm.layout import KIND_SLOTS

Obs = np.ndarray[Any, np.dtype[np.float32]]


class Counting(gym.Env[Obs, Any]):
    """Observation (episode, step); reward = step; ends by itself every 7 steps, by time limit every
    other time.

    Nothing about it can be confused: a transition that crosses a reset shows in its numbers.
    """

    length = 7

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1e6, 1e6, (2,), np.float32)
        self.action_space: gym.Space[Any] = gym.spaces.Discrete(3)
        self.episode, self.at = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self._obs(), {}

    def _obs(self) -> Obs:
        return np.array([self.episode, self.at], dtype=np.float32)

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        self.at += 1
        over = self.at == self.length
        by_time = self.episode % 2 == 1
        return self._obs(), float(self.at), over and not by_time, over and by_time, {}


class EndsTwice(Counting):
    """Its last step is terminal and at the time limit, as Gymnasium's TimeLimit may say."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, *_, info = super().step(action)
        return obs, reward, self.at == self.length, self.at == self.length, info


class Bandit(Counting):
    """Episodes of one step, thousands of them a second; it cannot be closed."""

    length = 1

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, _, *over = super().step(action)
        return obs, self.np_random.random(), *over  # type: ignore[return-value]

    def close(self) -> None:
        raise RuntimeError("Not connected to physics server.")


class ManyMuscles(Counting):
    """5,000 action components: what must be known of them is longer than a command line may be."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-1.1, 1.1, (5000,), np.float32)


class Slow(Counting):
    """A step takes two milliseconds, and it talks."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        print("stepping")
        time.sleep(0.002)
        return super().step(action)


class Steering(gym.Env[Obs, Any]):
    """One step, one number: the reward is 1 - |action - obs|. Optimal return 0.9 and more within a
    minute.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(
            np.array([-3.0], np.float32), np.array([1.0], np.float32)
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.goal = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.goal, {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        reward = 1.0 - abs(float(action[0]) - float(self.goal[0]))
        self.at += 1
        self.goal = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.goal, reward, False, self.at == 10, {}


class Clock(gym.Env[Obs, Any]):
    """Reward 1 for ever, cut by a time limit every 10 steps; nothing to see."""

    terminates = False

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.at = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        self.at += 1
        over = self.at == 10
        obs = np.zeros(1, dtype=np.float32)
        return obs, 1.0, over and self.terminates, over and not self.terminates, {}


class Doom(Clock):
    """The same, but the tenth step is the end."""

    terminates = True


class OddPendulum(gym.Wrapper[Obs, Any, Obs, Any]):
    """Pendulum-v1 in the units of nobody: observations times 1e-6, 1, 1e6, torque times 1e-6,
    reward times `reward`.
    """

    reward = 1e6

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = gym.spaces.Box(-1e7, 1e7, (3,), np.float32)
        self.action_space = gym.spaces.Box(-2e-6, 2e-6, (1,), np.float32)

    def _obs(self, obs: Obs) -> Obs:
        return (obs * np.array([1e-6, 1, 1e6])).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._obs(obs), info

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action * 1e6)
        return self._obs(obs), self.reward * float(reward), terminated, truncated, info


class FaintPendulum(OddPendulum):
    """... with rewards that hardly are."""

    reward = 1e-6


class Faulty(Counting):
    """Misbehaves at step `when` of the process, in the way of its subclass."""

    when = 300

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        self.total += 1
        result = super().step(action)
        return self.fault(result) if self.total == self.when else result

    def fault(self, result: Any) -> Any:
        raise RuntimeError("this environment breaks at its 300th step")


class NanObservation(Faulty):
    """Returns a NaN observation."""

    def fault(self, result: Any) -> Any:
        return np.array([np.nan, 0], dtype=np.float32), *result[1:]


class InfReward(Faulty):
    """Returns an infinite reward."""

    def fault(self, result: Any) -> Any:
        return result[0], float("inf"), *result[2:]


class Exits(Faulty):
    """Calls exit()."""

    def fault(self, result: Any) -> Any:
        raise SystemExit(0)


class Dies(Faulty):
    """Is killed."""

    def fault(self, result: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return result


class DiesYoung(Dies):
    """Is killed soon after it has been looked at."""

    when = 210


class FlipsABit(Faulty):
    """A stray pointer: from then on, it flips a bit of the first observation in shared memory."""

    def fault(self, result: Any) -> Any:
        threading.Thread(target=self.flip, daemon=True).start()
        return result

    def flip(self) -> None:
        lines = Path("/proc/self/maps").read_text().splitlines()
        first, last = (next(x for x in lines if "memfd:fdql" in x).split()[0]).split("-")
        size = int(last, 16) - int(first, 16)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(first, 16)))
        sections = memory[64 : 64 + 32 * 126].view(np.uint64).reshape(-1, 4)
        slots = int(sections[sections[:, 0] == KIND_SLOTS, 1][0])
        rows = slots + int(memory[slots + 48 : slots + 56].view(np.uint64)[0])
        while True:
            memory[rows] ^= 0x10
            time.sleep(0.001)


class Hangs(Faulty):
    """Never returns from step."""

    def fault(self, result: Any) -> Any:
        signal.pause()
        return result


class BlocksTheCheckpoint(Counting):
    """Puts a file where the run's checkpoints are to be: saving must fail."""

    def __init__(self) -> None:
        super().__init__()
        place = Path(os.environ["BLOCKED_PLACE"])
        if place.parent.is_dir():
            place.write_text("in the way")


class BreaksAtReset(Counting):
    """Cannot be reset."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        raise RuntimeError("no reset today")


class UnboundedAction(Counting):
    """Action space without bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class MultiAction(Counting):
    """Unsupported action space."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([2, 3])


class WholeSteps(Counting):
    """A Box of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(0, 4, (2,), np.int64)


class DictObservation(Counting):
    """Unsupported observation space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({"a": gym.spaces.Discrete(2)})  # type: ignore[assignment]


class Picture(Counting):
    """Images: every number of one says which it is, or where in it when `places`."""

    shape: tuple[int, ...] = (40, 40)
    places = False

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, self.shape, np.uint8)  # type: ignore[assignment]

    def _obs(self) -> Any:
        if self.places:
            return np.arange(np.prod(self.shape)).astype(np.uint8).reshape(self.shape)
        return np.full(self.shape, (10 * (self.episode + 1) + self.at) % 256, dtype=np.uint8)


class Coloured(Picture):
    """Channels last."""

    shape = (37, 41, 3)
    places = True


class Stacked(Picture):
    """Five frames that the environment stacked itself."""

    shape = (5, 36, 40)
    places = True


class GreyFirst(Picture):
    """One channel, first."""

    shape = (1, 36, 40)
    places = True


class Matrix(Counting):
    """Numbers in rows and columns, and no image."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (40, 64), np.float32)


class Dark(Picture):
    """Planes of zeros and ones."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 1, (4, 40, 40), np.uint8)  # type: ignore[assignment]


class ScaledPicture(Picture):
    """Says 0..1 as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 1, (40, 40), np.float32)


def shaped() -> gym.Env[Any, Any]:
    """MountainCar with another reward: no threshold of the registry's is one of it."""
    return gym.wrappers.TransformReward(gym.make("MountainCar-v0"), lambda r: float(r) + 100.0)


class Grid(Picture):
    """A small image: MiniGrid's."""

    shape = (7, 7, 3)


class ManyBands(Picture):
    """Neither colours nor frames."""

    shape = (84, 84, 5)


class ColouredStack(Picture):
    """Stacked before it was made grey."""

    shape = (4, 84, 84, 3)


class Screen(Picture):
    """Too large: an Atari screen as it is."""

    shape = (210, 160, 3)


class FloatPicture(Picture):
    """Says uint8 and returns 0..1."""

    def _obs(self) -> Any:
        return super()._obs() / 255.0


class Lives(Picture):
    """A game of 7 steps as ale_py plays it: 2 lives, one lost at step 3, the last at step 7, which
    a time limit ends instead in every other game. Rewards 5, -2, 0, 5, -2, 0, 5.
    """

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed)[0], {"lives": 2}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, _ = super().step(action)
        lives = 2 if self.at < 3 else 0 if terminated else 1
        return obs, (0.0, 5.0, -2.0)[self.at % 3], terminated, truncated, {"lives": lives}


class Huge(Counting):
    """Observations so wide that a replay of them fits nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (60_000,), np.float32)


not_callable = 3


def returns_text() -> str:
    """Not a factory of environments."""
    return "hello"
