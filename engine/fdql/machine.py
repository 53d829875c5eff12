"""What this machine allows: cores, memory; what the configuration leaves open is derived from them
here.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from typing import Literal

import psutil

from fdql import __version__
from fdql.cgroup import cpu_limit, memory_left
from fdql.config import Config, ConfigError
from fdql.env_spec import EnvSpec
from fdql.proc.memory import RunPlan
from fdql.replay.size import check_lanes, default_capacity, nbytes_for, row_nbytes

# Descriptors of the supervisor: its own and a start's short-lived ones; a pidfd and two pipes.
DESCRIPTORS, DESCRIPTORS_PER_PROCESS = 32, 3
# Address space of the trainer without its replay: with less a library or a thread of it fails to
# start, or waits for ever. It takes 680 where it may.
ADDRESS_SPACE_MIB = 480
USABLE = 0.8  # share of the available memory that the replay may take
WORKERS_PER_CORE = 16  # more only take turns; the rule is there to catch typing errors
ENVIRONMENTS = 8  # of a run, by default: what the learner's settings were chosen with
IMAGE_ENVIRONMENTS, IMAGE_RATIO, IMAGE_LEARNING_RATE = 16, 8.0, 5e-4
IMAGE_THREADS = 8  # of the learner, at most: of 256 rows each has 32, and fewer are no work
# Numbers in an observation and an action, together, from which steps are taken for slow: between
# LunarLander's 12 and Hopper's 18 (docs/adr/0016).
LARGE, LARGE_RATIO = 16, 64.0
# Times on one core of about 3.5 GHz: an update of the default networks; what a step costs in the
# worker's loop and in inference. They only divide the cores.
UPDATE_US = 2500.0
IMAGE_UPDATE_US = 72_000.0
LOOP_US = 15.0
# Below it one unthrottled worker asks inference for all it can answer: of CartPole (9 us) two cores
# make 45,000 steps/s with one worker and 28,000 with two.
SATURATING_US = 50.0


def allowed_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the cgroup's CPU quota. At least 1."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limit = cpu_limit()
    if limit is not None:
        cores = min(cores, round(limit))
    return max(1, cores)


def division(steps_us: float, update_us: float, cores: int) -> tuple[int, int]:
    """Workers and learner threads that keep `cores` busy.

    steps_us   time of the environment steps that one update pays for, one core
    update_us  time of one update on one thread

    Two threads shorten an update to about 0.6 of its time. On two cores they help only while the
    environments leave most of a core free, and a second worker only when one cannot keep up; both
    at once take turns and are slower than either (docs/adr/0010).
    """
    if cores == 1:
        return 1, 1
    if cores == 2:
        return (1, 2) if steps_us < update_us else (1 if steps_us < 1.5 * update_us else 2, 1)
    needed = math.ceil(min(cores, 1.2 * steps_us / (0.6 * update_us)))
    return min(max(1, needed), cores - 2), 2


def resolve(
    config: Config, *, cores: int, step_us: float = 0.0, env: EnvSpec | None = None
) -> Config:
    """Fill what is derived from the machine and the environment: `step_us` of a step on one core,
    kinds of observation and action (vectors where `env` is not given).

    Raises ConfigError where the machine does not allow a value.
    """
    pixels = env is not None and env.image is not None
    config = _for_environment(config, env, pixels)
    limit = WORKERS_PER_CORE * cores
    sac, engine = config.sac, config.engine
    update_us = UPDATE_US * (sac.critic_width / 128) ** 2 * sac.batch_size / 256
    if pixels:
        update_us = IMAGE_UPDATE_US * sac.batch_size / 256
    ratio = config.samples_per_insert
    steps = math.inf if ratio == "free" else sac.batch_size / float(ratio)
    derived, threads = division(steps * (step_us + LOOP_US), update_us, cores)
    if ratio == "free" and 0 < step_us < SATURATING_US:
        derived = 1
    workers = config.workers if config.workers is not None else derived
    if pixels:  # what the others leave, and on two cores both: the shares wait for nobody
        threads = min(IMAGE_THREADS, max(min(2, cores), cores - 1 - workers))
    if workers > limit:
        raise ConfigError(
            f"workers = {workers}: at most {WORKERS_PER_CORE} per core, and this process may use "
            f"{cores} core(s); {limit} works, {derived} is the default here"
        )
    if config.serial:
        workers, threads = 1, min(2, cores)  # in lockstep the cores are the learner's
    envs = config.envs_per_worker
    if envs is None:  # the recipe's number of environments, shared out
        recipe = IMAGE_ENVIRONMENTS if pixels else ENVIRONMENTS
        envs = engine.groups * max(1, round(recipe / workers / engine.groups))
    learner = config.learner
    if learner == "auto":
        learner = "torch" if config.device == "cuda" or pixels else "compiled"
    elif learner == "compiled" and pixels:
        raise ConfigError(
            f"learner = 'compiled': {config.env!r} has images, which need convolutions; "
            "learner = 'torch' works, and 'auto' chooses it"
        )
    device: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" else "cpu"
    if learner == "torch" and not pixels:
        threads = 1  # its products are too small to share
    if learner == "compiled" and (engine.learner_threads or 1) > 2:
        raise ConfigError(
            f"engine.learner_threads = {engine.learner_threads}: the compiled learner has one for "
            "each critic; 2 works"
        )
    if engine.learner_threads is None:
        engine = replace(engine, learner_threads=threads)
    return replace(
        config, workers=workers, envs_per_worker=envs, learner=learner, device=device, engine=engine
    )


def _for_environment(config: Config, env: EnvSpec | None, pixels: bool) -> Config:
    """The numbers that the kind of environment decides, where none are given (docs/adr/0012,
    0013, 0016, 0021).
    """
    sac, ratio = config.sac, config.samples_per_insert
    rate, pessimism = sac.step_size, sac.pessimism
    if pixels:
        ratio = IMAGE_RATIO if config.ratio is None else config.ratio
        rate = sac.learning_rate or IMAGE_LEARNING_RATE
    elif env is not None and config.ratio is None and env.obs_dim + env.action_dim >= LARGE:
        ratio = LARGE_RATIO
    if env is not None and sac.head == "hl_gauss":
        pessimism = sac.pessimism_for(env.discrete)
    sac, played = replace(sac, learning_rate=rate, pessimism=pessimism), config.eval
    if env is not None:
        epsilon = env.eval_epsilon if played.epsilon is None else played.epsilon
        played = replace(played, episodes=played.episodes or env.eval_episodes, epsilon=epsilon)
    return replace(config, ratio=ratio, sac=sac, eval=played)


def check_descriptors(config: Config) -> None:
    """Raise the limit of open descriptors to what a run needs, as far as it may be raised.

    Raises ConfigError when that is not enough.
    """
    if sys.platform == "win32" or config.serial:
        return
    import resource

    assert config.workers is not None
    needed = DESCRIPTORS + DESCRIPTORS_PER_PROCESS * (config.workers + 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = (hard - DESCRIPTORS) // DESCRIPTORS_PER_PROCESS - 3
        works = f"workers = {most} works" if most >= 1 else "--serial or a higher limit works"
        raise ConfigError(
            f"workers = {config.workers}: a run with them needs {needed} descriptors, and this "
            f"process may open {hard} (ulimit -n); {works}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def available_memory() -> int:
    """Bytes that this process may still use: free memory, cut by the cgroup's limit."""
    free = int(psutil.virtual_memory().available)
    left = memory_left()
    return free if left is None else min(free, left)


