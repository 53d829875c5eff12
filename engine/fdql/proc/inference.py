"""Stages 7 and 8 of 8, `infer` and `act`: one process that answers all environment workers in
batches.

Reads observation slots and the published policy; writes action slots. Before the first publication
it answers with uniform, held actions (the warm-up). It is also where environment steps are held
back: it answers only while the steps started are fewer than the trainer allows.
"""

from __future__ import annotations

import os
import sys

import numpy as np
from numpy.typing import NDArray

from fdql.proc.events import Events
from fdql.proc.memory import (
    BELL_INFERENCE,
    READER_INFERENCE,
    RECORD_INFERENCE,
    RECORD_TRAINER,
    RunMemory,
)
from fdql.profile import Counter, Mark, Stage
from fdql.sac.policy import Explorer, Policy, explorer_mask, precompile
from fdql.shm.records import now_ns

SLICE_NS = 100_000_000  # longest wait between two looks at the stop word
MIN_DWELL_NS = 200_000  # a request waits this long for others before it is served without them


class InferenceServer:
    """The loop body: `serve` answers what is ready; `throttled`: steps are held back."""

    def __init__(self, memory: RunMemory) -> None:
        plan = memory.plan
        self.plan = plan
        self.record = memory.own_record(RECORD_INFERENCE)
        self.trainer = memory.record(RECORD_TRAINER)
        self.workers = [memory.worker_record(w) for w in range(plan.workers)]
        self.slots = memory.slot_server()
        self.slots.spin_ns = memory.plan.spin_ns
        self.weights = memory.weights_reader(READER_INFERENCE)
        self.policy = Policy(plan.net, np.zeros(plan.policy_size, dtype=np.float32))
        self.version = 0  # of the loaded policy, updates; 0: none published yet
        self.published_ns = 0  # when that policy was published
        explore = plan.config.explore
        explorers = explorer_mask(explore.explorer_share, plan.lanes)
        # A run that goes on must not repeat the noise that it began with.
        seed = [plan.config.seed, 4, plan.resumes] if plan.resumes else plan.config.seed
        self.explorer = Explorer(plan.net, explore, plan.lanes, explorers, seed)
        groups, n = plan.config.engine.groups, plan.envs_per_group
        slots = groups * plan.workers
        self.ready = np.zeros(slots, dtype=np.int32)
        shape = plan.env.rows
        obs = np.frombuffer(self.slots.obs, dtype=shape.obs_dtype).reshape(slots * n, -1)
        self.obs = obs[:, : shape.stack * shape.obs_dim]
        raw = np.frombuffer(self.slots.actions, dtype=np.uint8).reshape(slots * n, -1)
        self.actions: NDArray[np.int32] | NDArray[np.float32]
        if plan.env.discrete:
            self.actions = raw[:, :4].view(np.int32)[:, 0]
            self.out: NDArray[np.int32] | NDArray[np.float32] = np.zeros(slots * n, dtype=np.int32)
        else:
            self.actions = raw[:, : 4 * plan.env.action_dim].view(np.float32)
            self.out = np.zeros((slots * n, plan.env.action_dim), dtype=np.float32)
        # Slot g * W + w holds rows slot * n ...; the lane of such a row counts worker by worker.
        slot, e = np.divmod(np.arange(slots * n), n)
        group, worker = np.divmod(slot, plan.workers)
        self.lane_of_row = (worker * plan.envs_per_worker + group * n + e).astype(np.int64)
        self.rows_of_slot = np.arange(slots * n).reshape(slots, n)
        steps = [record.get(Counter.STEPS) for record in self.workers]  # not 0: the run goes on
        self.issued = np.array(steps, dtype=np.int64)
        self.explorer.skip(sum(steps))
        self.incarnation = np.zeros(plan.workers, dtype=np.int64)
        self.turn = np.zeros(plan.workers, dtype=np.int64)  # group that each worker steps next

    def refresh(self) -> None:
        """Load the newest published policy, if it is newer than ours."""
        if self.weights.latest != self.version:
            t0 = now_ns()
            self.version, data = self.weights.acquire()
            self.published_ns = self.trainer.get(Counter.PUBLISHED_NS)
            if self.version:
                self.policy.load(np.frombuffer(data, dtype=np.float32)[: self.plan.policy_size])
            del data
            self.weights.release()
            self.record.observe_since(Stage.INFER_LOAD, t0)

    def throttled(self) -> bool:
        """True while environment steps are held back for the trainer (or the run's last step is
        started).
        """
        if int(self.issued.sum()) < self.trainer.get(Counter.ALLOWED):
            return False
        # What a dead worker had begun and never handed over must not count for ever: nobody would
        # be served again. Its successor's first sign is its incarnation.
        self._forget_lost_steps()
        return int(self.issued.sum()) >= self.trainer.get(Counter.ALLOWED)

    def _forget_lost_steps(self) -> None:
        """Count the steps begun anew for a worker whose successor is there."""
        for w, record in enumerate(self.workers):
            incarnation = record.get(Counter.INCARNATION)
            if incarnation != self.incarnation[w]:
                self.incarnation[w] = incarnation
                self.issued[w] = record.get(Counter.STEPS)
                self.turn[w] = 0

    def _within_total(self, n_ready: int) -> int:
        """How many of the ready slots may be answered. At the run's end not all: then those come
        first whose worker waits for them, for a worker takes its groups strictly in turn.
        """
        left = self.plan.config.total_timesteps - int(self.issued.sum())
        room = -(-left // self.plan.envs_per_group)
        if room < n_ready:
            group, worker = np.divmod(self.ready[:n_ready], self.plan.workers)
            ahead = (group - self.turn[worker]) % self.plan.config.engine.groups
            self.ready[:n_ready] = self.ready[:n_ready][np.argsort(ahead, kind="stable")]
        return min(n_ready, room)

    def serve(self, n_ready: int) -> None:
        """Answer the first `n_ready` slots of self.ready: one forward pass, one reply round.

        Fewer at the end of the run: whoever would step beyond its total is left waiting.
        """
        t0 = now_ns()
        record = self.record
        self._forget_lost_steps()
        # After the recount, which made visible who asked: what a dead worker had asked for is not
        # begun by anyone, and counted it would be missing at the run's end for ever.
        n_ready = self._within_total(self.slots.admit(self.ready, n_ready))
        if n_ready == 0:
            return
        record.observe(Stage.INFER_DWELL, max(0, t0 - self.slots.oldest_ns))
        self.refresh()
        ready = self.ready[:n_ready]
        rows = self.rows_of_slot[ready].ravel()
        n = rows.size
        out = self.out[:n]
        warmup = self.version == 0
        gather = now_ns()
        obs, lanes = self.obs[rows], self.lane_of_row[rows]
        forward = now_ns()
        self.explorer.act(self.policy, obs, lanes, warmup, out)
        scatter = record.observe_since(Stage.INFER_FORWARD, forward)
        self.actions[rows] = out
        if record.tracing:
            for slot in ready:
                record.mark(Mark.ANSWERED, self.slots.request_id(slot))
        t1 = record.observe_since(Stage.INFER, t0)
        record.observe(Stage.INFER_COPY, forward - gather + t1 - scatter)
        for slot in ready:
            w = int(slot) % self.plan.workers
            self.issued[w] += self.plan.envs_per_group
            self.turn[w] = (self.turn[w] + 1) % self.plan.config.engine.groups
        self.record.set(Counter.ISSUED, int(self.issued.sum()))
        self.slots.reply(self.ready, n_ready, self.version)
        record.observe_since(Stage.ACT, t1)
        record.observe(Stage.ROWS, n)
        record.observe(Stage.REQUESTS, n_ready)
        if not warmup:
            record.observe(Stage.POLICY_AGE, max(0, t1 - self.published_ns))
            behind = self.trainer.get(Counter.UPDATES) - self.version
            record.observe(Stage.POLICY_BEHIND, max(0, behind))


def inference_main(memory: RunMemory, events: Events) -> int:
    """Run until told to stop. Returns 0."""
    server = InferenceServer(memory)
    precompile(memory.plan.net)
    bell, control, record = memory.bell(BELL_INFERENCE), memory.control, server.record
    record.heartbeat(Stage.WAIT)  # who is ready is watched
    events.send("ready", role="inference", pid=os.getpid())
    workers = memory.plan.workers
    dwell = MIN_DWELL_NS
    while not control.stop:
        record.heartbeat(Stage.WAIT)
        if server.throttled():
            t0 = now_ns()
            ticket = bell.arm()
            if server.throttled() and not control.stop:
                bell.sleep(ticket, SLICE_NS)
            else:
                bell.disarm()
            record.observe_since(Stage.HELD, t0)
            continue
        t0 = now_ns()
        n = server.slots.collect(server.ready, workers, dwell, SLICE_NS)
        t1 = record.observe_since(Stage.WAIT, t0)
        if n:
            record.heartbeat(Stage.INFER)
            server.serve(n)
            dwell = max(MIN_DWELL_NS, (now_ns() - t1) // 4)
    return 0


if __name__ == "__main__":
    from fdql.proc.child import run_child

    sys.exit(run_child(lambda memory, events, words: inference_main(memory, events)))
