"""Stages 3 to 6 of 8: `ingest` and `sample` in the loader thread, `update` and `publish` in the main thread.

Owns the replay (private memory) and the learner. Reads every transition ring; writes the weights and its
record. The loader's kernels hold no lock of the interpreter, so batches are filled while an update runs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from fdql.checkpoint import save_checkpoint, save_tensors
from fdql.proc.governor import Governor
from fdql.proc.memory import (
    BELL_EVALUATOR,
    BELL_INFERENCE,
    BELL_TRAINER,
    RECORD_TRAINER,
    Events,
    RunMemory,
    RunPlan,
)
from fdql.profile import Counter, Stage
from fdql.replay.replay import Batch, Replay
from fdql.sac.learner import Learner
from fdql.shm.chunk import ChunkViews
from fdql.shm.records import now_ns
from fdql.shm.ring import FLAG_INCARNATION

SLICE_NS = 100_000_000  # longest wait between two looks at the stop word
METRICS_SECONDS = 0.5  # between two lines of metrics


def make_learner(plan: RunPlan) -> Learner:
    """The learner that the configuration names."""
    sac, net = plan.config.sac, plan.net
    exponent, seed = plan.config.replay.priority_exponent, plan.config.seed
    if plan.config.learner == "torch":
        from fdql.sac.update import TorchLearner  # torch takes seconds to import: only when used

        return TorchLearner(net, sac, exponent, seed, plan.config.device)
    from fdql.sac.kernels import CompiledLearner

    return CompiledLearner(net, sac, exponent, seed)


class Loader:
    """Ingest and sample: the loader thread's loop body, called in lockstep by serial mode."""

    def __init__(self, memory: RunMemory) -> None:
        plan = memory.plan
        config = plan.config
        self.memory, self.plan = memory, plan
        self.record = memory.record(RECORD_TRAINER)
        self.governor = Governor(config)
        self.rings = [memory.ring_reader(w) for w in range(plan.workers)]
        self.views: list[dict[int, ChunkViews]] = [{} for _ in self.rings]  # slot -> columns
        shape: dict[str, Any] = {"obs_dim": plan.env.obs_dim, "action_dim": plan.env.action_dim, "discrete": plan.env.discrete}  # fmt: skip
        self.replay = Replay(
            config.replay, n_lanes=plan.lanes, discount=config.sac.discount, v_max=config.sac.v_max,
            batch_size=config.sac.batch_size, seed=config.seed, **shape,
        )  # fmt: skip
        self.batches = [
            Batch.allocate(
                config.sac.batch_size, plan.env.obs_dim, plan.env.action_dim, plan.env.discrete
            )
            for _ in range(config.replay.staged_batches)
        ]
        self.sampled = 0  # batches handed out so far
        self.updates = 0  # as last seen: for the policy lag

    def ingest(self) -> int:
        """Store every chunk that is ready. Returns the environment steps stored."""
        steps = 0
        for w, ring in enumerate(self.rings):
            for _ in range(ring.peek()):
                t0 = now_ns()
                head = ring.chunk(0)
                slot = ring.slot_index(0)
                if slot not in self.views[w]:
                    self.views[w][slot] = self.plan.chunk.views(ring.payload(0))
                steps += self.replay.ingest(
                    self.views[w][slot], head.n_rows, w * self.plan.envs_per_worker,
                    new_incarnation=bool(head.flags & FLAG_INCARNATION), lanes_of_worker=self.plan.envs_per_worker,
                )  # fmt: skip
                ring.release(1)
                if head.policy_version:
                    self.record.observe(Stage.LAG, max(0, self.updates - head.policy_version))
                self.record.observe_since(Stage.INGEST, t0)
        if steps:
            self.record.set(Counter.INSERTED, self.replay.steps)
            self.record.set(Counter.REPLAY, self.replay.size)
        return steps

    def may_sample(self) -> bool:
        """True when another update is due."""
        return self.replay.size > 0 and self.sampled < self.governor.due(self.replay.steps)

    def sample(self, batch: Batch) -> None:
        """Fill a batch."""
        t0 = now_ns()
        self.replay.sample(batch)
        self.sampled += 1
        self.record.observe_since(Stage.SAMPLE, t0)

    def give_back(self, batch: Batch) -> None:
        """Write the priorities of a batch that was learned from; those of overwritten rows are dropped."""
        applied = self.replay.update_priorities(batch.leaf, batch.serial, batch.priority)
        self.record.add(Counter.STALE, len(batch.leaf) - applied)


