"""What a step of an environment costs, measured before a run: it divides the cores (machine.py)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

WAIT_SECONDS = 1.0  # after which an environment counts as slow
SECONDS, STEPS = 0.03, 200  # of stepping, whichever ends first


def step_cost_us(env: gym.Env[Any, Any], seed: int) -> float:
    """Median time of a step with random actions, microseconds, in about 30 ms.

    Infinite when reset and three steps take longer than a second, 0 when it cannot be told: the
    environment fails (its worker will say why), or the system cannot fork. Measured in a forked
    process, so that an environment that hangs, prints or ends its process does not do so here.
    """
    if not hasattr(os, "fork"):
        return 0.0
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # of forking beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.write(writer, repr(_median_step_us(env, seed)).encode())
        finally:
            os._exit(0)
    with contextlib.suppress(OSError):  # whoever comes first; the child may be gone
        os.setpgid(child, child)
    os.close(writer)
    try:
        heard = bool(select.select([reader], [], [], WAIT_SECONDS)[0])
        said = os.read(reader, 64).decode() if heard else "inf"
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with what a reset may have started
        os.waitpid(child, 0)
    return float(said or 0.0)


def _median_step_us(env: gym.Env[Any, Any], seed: int) -> float:
    env.action_space.seed(seed)
    env.reset(seed=seed)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or (len(times) < STEPS and time.perf_counter() < end):
        action = env.action_space.sample()
        t0 = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(time.perf_counter() - t0)
        if terminated or truncated:
            env.reset()
    return 1e6 * float(np.median(times))
