"""The limits of the machine that stand beside the measurements; prints one JSON object.

python bench/rates/limits.py raw --env CartPole-v1        env.step alone, random actions
python bench/rates/limits.py gemm                         best float32 matrix product, one thread
python bench/rates/limits.py memcpy                       copies out of cache, bytes/s of payload
python bench/rates/limits.py atari --threads 2            ale_py's AtariVectorEnv on Pong
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run by itself


def raw(env: str, seconds: float) -> dict[str, Any]:
    """Steps/s of one environment with random actions drawn beforehand, resets included."""
    from fdql.envs import make_env

    made = make_env(env)
    made.action_space.seed(0)
    actions = [made.action_space.sample() for _ in range(1024)]
    made.reset(seed=0)
    steps, start = 0, 0.0
    for length in (min(0.5, seconds), seconds):  # warm, then counted
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < length:
            for action in actions[:32]:
                _, _, terminated, truncated, _ = made.step(action)
                if terminated or truncated:
                    made.reset()
            steps += 32
    rate = steps / (time.perf_counter() - start)
    made.close()
    return {"value": rate}


def gemm() -> dict[str, Any]:
    """Multiply-adds/s, and those that one update of each shape needs."""
    from bench_update import ROWS, multiply_adds, sgemm_rate

    from rates.training import SHAPES

    needs = {name: multiply_adds(s.net) * s.batch / ROWS for name, s in SHAPES.items()}
    return {"value": max(sgemm_rate() for _ in range(5)), "multiply_adds": needs}


def memcpy(seconds: float) -> dict[str, Any]:
    """Bytes/s copied between two buffers of 64 MiB."""
    import numpy as np

    source, target = np.ones(1 << 26, np.uint8), np.zeros(1 << 26, np.uint8)
    target[:] = source
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        target[:] = source
        best = max(best, source.size / (time.perf_counter() - start))
    return {"value": best}


def atari(threads: int, seconds: float, envs: int = 8) -> dict[str, Any]:
    """Steps/s (of 4 frames) of ale_py's vector environment: Pong, 84 x 84 x 4, not sticky."""
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv

    made = AtariVectorEnv("pong", num_envs=envs, num_threads=threads, repeat_action_probability=0.0)
    made.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, int(made.single_action_space.n), (256, envs))
    steps, start = 0, 0.0
    for length in (min(0.5, seconds), seconds):
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < length:
            made.step(actions[steps // envs % 256])
            steps += envs
    rate = steps / (time.perf_counter() - start)
    made.close()
    return {"value": rate, "envs": envs, "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("raw", "gemm", "memcpy", "atari"))
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    if args.what == "raw":
        answer = raw(args.env, args.seconds)
    elif args.what == "gemm":
        answer = gemm()
    elif args.what == "memcpy":
        answer = memcpy(args.seconds)
    else:
        answer = atari(args.threads, args.seconds)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
