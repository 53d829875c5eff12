"""Stages 3 and 4 of 8: `ingest` and `sample`, the loop body of the trainer's loader thread.

Reads every transition ring; owns the replay (memory of the trainer process). Its kernels do not
hold the interpreter's lock, so batches are filled while an update runs.
"""

from __future__ import annotations

from fdql.proc.governor import Governor
from fdql.proc.memory import RECORD_TRAINER, RunMemory
from fdql.profile import Counter, Mark, Stage
from fdql.replay.first_use import FirstUse
from fdql.replay.replay import Batch, Replay
from fdql.shm.chunk import ChunkViews, chunk_id
from fdql.shm.records import now_ns
from fdql.shm.ring import FLAG_INCARNATION


class Loader:
    """Ingest and sample: the loader thread's loop body, called in lockstep by serial mode."""

    def __init__(self, memory: RunMemory) -> None:
        plan = memory.plan
        config = plan.config
        self.memory, self.plan = memory, plan
        self.record = memory.own_record(RECORD_TRAINER, "loader")
        self.governor = Governor(config, plan.base)
        self.rings = [memory.ring_reader(w) for w in range(plan.workers)]
        self.views: list[dict[int, ChunkViews]] = [{} for _ in self.rings]  # slot -> columns
        shape = plan.env.rows
        self.replay = Replay(
            config.replay,
            shape=shape,
            n_lanes=plan.lanes,
            discount=config.sac.discount,
            v_max=config.sac.v_max,
            batch_size=config.sac.batch_size,
            seed=config.seed,
        )
        self.batches = [
            Batch.allocate(config.sac.batch_size, shape)
            for _ in range(config.replay.staged_batches)
        ]
        self.first_use = None if config.trace_seconds is None else FirstUse(self.replay.rows)
        self.sampled = 0  # batches handed out so far
        self.updates = 0  # as last seen: for the policy lag

    def ingest(self) -> int:
        """Store every chunk that is ready. Returns the environment steps stored."""
        steps = 0
        for w, ring in enumerate(self.rings):
            chunks = ring.peek()
            if chunks:
                self.record.observe(Stage.CHUNKS, chunks)
            for _ in range(chunks):
                t0 = now_ns()
                head = ring.chunk(0)
                slot = ring.slot_index(0)
                if slot not in self.views[w]:
                    self.views[w][slot] = self.plan.chunk.views(ring.payload(0))
                lost = bool(head.flags & FLAG_INCARNATION)
                lanes = w * self.plan.envs_per_worker, self.plan.envs_per_worker
                if lost:
                    self.record.add(Counter.DROPPED, self.replay.rows.open_steps(*lanes))
                first_use = self.first_use if self.record.tracing else None
                if first_use:
                    first_use.before_ingest()
                views, (first, n) = self.views[w][slot], lanes
                steps += self.replay.ingest(
                    views, head.n_rows, first, new_incarnation=lost, lanes_of_worker=n
                )
                ring.release(1)
                # At once: whoever ends us here leaves one chunk uncounted, not all of this call.
                self.record.set(Counter.REPLAY, self.replay.size)
                self.record.set(Counter.INSERTED, self.replay.steps)  # last: `complete` reads both
                if first_use:
                    chunk = chunk_id(w, head.seq)
                    first_use.ingested(chunk)
                    self.record.mark(Mark.INGESTED, chunk)
                if head.policy_version:
                    self.record.observe(Stage.LAG, max(0, self.updates - head.policy_version))
                self.record.observe_since(Stage.INGEST, t0)
        return steps

    def may_sample(self) -> bool:
        """True when another update is due."""
        return self.replay.size > 0 and self.sampled < self.governor.due(self.replay.steps)

    def sample(self, batch: Batch) -> None:
        """Fill a batch."""
        t0 = now_ns()
        self.replay.draw(batch)
        t1 = self.record.observe_since(Stage.SAMPLE_DRAW, t0)
        self.replay.gather(batch)
        self.sampled += 1
        self.record.observe_since(Stage.SAMPLE_GATHER, t1)
        if self.first_use and self.record.tracing:
            for chunk in self.first_use.drawn(batch.leaf):
                self.record.mark(Mark.DRAWN, chunk)
        self.record.observe_since(Stage.SAMPLE, t0, self.sampled)

    def wait_cause(self, *, free: bool) -> Stage:
        """What an idle loader waits for, as a stage of its record; `free`: it has a batch to fill.

        One cause at a time: with a free batch and nothing due, only more steps can help.
        """
        if not free:
            return Stage.WAIT_FREE
        return Stage.WAIT_DUE if self.governor.due(self.replay.steps) else Stage.WAIT_CHUNKS

    def give_back(self, batch: Batch) -> None:
        """Write a learned batch's priorities; those of overwritten rows are dropped."""
        t0 = now_ns()
        applied = self.replay.update_priorities(batch.leaf, batch.serial, batch.priority)
        self.record.observe_since(Stage.PRIORITIES, t0)
        self.record.add(Counter.STALE, len(batch.leaf) - applied)
