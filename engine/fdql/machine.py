"""What this machine allows: cores, memory; what the configuration leaves open is derived from them
here.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil

from fdql import __version__
from fdql.config import Config, ConfigError
from fdql.envs import EnvSpec
from fdql.proc.memory import RunPlan
from fdql.replay.size import default_capacity, nbytes_for, row_nbytes

USABLE = 0.8  # share of the available memory that the replay may take
WORKERS_PER_CORE = (
    16  # beyond this processes only take turns; the rule is there to catch typing errors
)


def allowed_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the cgroup's CPU quota. At least 1."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return max(1, cores)


def resolve(config: Config, *, cores: int) -> Config:
    """Fill what is derived from the machine. Raises ConfigError where the machine does not allow a
    value.
    """
    limit = WORKERS_PER_CORE * cores
    workers = config.workers if config.workers is not None else max(1, cores - 2)
    if workers > limit:
        raise ConfigError(
            f"workers = {workers}: at most {WORKERS_PER_CORE} per core, and this process may use "
            f"{cores} "
            f"core(s); {limit} works, {max(1, cores - 2)} is the default here"
        )
    if config.serial:
        workers = 1
    envs = (
        config.envs_per_worker if config.envs_per_worker is not None else 4 * config.engine.groups
    )
    learner = config.learner
    if learner == "auto":
        learner = "torch" if config.device == "cuda" else "compiled"
    device: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" else "cpu"
    engine = config.engine
    if engine.learner_threads is None:
        engine = replace(engine, learner_threads=min(2, cores))
    return replace(
        config, workers=workers, envs_per_worker=envs, learner=learner, device=device, engine=engine
    )


def available_memory() -> int:
    """Bytes that this process may still use: free memory, cut by the cgroup's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return free


def check_memory(config: Config, env: EnvSpec) -> tuple[Config, int]:
    """Fix the replay's capacity; returns it with its bytes when full.

    Raises ConfigError when that cannot fit this machine.
    """
    assert config.workers is not None
    assert config.envs_per_worker is not None
    lanes = config.workers * config.envs_per_worker
    per_row = row_nbytes(env.obs_dim, env.action_dim, env.discrete)
    capacity = config.replay.capacity or default_capacity(env.obs_dim, env.action_dim, env.discrete)
    needed = nbytes_for(capacity, lanes, env.obs_dim, env.action_dim, env.discrete)
    usable = int(available_memory() * USABLE)
    if needed > usable:
        raise ConfigError(
            f"replay.capacity = {capacity}: {needed / 2**30:.2f} GiB for observations of "
            f"{env.obs_dim} numbers, and {usable / 2**30:.2f} GiB are usable; "
            f"{max(0, usable // per_row - 8 * lanes)} fits"
        )
    return replace(config, replay=replace(config.replay, capacity=capacity)), needed


def banner(plan: RunPlan, cores: int, replay: int) -> list[str]:
    """What a run says at its start: machine, processes, memory, seeds."""
    config, env = plan.config, plan.env
    kind = (
        f"{env.action_dim} discrete actions"
        if env.discrete
        else f"{env.action_dim} continuous action components"
    )
    lines = [
        f"fdql {__version__}: {config.env}, {env.obs_dim} observation components, {kind}, seed "
        f"{config.seed}",
        f"{cores} core(s) usable; "
        + (
            "one process, in lockstep"
            if config.serial
            else f"{plan.workers} worker(s), inference, trainer, evaluator"
        )
        + f"; {plan.lanes} environments; {config.learner} learner"
        + (f", {config.engine.learner_threads} thread(s)" if config.learner == "compiled" else ""),
        f"replay {config.replay.capacity:,} transitions, at most {replay / 2**20:,.0f} MiB; "
        + ("unthrottled" if config.ratio == "free" else f"{config.ratio:g} samples per insert"),
        f"writing {plan.run_dir}",
    ]
    return lines
