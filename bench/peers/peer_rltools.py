"""One training run of RLtools' SAC with its own defaults, for bench/learning.py; flags as peer.py.

The loop is compiled for the environment at the first run, which therefore has to be a warm-up.
Environments are gymnasium's, in Python, with actions scaled to [-1, 1] as RLtools asks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import signal
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from rltools import SAC

STEP_LIMIT = 1_000_000  # rows of its replay, and its own end
UPDATES_FROM = 100  # its default: environment steps before the first update, one a step after them


def make(env: str) -> gym.Env:
    """The environment as RLtools takes it."""
    return gym.wrappers.RescaleAction(gym.make(env), np.float32(-1), np.float32(1))


def mean_return(state: object, env: gym.Env, seeds: list[int]) -> float:
    """Mean return of one greedy episode from each of the seeds."""
    returns = []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(state.action(np.float32(obs)))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def main() -> int:
    stop_asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stop_asked.append(number))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=["rltools"], required=True)
    parser.add_argument("--algorithm", choices=["sac"], required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=20, help="per evaluation")
    parser.add_argument("--every-steps", type=int, default=1000, help="between evaluations")
    parser.add_argument("--line", type=float, help="stop at the first mean return >= this")
    parser.add_argument("--total-timesteps", type=int, default=STEP_LIMIT)
    parser.add_argument("--metrics", required=True, help="file for the evaluations' rows")
    args = parser.parse_args()

    training = SAC(
        lambda: make(args.env), enable_evaluation=False, STEP_LIMIT=STEP_LIMIT,
        N_WARMUP_STEPS=UPDATES_FROM, interface_name="fdql_learning",
    )  # fmt: skip
    state, env = training.State(args.seed), make(args.env)
    # The seeds of fdql's evaluations: the same starts for both, the same at every evaluation.
    seeds = [int(s) for s in np.random.SeedSequence([args.seed, 2]).generate_state(args.episodes)]
    steps, passed = 0, False
    while not (passed or stop_asked) and steps < min(args.total_timesteps, STEP_LIMIT):
        state.step()
        steps += 1
        if steps % args.every_steps:
            continue
        mean = mean_return(state, env, seeds)
        passed = args.line is not None and mean >= args.line
        row = {
            "eval/env_steps": steps, "eval/updates": max(steps - UPDATES_FROM, 0),
            "eval/mean_reward": mean,
        }  # fmt: skip
        with Path(args.metrics).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    end = {
        "exit_reason": "solved" if passed else "interrupted" if stop_asked else "total",
        "env_steps": steps,
        "updates": max(steps - UPDATES_FROM, 0),
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in ("rltools", "numpy", "gymnasium")},
    }
    print(json.dumps(end))
    return 130 if stop_asked else 0


if __name__ == "__main__":
    sys.exit(main())
