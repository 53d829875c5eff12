"""Stages 5 and 6 of 8, `update` and `publish`: the process that also holds the loader (loader.py).

Owns the learner. Reads staged batches; writes the weights and its record. The loader thread fills
the next batches while an update runs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from fdql.checkpoint import Arrays, CheckpointError, Tensors, save_tensors
from fdql.manifest import read_manifest
from fdql.proc.events import Events
from fdql.proc.governor import Governor
from fdql.proc.loader import Loader
from fdql.proc.memory import (
    BELL_EVALUATOR,
    BELL_INFERENCE,
    BELL_TRAINER,
    RECORD_TRAINER,
    RunMemory,
    RunPlan,
)
from fdql.proc.restore import restore_replay, restored_facts
from fdql.proc.resumed import updates_of
from fdql.proc.saver import Captured, Saver
from fdql.proc.thread_choice import ThreadChoice
from fdql.profile import Counter, Stage
from fdql.replay.batch import Batch
from fdql.sac.health import data_health, some_rows
from fdql.sac.learner import Learner
from fdql.sac.nets import F32
from fdql.sac.policy import Policy
from fdql.shm.records import now_ns

SLICE_NS = 100_000_000  # longest wait between two looks at the stop word
METRICS_SECONDS = 0.5  # between two lines of metrics
LEARNER = "learner."  # before the names of the learner's arrays in a checkpoint
STATISTICS = ("obs_mean", "obs_scale", "reward_scale")
HEALTH = ("data_age", "priority_spread", "dead_units")
HEALTH_UPDATES = 100  # between two looks at a batch


def make_learner(plan: RunPlan) -> Learner:
    """The learner that the configuration names."""
    sac, net = plan.config.sac, plan.net
    exponent, seed = plan.config.replay.priority_exponent, plan.config.seed
    threads = plan.config.engine.learner_threads or 1
    if plan.config.learner == "torch":
        from fdql.sac.update import TorchLearner  # torch takes seconds to import: only when used

        return TorchLearner(net, sac, exponent, seed, plan.config.device, threads)
    from fdql.sac.kernels import CompiledLearner

    return CompiledLearner(net, sac, exponent, seed, threads)


def learn(learner: Learner, batch: Batch) -> None:
    """One update from a staged batch, whose priorities it fills."""
    learner.update(
        batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs,
        batch.obs_mean, batch.obs_scale, batch.reward_scale, batch.priority,
    )  # fmt: skip


class Trainer:
    """Update and publish: the main thread's loop body, called in lockstep by serial mode."""

    def __init__(self, memory: RunMemory, learner: Learner) -> None:
        plan = memory.plan
        self.plan, self.memory, self.learner = plan, memory, learner
        self.record = memory.own_record(RECORD_TRAINER)
        self.governor = Governor(plan.config, plan.base)
        self.weights = memory.weights_writer()
        self.inference, self.evaluator = memory.bell(BELL_INFERENCE), memory.bell(BELL_EVALUATOR)
        self.flat = np.zeros(plan.policy_size, dtype=np.float32)
        self.judge = Policy(plan.net, self.flat)
        # Those of the newest batch, published with the weights.
        self.obs_mean = np.zeros(plan.net.obs_dim, dtype=np.float32)
        self.obs_scale = np.ones(plan.net.scales, dtype=np.float32)
        self.reward_scale = np.ones(1, dtype=np.float32)
        self.health: dict[str, float] = {}
        self.updates = self.published = 0
        self.published_ns = now_ns()
        self.record.set(Counter.ALLOWED, self.governor.allowed(0))

    def update(self, batch: Batch) -> int:
        """One update; afterwards more environment steps may be allowed. Returns nanoseconds."""
        t0 = now_ns()
        learn(self.learner, batch)
        self.obs_mean[:], self.obs_scale[:] = batch.obs_mean, batch.obs_scale
        self.reward_scale[:] = batch.reward_scale
        if self.updates % HEALTH_UPDATES == 0:
            self._look_at(batch)
        self.updates += 1
        now = self.record.observe_since(Stage.UPDATE, t0, self.updates)
        self.record.add(Counter.UPDATE_NS, now - t0)
        self.record.set(Counter.UPDATES, self.updates)
        self.record.set(Counter.ALLOWED, self.governor.allowed(self.updates))
        self.inference.ring()
        return now - t0

    def _look_at(self, batch: Batch) -> None:
        """How old, how uneven and how exciting the data of an update was."""
        self.snapshot()
        self.judge.load(self.flat)
        rows = some_rows(len(batch.priority))
        dead = self.judge.dead_share(np.ascontiguousarray(batch.obs[rows]), batch.action[rows])
        data = data_health(batch.version, batch.priority, self.updates)
        self.health = data | {"dead_units": dead}

    def publish_due(self, *, by_time: bool) -> bool:
        """True when a policy should be published, by updates or (asynchronous mode) by time."""
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
        t1 = self.record.observe_since(Stage.PUBLISH_SNAPSHOT, t0)
        # Before the policy itself: who sees the policy sees its time.
        self.record.set(Counter.PUBLISHED_NS, t1)
        self.weights.publish(self.flat, self.updates)
        self.published = self.updates
        self.published_ns = self.record.observe_since(Stage.PUBLISH, t0, self.updates)
        self.evaluator.ring()

    def snapshot(self) -> None:
        """Bring self.flat up to date."""
        self.learner.snapshot(self.flat, self.obs_mean, self.obs_scale, self.reward_scale)

    def metrics(self) -> dict[str, float]:
        """What the learner says of itself, with the reward scale and a look at a recent batch."""
        now = {"reward_scale": float(self.reward_scale[0]), "threads": self.learner.threads}
        return self.learner.metrics() | now | self.health

    def capture(self) -> Captured:
        """Copies of everything that the next update depends on; between two updates."""
        arrays = {LEARNER + name: array for name, array in self.learner.state().items()}
        arrays |= {name: getattr(self, name).copy() for name in STATISTICS}
        workers = (self.memory.worker_record(w) for w in range(self.plan.workers))
        facts = {
            "updates": self.updates,
            "stale": self.record.get(Counter.STALE),
            "dropped": self.record.get(Counter.DROPPED),
            "episodes": sum(w.get(Counter.EPISODES) for w in workers),
            "health": self.health,
        }
        return Captured(arrays, facts)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint. Raises CheckpointError when its learner is not this one's."""
        own = self.capture().arrays
        with Tensors(folder / "learner.safetensors") as file:
            arrays = {name: file.read(name, x.dtype, x.shape) for name, x in own.items()}
        for name in STATISTICS:
            getattr(self, name)[:] = arrays.pop(name)
        self.learner.load_state({k.removeprefix(LEARNER): array for k, array in arrays.items()})
        self.updates = self.learner.updates
        if self.updates != (said := updates_of(read_manifest(folder))):
            raise CheckpointError(f"{folder}: its learner made {self.updates} updates, not {said}")
        health = restored_facts(folder, "health").items()
        self.health = {k: v for k, v in health if k in HEALTH and isinstance(v, float)}
        self.record.set(Counter.UPDATES, self.updates)
        self.record.set(Counter.ALLOWED, self.governor.allowed(self.updates))

    def publish_again(self, flat: F32, version: int) -> None:
        """Publish the policy that acted when the checkpoint was taken, if one did."""
        if version:
            self.weights.publish(flat, version)
        self.published = version

    def save(
        self, saver: Saver, captured: Captured | None = None,
        more: Mapping[str, Arrays] | None = None,
    ) -> None:  # fmt: skip
        """Write the final policy and the last checkpoint into the run folder: what was captured, or
        the learner as it is now, and `more`, serial mode's.
        """
        if self.updates == 0:
            saver.close(None)  # nothing was learned yet
            return
        self.snapshot()
        facts = {"updates": self.updates, "env_steps": self.record.get(Counter.INSERTED)}
        path = Path(self.plan.run_dir) / "policy.safetensors"
        save_tensors(path, {"policy": self.flat}, self.plan.policy_facts() | facts)
        saver.close(captured or self.capture(), more)


