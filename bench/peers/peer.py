"""One training run of Stable-Baselines3 or SBX with RL Zoo's settings, for bench/learning.py.

Runs in the peer's own virtual environment and imports nothing of fdql. Appends one row for every
evaluation to --metrics, under the keys of fdql's metrics.jsonl; bench/learning.py puts the clock on
them. The last line of standard output is a JSON object. SIGINT ends the run orderly, exit 130.
"""

from __future__ import annotations

import signal

stop_asked: list[int] = []
signal.signal(
    signal.SIGINT, lambda number, frame: stop_asked.append(number)
)  # also while importing

import argparse  # noqa: E402
import importlib  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.utils import LinearSchedule  # noqa: E402
from zoo import SETTINGS  # noqa: E402

MOST_ENVS = 32  # evaluation environments side by side, as in fdql
PACKAGES = {
    "sb3": ("stable_baselines3", ("stable-baselines3", "torch", "numpy", "gymnasium")),
    "sbx": ("sbx", ("sbx-rl", "stable-baselines3", "jax", "jaxlib", "flax", "numpy", "gymnasium")),
}


class Evaluations(BaseCallback):
    """Greedy episodes every `every` environment steps, once the policy has changed since the last.

    line    stop at the first mean return that reaches it; None: never
    most    environment steps after which to stop
    """

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.every, self.line, self.most = args.every_steps, args.line, args.total_timesteps
        self.envs = [gym.make(args.env) for _ in range(min(args.episodes, MOST_ENVS))]
        # The seeds of fdql's evaluations: the same starts for both, the same at every evaluation.
        state = np.random.SeedSequence([args.seed, 2]).generate_state(args.episodes)
        self.seeds = [int(s) for s in state]
        self.metrics = Path(args.metrics)
        self.next_steps, self.evaluated, self.passed = self.every, 0, False

    def goes_on(self) -> bool:
        """Neither passed, nor asked to stop, nor at the last step."""
        return not (self.passed or stop_asked or self.num_timesteps >= self.most)

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next_steps and self.updates() > self.evaluated:
            self.next_steps = self.num_timesteps - self.num_timesteps % self.every + self.every
            self.evaluate()
        return self.goes_on()

    def updates(self) -> int:
        """Gradient steps so far; PPO counts its passes over the rollout instead."""
        n = int(self.model._n_updates)
        if hasattr(self.model, "n_epochs"):
            return n * -(-self.model.n_steps * self.model.n_envs // self.model.batch_size)
        return n

    def evaluate(self) -> None:
        """Play the episodes with the present policy and write the row; nothing when interrupted."""
        mean = self._play()
        if mean is None:
            return
        self.evaluated = self.updates()
        self.passed = self.line is not None and mean >= self.line
        row = {
            "eval/env_steps": self.num_timesteps,
            "eval/updates": self.evaluated,
            "eval/mean_reward": mean,
        }
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _play(self) -> float | None:
        """Mean return of the episodes, None when interrupted.

        Side by side, and always the full batch, because JAX compiles for every shape.
        """
        n = len(self.envs)
        returns = np.zeros(len(self.seeds))
        playing: list[int | None] = list(range(n))  # episode of each environment, None: no more
        obs = np.stack([env.reset(seed=self.seeds[i])[0] for i, env in enumerate(self.envs)])
        started = n
        while any(e is not None for e in playing):
            if stop_asked:
                return None
            actions, _ = self.model.predict(obs, deterministic=True)
            for i, episode in enumerate(playing):
                if episode is None:
                    continue
                obs[i], reward, terminated, truncated, _ = self.envs[i].step(actions[i])
                returns[episode] += float(reward)
                if not (terminated or truncated):
                    continue
                playing[i] = started if started < len(self.seeds) else None
                if playing[i] is not None:
                    obs[i], _ = self.envs[i].reset(seed=self.seeds[started])
                    started += 1
        return float(returns.mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=sorted(PACKAGES), required=True)
    parser.add_argument("--algorithm", choices=sorted({a for a, _ in SETTINGS}), required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=20, help="per evaluation")
    parser.add_argument("--every-steps", type=int, default=1000, help="between evaluations")
    parser.add_argument("--line", type=float, help="stop at the first mean return >= this")
    parser.add_argument("--total-timesteps", type=int, default=10**9, help="environment steps")
    parser.add_argument("--metrics", required=True, help="file for the evaluations' rows")
    args = parser.parse_args()
    if (args.algorithm, args.env) not in SETTINGS:
        parser.error(f"no settings for {args.algorithm} on {args.env}; zoo.py has {list(SETTINGS)}")

    if "Bullet" in args.env:
        importlib.import_module("pybullet_envs_gymnasium")  # registers them
    module, packages = PACKAGES[args.library]
    if (args.library, args.algorithm) == ("sb3", "qrdqn"):
        module, packages = "sb3_contrib", ("sb3-contrib", *packages)
    algorithm = getattr(importlib.import_module(module), args.algorithm.upper())
    settings: dict[str, Any] = {
        key: LinearSchedule(float(v[4:]), 0.0, 1.0) if str(v).startswith("lin_") else v
        for key, v in SETTINGS[args.algorithm, args.env].items()
    }
    n_timesteps = settings.pop("n_timesteps")
    scheduled = any(isinstance(v, LinearSchedule) for v in settings.values())
    env = make_vec_env(args.env, n_envs=settings.pop("n_envs", 1), seed=args.seed)
    model = algorithm("MlpPolicy", env, seed=args.seed, device="cpu", **settings)
    evaluations = Evaluations(args)
    while evaluations.goes_on():  # past n_timesteps at the final settings, unless those are zero
        model.learn(n_timesteps, evaluations, log_interval=None, reset_num_timesteps=False)
        if scheduled:
            break
    if not stop_asked and not evaluations.passed and evaluations.updates() > evaluations.evaluated:
        evaluations.evaluate()  # the last policy
    end = {
        "exit_reason": "solved" if evaluations.passed else "interrupted" if stop_asked else "total",
        "env_steps": evaluations.num_timesteps,
        "updates": evaluations.updates(),
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in packages},
    }
    print(json.dumps(end))
    return 130 if stop_asked else 0


if __name__ == "__main__":
    sys.exit(main())
