"""Training only: updates per second of the trainer process on a replay that is already full.

The real trainer process with its loader thread, sampling and priorities included; the bench plays
the workers, hands over FILL_STEPS random transitions once and counts. Pinned to one core, as the
peers are.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from fdql.config import Config, ExploreConfig, ReplayConfig, SacConfig
from fdql.env_spec import EnvSpec
from fdql.machine import allowed_cores, resolve
from fdql.proc.memory import READER_EVALUATOR, RECORD_TRAINER, RunPlan
from fdql.profile import Counter
from fdql.sac.nets import NetSpec
from fdql.shm.chunk import BOUNDARY, RESET, TRUNCATED

from rates.processes import Processes
from rates.reading import Reading

FILL_STEPS, FILL_IMAGES = 50_000, 10_000
WARM_UPDATES, WARM_UPDATES_IMAGES = 200, 10
EPISODE = 200  # rows of a lane between two resets in the transitions that are handed over


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Networks and batch of an update.

    image  (frames, height, width) of a stack of frames, else observations are vectors
    peers  those whose default shape it is, measured beside us
    """

    obs_dim: int
    action_dim: int
    discrete: bool = False
    width: int = 128
    batch: int = 256
    image: tuple[int, int, int] | None = None
    peers: tuple[str, ...] = ()

    @property
    def fill(self) -> int:
        """Steps that are handed over."""
        return FILL_STEPS if self.image is None else FILL_IMAGES

    @property
    def net(self) -> NetSpec:
        """For the count of multiply-adds."""
        return NetSpec(
            obs_dim=self.obs_dim, action_dim=self.action_dim, discrete=self.discrete,
            critic_width=self.width, actor_width=self.width, image=self.image,
        )  # fmt: skip


SHAPES = {
    "default-cartpole": Shape(obs_dim=4, action_dim=2, discrete=True),
    "default-halfcheetah": Shape(obs_dim=26, action_dim=6),
    "sb3-pendulum": Shape(obs_dim=3, action_dim=1, width=256, peers=("sb3", "sbx")),
    "rltools-pendulum": Shape(obs_dim=3, action_dim=1, width=64, batch=100, peers=("rltools",)),
    "default-pong": Shape(obs_dim=4 * 84 * 84, action_dim=6, discrete=True, image=(4, 84, 84)),
}


def plan_for(shape: Shape, run_dir: str) -> RunPlan:
    """A plan of the default configuration with this shape, unthrottled; no environment is made."""
    bounds = () if shape.discrete else (1.0,) * shape.action_dim
    stack, *size = shape.image or (1, shape.obs_dim)  # frames of one channel
    obs_dim = math.prod(size)
    env = EnvSpec(
        env="random transitions", obs_dim=obs_dim, obs_shape=tuple(size), stack=stack,
        image=(1, size[0], size[1]) if shape.image else None,
        discrete=shape.discrete, action_dim=shape.action_dim,
        action_shape=() if shape.discrete else (shape.action_dim,), action_start=0,
        low=tuple(-b for b in bounds), high=bounds, return_threshold=None, eval_episodes=20,
    )  # fmt: skip
    config = Config(
        env=env.env, ratio="free", workers=1,
        sac=SacConfig(batch_size=shape.batch, critic_width=shape.width, actor_width=shape.width),
        explore=ExploreConfig(warmup_steps=shape.fill),
        replay=ReplayConfig(capacity=1 << (15 if shape.image else 20)),
    )  # fmt: skip
    return RunPlan(config=resolve(config, cores=allowed_cores(), env=env), env=env, run_dir=run_dir)