def trainer_main(memory: RunMemory, events: Events) -> int:
    """Run until told to stop, then save. Returns 0; NotFiniteError when an update is not finite."""
    loader = Loader(memory)
    trainer = Trainer(memory, make_learner(memory.plan))
    saver = Saver(memory.plan, loader.replay, trainer.record, events.send)
    if memory.plan.checkpoint is not None:
        restore_replay(Path(memory.plan.checkpoint), loader, saver)
        loader.replay.close_lanes(0, memory.plan.lanes)  # the environments start anew
        trainer.restore(Path(memory.plan.checkpoint))
        trainer.publish()
    warm_up(memory.plan, loader)
    choice = ThreadChoice(trainer.learner.thread_counts)
    trainer.learner.threads = choice.threads
    record, control, bell = trainer.record, memory.control, memory.bell(BELL_TRAINER)
    ready: SimpleQueue[Batch] = SimpleQueue()
    done: SimpleQueue[Batch] = SimpleQueue()
    failure: list[BaseException] = []

    def load() -> None:
        try:
            free = list(loader.batches)
            while not control.stop:
                worked = loader.ingest() > 0
                worked |= saver.work()
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
                    waiting = any(r.peek() for r in loader.rings)
                    idle = done.empty() and not waiting and not control.stop
                    t0 = now_ns()
                    bell.sleep(ticket, SLICE_NS) if idle else bell.disarm()
                    loader.record.observe_since(loader.wait_cause(free=bool(free)), t0)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=load, name="loader", daemon=True)
    record.heartbeat(Stage.WAIT)  # who is ready is watched
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
        now = record.observe_since(Stage.WAIT, t0)
        if batch is not None:
            started = started or now  # the warm-up's wait is not the trainer's
            record.observe(Stage.STAGED, ready.qsize())
            record.heartbeat(Stage.UPDATE)
            trainer.learner.threads = choice.took(trainer.update(batch))
            if trainer.publish_due(by_time=True):
                trainer.publish()
            done.put(batch)
            bell.ring()
        if saver.wants_learner and trainer.updates:
            saver.give(trainer.capture())
        if started is not None:
            record.set(Counter.TRAIN_NS, now_ns() - started)
        if time.monotonic() - reported > METRICS_SECONDS:
            reported = time.monotonic()
            events.send("train", **trainer.metrics())
    thread.join()
    if failure:
        raise failure[0]
    trainer.publish()
    trainer.save(saver)
    events.send("train", **trainer.metrics())
    return 0


def warm_up(plan: RunPlan, loader: Loader) -> None:
    """Load the learner's kernels before the first chunk, on a learner of its own."""
    batch = loader.batches[0]
    batch.obs_scale[:], batch.reward_scale[:] = 1.0, 1.0
    learn(make_learner(plan), batch)


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda memory, events, words: trainer_main(memory, events)))
