"""Steps/s of a vector environment with a torch policy in the loop, for bench/throughput.py.

    --vec gymnasium  gymnasium.vector.AsyncVectorEnv, one process per environment
    --vec envpool    EnvPool's own environments in C++ (CartPole-v1, Pendulum-v1, Pong-v5)
    --vec atari      ale_py.vector_env.AtariVectorEnv (--env Pong-v5)

The policy has the sizes of fdql's default, sampling its action: an MLP, before it convolutions
where observations are images. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

ENVS = 16


def make(args: argparse.Namespace) -> Any:
    if args.vec == "envpool":
        import envpool

        return envpool.make(args.env, env_type="gymnasium", num_envs=ENVS, num_threads=args.threads)
    if args.vec == "atari":
        from ale_py.vector_env import AtariVectorEnv

        game = args.env.partition("-")[0].lower()
        return AtariVectorEnv(
            game, num_envs=ENVS, num_threads=args.threads, repeat_action_probability=0.0
        )
    if "Bullet" in args.env:
        importlib.import_module("pybullet_envs_gymnasium")  # registers them
    return gym.vector.AsyncVectorEnv([lambda: gym.make(args.env)] * ENVS)


def encoder(channels: int) -> list[torch.nn.Module]:
    """Convolutions of 84 x 84 images, as fdql has them, to 256 features."""
    layers: list[torch.nn.Module] = []
    for out, kernel, stride in ((16, 8, 4), (32, 4, 2), (32, 3, 1)):
        layers += [torch.nn.Conv2d(channels, out, kernel, stride), torch.nn.ReLU()]
        channels = out
    return [*layers, torch.nn.Flatten(), torch.nn.Linear(32 * 7 * 7, 256), torch.nn.ReLU()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vec", choices=("gymnasium", "envpool", "atari"), required=True)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    envs = make(args)
    obs, _ = envs.reset()
    space = getattr(envs, "single_action_space", envs.action_space)
    discrete = hasattr(space, "n")
    out = int(space.n) if discrete else 2 * int(space.shape[-1])
    images = obs.ndim == 4
    mlp = torch.nn.Sequential(
        torch.nn.Linear(256 if images else obs.shape[-1], 128), torch.nn.ReLU(),
        torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, out),
    )  # fmt: skip
    policy = torch.nn.Sequential(*encoder(obs.shape[1]), *mlp) if images else mlp
    steps, start = 0, 0.0
    with torch.inference_mode():
        for length in (0.5, args.seconds):  # warm, then counted
            start, steps = time.perf_counter(), 0
            while time.perf_counter() - start < length:
                x = np.asarray(obs, np.float32)
                head = policy(torch.as_tensor(x / 255.0 if images else x))
                if discrete:
                    actions = torch.multinomial(head.softmax(-1), 1)[:, 0].numpy()
                else:
                    mean, log_std = head.chunk(2, -1)
                    noise = torch.randn_like(mean) * log_std.clamp(-5, 2).exp()
                    unit = torch.tanh(mean + noise).numpy()
                    actions = space.low + (unit + 1) * (space.high - space.low) / 2
                obs = envs.step(actions.astype(space.dtype))[0]
                steps += ENVS
    rate = steps / (time.perf_counter() - start)
    if not np.isfinite(obs).all():
        raise SystemExit("observations are not finite")
    envs.close()
    print(json.dumps({"value": rate, "envs": ENVS}))


if __name__ == "__main__":
    main()