class Trainer:
    """Update and publish: the main thread's loop body, called in lockstep by serial mode."""

    def __init__(self, memory: RunMemory, learner: Learner) -> None:
        plan = memory.plan
        self.plan, self.memory, self.learner = plan, memory, learner
        self.record = memory.record(RECORD_TRAINER)
        self.governor = Governor(plan.config)
        self.weights = memory.weights_writer()
        self.inference, self.evaluator = memory.bell(BELL_INFERENCE), memory.bell(BELL_EVALUATOR)
        self.flat = np.zeros(plan.policy_size, dtype=np.float32)
        # Observation mean and scale, reward scale: those of the newest batch, published with the weights.
        self.obs_mean = np.zeros(plan.env.obs_dim, dtype=np.float32)
        self.obs_scale = np.ones(plan.env.obs_dim, dtype=np.float32)
        self.reward_scale = np.ones(1, dtype=np.float32)
        self.updates = self.published = 0
        self.published_ns = now_ns()
        self.record.set(Counter.ALLOWED, self.governor.allowed(0))

    def update(self, batch: Batch) -> None:
        """One update; afterwards more environment steps may be allowed."""
        t0 = now_ns()
        self.learner.update(
            batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs,
            batch.obs_mean, batch.obs_scale, batch.reward_scale, batch.priority,
        )  # fmt: skip
        self.updates += 1
        self.obs_mean[:], self.obs_scale[:] = batch.obs_mean, batch.obs_scale
        self.reward_scale[:] = batch.reward_scale
        self.record.add(Counter.UPDATE_NS, self.record.observe_since(Stage.UPDATE, t0) - t0)
        self.record.set(Counter.UPDATES, self.updates)
        self.record.set(Counter.ALLOWED, self.governor.allowed(self.updates))
        self.inference.ring()

    def publish_due(self, *, by_time: bool) -> bool:
        """True when the next policy should be published, by updates or (asynchronous mode) by time."""
        engine = self.plan.config.engine
        old = by_time and now_ns() - self.published_ns > engine.publish_seconds * 1e9
        return self.updates - self.published >= engine.publish_updates or (
            old and self.updates > self.published
        )

    def publish(self) -> None:
        """Publish the newest policy. Its version is the number of updates it has seen."""
        if self.updates == self.published:
            return
        t0 = now_ns()
        self.snapshot()
        self.weights.publish(self.flat, self.updates)
        self.published = self.updates
        self.published_ns = self.record.observe_since(Stage.PUBLISH, t0)
        self.evaluator.ring()

    def snapshot(self) -> None:
        """Bring self.flat up to date."""
        self.learner.snapshot(self.flat, self.obs_mean, self.obs_scale, self.reward_scale)

    def metrics(self) -> dict[str, float]:
        """What the learner says of itself, with the reward scale."""
        return self.learner.metrics() | {"reward_scale": float(self.reward_scale[0])}

    def save(self) -> None:
        """Write the final policy and the learner's state into the run folder."""
        if self.updates == 0:
            return  # nothing was learned yet
        self.snapshot()
        folder = Path(self.plan.run_dir)
        facts = {"updates": self.updates, "env_steps": self.record.get(Counter.INSERTED)}
        save_tensors(
            folder / "policy.safetensors", {"policy": self.flat}, self.plan.policy_facts() | facts
        )
        save_checkpoint(
            folder / "checkpoints" / f"updates-{self.updates}", self.learner.state(), facts
        )


def trainer_main(memory: RunMemory, events: Events) -> int:
    """Run until told to stop, then save. Returns 0; raises NotFiniteError when an update is not finite."""
    loader = Loader(memory)
    trainer = Trainer(memory, make_learner(memory.plan))
    warm_up(memory.plan, loader)
    record, control, bell = loader.record, memory.control, memory.bell(BELL_TRAINER)
    ready: SimpleQueue[Batch] = SimpleQueue()
    done: SimpleQueue[Batch] = SimpleQueue()
    failure: list[BaseException] = []

    def load() -> None:
        try:
            free = list(loader.batches)
            while not control.stop:
                worked = loader.ingest() > 0
                loader.updates = trainer.updates
                while not done.empty():
                    batch = done.get()
                    loader.give_back(batch)
                    free.append(batch)
                if free and loader.may_sample():
                    batch = free.pop()
                    loader.sample(batch)
                    ready.put(batch)
                elif not worked:
                    ticket = bell.arm()
                    idle = (
                        done.empty()
                        and not any(r.peek() for r in loader.rings)
                        and not control.stop
                    )
                    bell.sleep(ticket, SLICE_NS) if idle else bell.disarm()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=load, name="loader", daemon=True)
    events.send("ready", role="trainer", pid=os.getpid(), replay_bytes=loader.replay.nbytes)
    thread.start()
    started = None
    reported = time.monotonic()
    while not control.stop and not failure:
        record.heartbeat(Stage.WAIT)
        t0 = now_ns()
        try:
            batch = ready.get(timeout=0.1)
        except Empty:
            batch = None
        now = now_ns()
        if batch is not None:
            if started is None:
                started = now  # the warm-up's wait is not the trainer's
            else:
                record.observe(Stage.WAIT, now - t0)
            record.heartbeat(Stage.UPDATE)
            trainer.update(batch)
            if trainer.publish_due(by_time=True):
                trainer.publish()
            done.put(batch)
            bell.ring()
        if started is not None:
            record.set(Counter.TRAIN_NS, now_ns() - started)
        if time.monotonic() - reported > METRICS_SECONDS:
            reported = time.monotonic()
            events.send("train", **trainer.metrics())
    thread.join()
    if failure:
        raise failure[0]
    trainer.publish()
    trainer.save()
    events.send("train", **trainer.metrics())
    return 0


def warm_up(plan: RunPlan, loader: Loader) -> None:
    """Load every compiled kernel before the first chunk, on a learner and a replay of their own."""
    learner = make_learner(plan)
    batch = loader.batches[0]
    batch.obs_scale[:], batch.reward_scale[:] = 1.0, 1.0
    learner.update(
        batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs,
        batch.obs_mean, batch.obs_scale, batch.reward_scale, batch.priority,
    )  # fmt: skip


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda memory, events, words: trainer_main(memory, events)))
