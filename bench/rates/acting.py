"""Acting only: environment steps per second with a policy in the loop and nobody training.

The real worker and inference processes; the bench is supervisor and trainer: it publishes a random
policy once, allows every step and drains the rings. Steps before the window do not count.
"""

from __future__ import annotations

import tempfile
import time

import numpy as np
from fdql.config import Config
from fdql.proc.memory import BELL_TRAINER, RECORD_INFERENCE, RECORD_TRAINER, RunPlan
from fdql.profile import Counter
from fdql.sac.learner import fill_snapshot
from fdql.sac.nets import initialise, policy_shapes, views
from fdql.trial import ENDLESS

from rates.drain import Drain
from rates.processes import Processes, plan_of
from rates.reading import Reading

WARM_SECONDS = 0.5  # of acting before the window
SLICE_NS = 20_000_000


def random_policy(plan: RunPlan, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A fresh policy with a random last layer, as the trainer publishes it.

    Every action has its own value; observations are not scaled.
    """
    rng = np.random.default_rng(seed)
    statistics = np.zeros(plan.net.obs_dim, np.float32), np.ones(plan.net.scales, np.float32)
    flat = np.zeros(plan.policy_size, dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    fill_snapshot(plan.net, initialise(plan.net, rng), 0.0, *statistics, one, flat)
    named = views(flat, policy_shapes(plan.net))
    last = named["critic.w2" if plan.net.discrete else "actor.w2"]
    last[:] = rng.normal(0.0, 0.05, last.shape)
    return flat


def act(
    env: str, seconds: float, *, workers: int | None, envs_per_worker: int | None,
    drain: type[Drain] = Drain,
) -> Reading:  # fmt: skip
    """Environment steps/s over `seconds`; facts, stages, and every fault of the drained rows."""
    config = Config(
        env=env, ratio="free", workers=workers, envs_per_worker=envs_per_worker,
        total_timesteps=ENDLESS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(config, folder)
        with Processes(plan) as processes:
            return _act(plan, processes, seconds, drain)


def _act(plan: RunPlan, processes: Processes, seconds: float, make_drain: type[Drain]) -> Reading:
    memory = processes.memory
    drain, bell = make_drain(memory), memory.bell(BELL_TRAINER)
    memory.weights_writer().publish(random_policy(plan), 1)
    memory.record(RECORD_TRAINER).set(Counter.ALLOWED, plan.config.total_timesteps)

    def take() -> None:
        if not drain.take():
            ticket = bell.arm()
            if any(r.peek() for r in drain.rings):
                bell.disarm()
            else:
                bell.sleep(ticket, SLICE_NS)

    def run(length: float) -> None:
        end = time.monotonic() + length
        processes.until(lambda: time.monotonic() >= end, take, length + 60)

    for w in range(plan.workers):
        processes.start(f"worker {w}")
    processes.start("inference")
    processes.wait_ready(take)
    processes.until(lambda: all(drain.kept), take, 60.0)
    run(WARM_SECONDS)
    before, start = drain.steps, time.monotonic()
    run(seconds)
    rate = (drain.steps - before) / (time.monotonic() - start)
    processes.leave(take)
    while drain.take():
        pass
    committed = [memory.worker_record(w).get(Counter.STEPS) for w in range(plan.workers)]
    wrong = drain.faults(committed)
    issued = memory.record(RECORD_INFERENCE).get(Counter.ISSUED)
    if sum(committed) > issued:
        wrong.append(f"{sum(committed)} steps were made on actions for {issued}")
    if any(c.head.policy_version != 1 for chunks in drain.kept for c in chunks):
        wrong.append("a chunk's actions are not those of the published policy")
    stages = processes.stages()
    facts = {"workers": plan.workers, "envs_per_worker": plan.envs_per_worker}
    facts |= {"steps_checked": drain.steps}
    drain.close()
    return Reading(value=rate, facts=facts, stages=stages, wrong=wrong)
