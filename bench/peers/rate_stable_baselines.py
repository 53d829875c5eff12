"""Rates of Stable-Baselines3 and SBX, for bench/throughput.py; in the peer's own environment.

    acting    vector environments and the policy's own predict(), no training: environment steps/s
    training  train() of SAC on a filled replay buffer: gradient steps/s

Prints one JSON object. Networks for acting are as wide as fdql's default.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

ENVS = 16
FILL_STEPS = 10_000


def acting(args: argparse.Namespace) -> dict[str, Any]:
    """SAC's policy for continuous actions, PPO's for discrete ones (DQN explores all at once)."""
    from stable_baselines3 import PPO, SAC

    kind = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[args.vec]
    envs = make_vec_env(args.env, n_envs=ENVS, seed=0, vec_env_cls=kind)
    algorithm = PPO if hasattr(envs.action_space, "n") else SAC
    model = algorithm("MlpPolicy", envs, device="cpu", policy_kwargs={"net_arch": [128, 128]})
    obs = envs.reset()
    steps, start = 0, 0.0
    for length in (0.5, args.seconds):  # warm, then counted
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < length:
            actions, _ = model.predict(obs, deterministic=False)
            obs, _, _, _ = envs.step(actions)
            steps += ENVS
    rate = steps / (time.perf_counter() - start)
    envs.close()
    return {"value": rate, "envs": ENVS, "policy": algorithm.__name__}


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Gradient steps in calls of `--per-call`: SBX draws and compiles that many in one go."""
    algorithm = importlib.import_module(
        {"sb3": "stable_baselines3", "sbx": "sbx"}[args.library]
    ).SAC
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", batch_size=args.batch, learning_starts=10**9, device="cpu",
        policy_kwargs={"net_arch": [args.width, args.width]}, seed=0,
    )  # fmt: skip
    model.learn(FILL_STEPS)  # random actions: fills the buffer, sets the logger
    updates, start = 0, 0.0
    for length in (1.0, args.seconds):  # compiles and warms, then counted
        model.train(gradient_steps=args.per_call, batch_size=args.batch)
        start, updates = time.perf_counter(), 0
        while time.perf_counter() - start < length:
            model.train(gradient_steps=args.per_call, batch_size=args.batch)
            updates += args.per_call
    rate = updates / (time.perf_counter() - start)
    action, _ = model.predict(np.zeros((1, 3), np.float32), deterministic=True)
    if not np.isfinite(action).all():
        raise SystemExit("the policy is not finite")
    return {"value": rate, "per_call": args.per_call, "width": args.width, "batch": args.batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("acting", "training"))
    parser.add_argument("--library", choices=("sb3", "sbx"), default="sb3")
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--vec", choices=("dummy", "subproc"), default="dummy")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--per-call", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "Bullet" in args.env:
        importlib.import_module("pybullet_envs_gymnasium")  # registers them
    print(json.dumps(acting(args) if args.what == "acting" else training(args)))


if __name__ == "__main__":
    main()
