"""Environment steps/s of Sample Factory's sampler (no learner), for bench/throughput.py.

Its simplified sampling interface with its own worker and inference processes; actions are those of
a random policy of two layers of 128. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time

import gymnasium as gym
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.algo.utils.rl_utils import samples_per_trajectory
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env


def make_env(name: str, cfg: object, env_config: object, render_mode: str | None = None) -> gym.Env:
    if "Bullet" in name:
        importlib.import_module("pybullet_envs_gymnasium")  # registers them
    return gym.make(name, render_mode=render_mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--envs-per-worker", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    register_env(args.env, make_env)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"--env={args.env}", "--device=cpu", "--experiment=rate", f"--train_dir={folder}",
            f"--num_workers={args.workers}", f"--num_envs_per_worker={args.envs_per_worker}",
            "--worker_num_splits=2", "--rollout=32", "--batch_size=512", "--use_rnn=False",
            "--encoder_mlp_layers", "128", "128", "--normalize_input=False", "--async_rl=True",
        ]  # fmt: skip
        cfg_parser, _ = parse_sf_args(words)
        cfg = parse_full_cfg(cfg_parser, words)
        sampler = SyncSamplingAPI(cfg, obtain_env_info_in_a_separate_process(cfg))
        sampler.start()
        steps, start = 0, 0.0
        for length in (2.0, args.seconds):  # warm, then counted
            start, steps = time.perf_counter(), 0
            while time.perf_counter() - start < length:
                trajectory = sampler.get_trajectories_sync()
                if trajectory is None:
                    sys.exit("the sampler stopped")
                steps += samples_per_trajectory(trajectory)
        rate = steps / (time.perf_counter() - start)
    print(json.dumps({"value": rate, "workers": args.workers}), flush=True)
    os._exit(0)  # its processes are ended with this process group; an orderly stop takes seconds


if __name__ == "__main__":
    main()