def _check_address_space(replay: int) -> None:
    """Raises ConfigError where a limit leaves the trainer no room for a replay of so many bytes."""
    if sys.platform == "win32":
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return
    needed = (ADDRESS_SPACE_MIB << 20) + replay
    if soft < needed:
        raise ConfigError(
            f"a process may have {soft >> 20} MiB of address space here (ulimit -v {soft >> 10}), "
            f"and the trainer needs more than {needed >> 20}; ulimit -v unlimited works"
        )


def check_memory(config: Config, env: EnvSpec) -> tuple[Config, int]:
    """Fix the replay's capacity; returns it with its bytes when full.

    Raises ConfigError when that cannot fit this machine or this process's limit, or is too little
    for the environments.
    """
    assert config.workers is not None
    assert config.envs_per_worker is not None
    lanes = config.workers * config.envs_per_worker
    per_row = row_nbytes(env.rows)
    capacity = config.replay.capacity or default_capacity(env.rows)
    check_lanes(capacity, lanes, config.replay.n_step, env.rows.stack)
    pair = 2 * env.stack * env.rows.obs_nbytes  # an observation and the next, of a staged batch
    needed = nbytes_for(capacity, lanes, env.rows)
    needed += config.replay.staged_batches * config.sac.batch_size * pair
    usable = int(available_memory() * USABLE)
    if needed > usable:
        raise ConfigError(
            f"replay.capacity = {capacity}: {needed / 2**30:.2f} GiB for observations of "
            f"{env.obs_dim} numbers, and {usable / 2**30:.2f} GiB are usable; "
            f"{max(0, usable // per_row - 8 * lanes)} fits"
        )
    _check_address_space(needed)
    return replace(config, replay=replace(config.replay, capacity=capacity)), needed


def banner(plan: RunPlan, cores: int, replay: int, step_us: float) -> list[str]:
    """What a run says at its start: machine, processes, memory, seeds."""
    config, env = plan.config, plan.env
    kind = (
        f"{env.action_dim} discrete actions"
        if env.discrete
        else f"{env.action_dim} continuous action components"
    )
    seen = f"{env.obs_dim} observation components"
    if image := env.net_inputs["image"]:
        seen = "images of " + " x ".join(str(n) for n in image)
    lines = [
        f"fdql {__version__}: {config.env}, {seen}, {kind}, seed {config.seed}",
        f"{cores} core(s) usable"
        + (f", an environment step takes {step_us:,.0f} us; " if 0 < step_us < math.inf else "; ")
        + (
            "one process, in lockstep"
            if config.serial
            else f"{plan.workers} worker(s), inference, trainer, evaluator"
        )
        + f"; {plan.lanes} environments; {config.learner} learner"
        + f", at most {config.engine.learner_threads} thread(s)",
        f"replay {config.replay.capacity:,} transitions, at most {replay / 2**20:,.0f} MiB; "
        + (
            "unthrottled"
            if config.samples_per_insert == "free"
            else f"{config.samples_per_insert:g} samples per insert"
        ),
        f"writing {plan.run_dir}",
    ]
    return lines
