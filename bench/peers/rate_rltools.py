"""Updates/s of RLtools' SAC at its Pendulum shape (width 64, batch 100), for bench/throughput.py.

Its Python package compiles the training loop for the environment (at the first run); one step() is
one environment step and, after the warm-up, one update of critics, actor and temperature. The
environment here costs next to nothing, and what a step of the warm-up takes is subtracted.
"""

from __future__ import annotations

import argparse
import json
import time

import gymnasium as gym
import numpy as np
from rltools import SAC

WARM_STEPS = 5_000


class Pendulumlike(gym.Env):
    """Three numbers, one action in [-1, 1]; the reward says how large it was."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-8, 8, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.noise = np.random.default_rng(0).standard_normal((1024, 3)).astype(np.float32)
        self.at = 0

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return self.noise[0], {}

    def step(self, action):
        self.at += 1
        return self.noise[self.at], -(float(action[0]) ** 2), False, False, {}


gym.register("Pendulumlike-v0", Pendulumlike, max_episode_steps=200)  # its loop reads the spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    training = SAC(
        lambda: gym.make("Pendulumlike-v0", disable_env_checker=True),
        enable_evaluation=False, STEP_LIMIT=10_000_000, REPLAY_BUFFER_CAP=100_000,
        N_WARMUP_STEPS=WARM_STEPS, interface_name="fdql_rate",
    )  # fmt: skip
    state = training.State(0)
    start = time.perf_counter()
    for _ in range(WARM_STEPS - 100):
        state.step()
    idle = (time.perf_counter() - start) / (WARM_STEPS - 100)
    for _ in range(300):
        state.step()
    updates, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        for _ in range(16):
            state.step()
        updates += 16
    each = (time.perf_counter() - start) / updates
    if not np.isfinite(state.action(np.zeros(3))).all():
        raise SystemExit("the policy is not finite")
    print(
        json.dumps(
            {"value": 1 / (each - idle), "step_us": 1e6 * idle, "with_update_us": 1e6 * each}
        )
    )


if __name__ == "__main__":
    main()
