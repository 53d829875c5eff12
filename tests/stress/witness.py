"""Processes and environments of a real run that leave evidence, for kill_case.py.

Every observation says whose it is: (pid of the worker, index of the environment in it, number).
What must come of it, action, reward and flags, is a function of the number, so each stored row
proves that it was handed over whole, once, and with the action that answered it. Trainer, inference
and evaluator run as they are, but for: inference chooses the action that belongs to the
observation (after the true forward pass), every published policy's checksum is written down and
every reader compares it, the trainer writes its replay into a file when it leaves, and it ingests
slowly in the warm-up, so that the ring is often full.

    python -m witness PLAN FD FD PID     with WITNESS=trainer|inference|evaluator
"""

from __future__ import annotations

import mmap
import os
import sys
import time
import zlib
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

ACTIONS = 32
EPISODE = 8  # observations of one: a first, six, a final one
SLOW_STEPS = 500  # while so few are stored, ingest takes SLOW_SECONDS a call
SLOW_SECONDS = 0.01


def action_of(index: Any, number: Any) -> Any:
    """The action that answers an observation."""
    return (13 * number + 5 * index) % ACTIONS


def reward_of(number: Any, action: Any) -> Any:
    """Reward of the step from observation `number` by `action`."""
    return (7 * number + action) % 1000


def place() -> Path:
    """Where the evidence of this run goes."""
    return Path(os.environ["WITNESS_PLACE"])


class Numbered(gym.Env[NDArray[np.float32], int]):
    """Counts its observations, and writes the number of the newest into a file before it returns
    it. Every other episode ends by itself, the others by time limit.
    """

    indices = count()

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1 << 24, (3,), np.float32)
        self.action_space: Any = gym.spaces.Discrete(ACTIONS)
        self.index, self.number = next(self.indices), -1
        path = place() / f"env-{os.getpid()}-{self.index}"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self.newest = mmap.mmap(file.fileno(), 8)

    def _observe(self) -> NDArray[np.float32]:
        self.number += 1
        self.newest[:] = self.number.to_bytes(8, "little")
        return np.array([os.getpid(), self.index, self.number], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: int) -> Any:
        reward = reward_of(self.number, int(action))
        obs = self._observe()
        over = self.number % EPISODE == EPISODE - 1
        odd = self.number // EPISODE % 2 == 1
        return obs, float(reward), over and not odd, over and odd, {}

    def close(self) -> None:
        self.newest.close()


class Snapshots:
    """A reader of weights that compares each snapshot with the checksum written at publication."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.pinned = inner, (0, b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def acquire(self) -> tuple[int, memoryview]:
        version, data = self.pinned = self.inner.acquire()
        self.check()
        return version, data

    def release(self) -> None:
        self.check()  # unchanged while it was pinned
        self.pinned = (0, b"")
        self.inner.release()

    def check(self) -> None:
        version, data = self.pinned
        if version:
            lines = (place() / "published").read_text().splitlines()
            if f"{version} {zlib.crc32(data)}" not in lines:
                raise RuntimeError(f"mixed snapshot: version {version} is not what was published")


def trainer(memory: Any, events: Any) -> int:
    """The trainer, with a slow beginning and its replay in a file at the end."""
    from fdql.proc import trainer as module

    class Loader(module.Loader):
        def ingest(self) -> int:
            if self.replay.steps < SLOW_STEPS:
                time.sleep(SLOW_SECONDS)
            return super().ingest()

    class Trainer(module.Trainer):
        def publish(self) -> None:
            if self.updates > self.published:
                self.snapshot()
                line = f"{self.updates} {zlib.crc32(self.flat)}\n".encode()
                fd = os.open(place() / "published", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.write(fd, line)
                os.close(fd)
            super().publish()

    loaders: list[Any] = []

    def loader(memory: Any) -> Any:
        loaders.append(Loader(memory))
        return loaders[0]

    module.Loader, module.Trainer = loader, Trainer  # type: ignore[misc, assignment]
    code = module.trainer_main(memory, events)
    rows = loaders[0].replay.rows
    np.savez(
        place() / "replay.npz", obs=rows.obs, flags=rows.flags, reward=rows.reward,
        action=rows.action[:, 0], table=rows.table, steps=loaders[0].replay.steps,
    )  # fmt: skip
    return code


def inference(memory: Any, events: Any) -> int:
    """Inference that forwards, then answers with what belongs to the observation."""
    from fdql.proc import inference as module

    class Explorer(module.Explorer):
        def act(self, policy: Any, obs: Any, lanes: Any, warmup: bool, out: Any) -> None:
            super().act(policy, obs, lanes, warmup, out)
            out[:] = action_of(obs[:, 1], obs[:, 2])

    module.Explorer = Explorer  # type: ignore[misc]
    return module.inference_main(memory, events)


def evaluator(memory: Any, events: Any) -> int:
    """The evaluator as it is; what it reads is checked."""
    from fdql.proc.evaluator import evaluator_main

    return evaluator_main(memory, events)


if __name__ == "__main__":
    from fdql.proc.child import run_child
    from fdql.proc.memory import RunMemory

    reader = RunMemory.weights_reader
    RunMemory.weights_reader = lambda self, i: Snapshots(reader(self, i))  # type: ignore[method-assign, assignment, return-value]
    body = {"trainer": trainer, "inference": inference, "evaluator": evaluator}
    sys.exit(run_child(lambda m, events, words: body[os.environ["WITNESS"]](m, events)))