def hand_over(plan: RunPlan, processes: Processes) -> int:
    """Write the warm-up's random transitions, whole episodes, to worker 0's ring. Returns steps."""
    writer, schema = processes.memory.ring_writer(0), plan.chunk
    rng = np.random.default_rng(0)
    views = [schema.views(writer.payload(i)) for i in range(writer.capacity)]
    lanes = plan.envs_per_worker
    rounds = schema.rows // lanes
    made = done = 0
    while made < plan.config.explore.warmup_steps:
        while (slot := writer.reserve()) < 0:
            writer.wait_not_full(100_000_000)
            processes.listen()
        n, chunk = rounds * lanes, views[slot]
        at = np.repeat((np.arange(rounds) + done) % EPISODE, lanes)
        chunk.lane[:n] = np.tile(np.arange(lanes), rounds)
        chunk.flags[:n] = np.select(
            [at == 0, at == EPISODE - 2, at == EPISODE - 1], [RESET, TRUNCATED, BOUNDARY], 0
        )
        size = (n, schema.shape.obs_dim)
        chunk.obs[:n] = (
            rng.integers(0, 256, size, dtype=np.uint8)
            if schema.shape.pixels
            else rng.standard_normal(size, dtype=np.float32)
        )
        chunk.reward[:n] = rng.standard_normal(n, dtype=np.float32)
        if plan.env.discrete:
            chunk.action[:n] = rng.integers(0, plan.env.action_dim, n)
        else:
            chunk.action[:n] = rng.uniform(-1, 1, (n, plan.env.action_dim))
        steps = int((at != EPISODE - 1).sum())
        writer.commit(n, steps, 0)
        made, done = made + steps, done + rounds
    return made


def train(name: str, seconds: float) -> Reading:
    """Updates/s of one shape over `seconds`, the trainer pinned to the last core."""
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_for(SHAPES[name], folder)
        with Processes(plan) as processes:
            os.sched_setaffinity(0, {max(cores)})  # inherited by the trainer; the bench only sleeps
            try:
                processes.start("trainer")
            finally:
                os.sched_setaffinity(0, cores)
            return _train(plan, processes, seconds)


def _train(plan: RunPlan, processes: Processes, seconds: float) -> Reading:
    record = processes.memory.record(RECORD_TRAINER)
    said: list[dict[str, Any]] = []

    def doze() -> None:
        time.sleep(0.01)
        said.extend(e for e in processes.listen() if e["event"] == "train")

    def counters() -> tuple[float, int, int]:
        return time.monotonic(), record.get(Counter.UPDATES), record.get(Counter.UPDATE_NS)

    processes.wait_ready(doze)
    made = hand_over(plan, processes)
    warm = WARM_UPDATES_IMAGES if plan.env.rows.pixels else WARM_UPDATES
    processes.until(lambda: record.get(Counter.UPDATES) >= warm, doze, 120.0)
    start, updates, busy = counters()
    processes.until(lambda: time.monotonic() >= start + seconds, doze, seconds + 60)
    end, updates_then, busy_then = counters()
    rate = (updates_then - updates) / (end - start)
    said += [e for e in processes.leave(doze) if e["event"] == "train"]
    wrong = []
    if record.get(Counter.INSERTED) != made:
        wrong.append(f"{made} steps were handed over and {record.get(Counter.INSERTED)} stored")
    wrong += loss_faults(said[-1] if said else {}, record.get(Counter.UPDATES), plan)
    wrong += policy_faults(processes, record.get(Counter.UPDATES), plan)
    facts = {"duty_cycle": round((busy_then - busy) / 1e9 / (end - start), 3)}
    facts |= {"metrics": {k: v for k, v in (said[-1] if said else {}).items() if k != "event"}}
    return Reading(value=rate, facts=facts, stages=processes.stages(), wrong=wrong)


def loss_faults(metrics: dict[str, Any], updates: int, plan: RunPlan) -> list[str]:
    """Losses that are not finite, or a critic that has not learned that rewards are noise."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
    if "critic_loss" not in numbers:
        return ["the trainer reported no losses"]
    wrong = [f"{k} = {v}" for k, v in numbers.items() if not math.isfinite(v)]
    most = 2 * math.log(plan.config.sac.bins)  # two critics that know nothing
    if updates > 500 and not numbers["critic_loss"] < most:
        wrong.append(f"critic_loss = {numbers['critic_loss']} after {updates} updates")
    return wrong


def policy_faults(processes: Processes, updates: int, plan: RunPlan) -> list[str]:
    """The policy that was published last must be finite and that of the last update."""
    reader = processes.memory.weights_reader(READER_EVALUATOR)
    version, data = reader.acquire()
    policy = np.frombuffer(data, dtype=np.float32)[: plan.policy_size].copy()
    del data
    reader.release()
    wrong = [] if np.isfinite(policy).all() else ["the published policy is not finite"]
    if version != updates:
        wrong.append(f"the last policy has version {version} after {updates} updates")
    return wrong
