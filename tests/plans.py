"""Small run plans for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdql.config import Config, EvalConfig, ExploreConfig, ReplayConfig, SacConfig
from fdql.envs import describe, make_env
from fdql.machine import resolve
from fdql.proc.memory import RunPlan


def small_config(env: str, **changes: Any) -> Config:
    """Small networks, a short warm-up, a small replay, one worker."""
    values: dict[str, Any] = {
        "env": env,
        "sac": SacConfig(critic_width=16, actor_width=16, batch_size=32),
        "replay": ReplayConfig(capacity=4096),
        "explore": ExploreConfig(warmup_steps=64),
        "eval": EvalConfig(episodes=4),
        "stop_at_return": "never",
        "workers": 1,
    }
    return Config(**(values | changes))


def small_plan(env: str, run_dir: Path, **changes: Any) -> RunPlan:
    """A plan for one worker of 4 environments in 2 groups, unless told otherwise."""
    config = resolve(small_config(env, **({"envs_per_worker": 4} | changes)), cores=2)
    probe = make_env(env)
    spec = describe(env, probe)
    probe.close()
    return RunPlan(config=config, env=spec, run_dir=str(run_dir))
