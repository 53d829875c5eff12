"""What every process records: counters, and a histogram for every stage, part, wait and depth.

A process has one record (shm.records.Record): a counter per `Counter` and a histogram per `Stage`.
Its owner writes, the supervisor reads (budget.py makes shares and percentiles of it). The names of
the first eight stages are those of ARCHITECTURE.md; a part of a stage is named `stage.part`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fdql.shm.records import N_BUCKETS, Record, bucket_upper, record_bytes


class Stage(IntEnum):
    """Histograms of a record, nanoseconds unless said otherwise."""

    STEP = 0  # worker: one step of one group of environments
    RING = 1  # worker: handing one chunk over
    INGEST = 2  # loader: storing one chunk
    SAMPLE = 3  # loader: filling one batch
    UPDATE = 4  # trainer: one update of the learner
    PUBLISH = 5  # trainer: one publication of a policy
    INFER = 6  # inference: newest policy, gather, forward pass with exploration, scatter
    ACT = 7  # inference: handing the actions of one round over
    WAIT = 8  # for work: worker for actions, inference for requests, trainer for a batch, ...
    HELD = 9  # inference: requests held back because the steps are ahead of the updates
    LAG = 10  # trainer: updates between the policy that acted and the newest, per chunk
    ROWS = 11  # inference: rows of a forward pass
    STEP_ENV = 12  # worker: inside env.step, one group
    STEP_RESET = 13  # worker: inside env.reset, one episode
    INFER_DWELL = 14  # from the submission of a round's oldest request to the round's begin
    INFER_FORWARD = 15  # forward pass and exploration: one kernel, not separable
    INFER_COPY = 16  # gather of observation rows and scatter of action rows
    INFER_LOAD = 17  # taking over a newly published policy
    REQUESTS = 18  # inference: requests ready when a round begins
    POLICY_AGE = 19  # inference: since the publication of the policy that acts
    POLICY_BEHIND = 20  # inference: updates made since the policy that acts
    SAMPLE_DRAW = 21  # loader: the tree's draw
    SAMPLE_GATHER = 22  # loader: n-step windows and rows
    PRIORITIES = 23  # loader: writing one batch's priorities back into the tree
    PUBLISH_SNAPSHOT = 24  # trainer: flattening the policy
    STAGED = 25  # trainer: batches left ready when it takes one
    CHUNKS = 26  # loader: chunks in a ring when it finds some
    EVALUATE = 27  # evaluator: one step of its environments, forward pass included
    WAIT_ROOM = 28  # worker: for room in its ring
    WAIT_CHUNKS = 29  # loader: for chunks, the warm-up not being complete
    WAIT_DUE = 30  # loader: no update is due before more steps arrive
    WAIT_FREE = 31  # loader: every batch is staged or being learned


class Counter(IntEnum):
    """Counters of a record; the role that writes it stands beside it."""

    STEPS = 0  # worker: environment steps handed over, over all its incarnations
    EPISODES = 1  # worker; evaluator: those ended of the evaluation that it plays, or played last
    INCARNATION = 2  # worker: 1 at first, one more at every restart
    UPDATES = 3  # trainer
    INSERTED = 4  # trainer: environment steps stored in the replay
    ALLOWED = 5  # trainer: environment steps that may have been started by now
    STALE = 6  # trainer: priorities that came back for rows already overwritten
    REPLAY = 7  # trainer: transitions that can be sampled
    ISSUED = 8  # inference: environment steps started
    UPDATE_NS = 9  # trainer: time inside updates since warm-up
    TRAIN_NS = 10  # trainer: time since warm-up
    EVALUATIONS = 11  # evaluator
    DROPPED = 12  # trainer: stored steps whose outcome was lost with their worker
    PUBLISHED_NS = 13  # trainer: now_ns of the newest publication
    BEFORE = 14  # of a worker, set by whoever resumes a run: STEPS that were stored before
    SAVED = 15  # trainer's writer of checkpoints: bytes of the one that is being written ...
    TO_SAVE = 16  # ... of this many; 0: none is


@dataclass(frozen=True, slots=True)
class Role:
    """What a kind of process (or thread) records.

    busy      disjoint stages: their sum is its busy time
    waits     disjoint waits, by the name of their cause
    parts     times inside busy stages
    latencies times that are not this process's own
    numbers   histograms of numbers, not of times
    """

    busy: tuple[Stage, ...]
    waits: Mapping[Stage, str]
    parts: tuple[Stage, ...] = ()
    latencies: tuple[Stage, ...] = ()
    numbers: tuple[Stage, ...] = ()

    def name(self, stage: Stage) -> str:
        """`infer`, `infer.forward`, `wait.requests`."""
        return self.waits.get(stage) or name_of(stage)

    @property
    def recorded(self) -> tuple[Stage, ...]:
        """Every histogram that this role writes."""
        return (*self.busy, *self.waits, *self.parts, *self.latencies, *self.numbers)


def name_of(stage: Stage) -> str:
    """STEP_ENV is `step.env`, POLICY_AGE `policy.age`."""
    return stage.name.lower().replace("_", ".", 1)


S = Stage
ROLES: dict[str, Role] = {
    "worker": Role(
        busy=(S.STEP, S.RING),
        waits={S.WAIT: "wait.actions", S.WAIT_ROOM: "wait.room"},
        parts=(S.STEP_ENV, S.STEP_RESET),
    ),
    "inference": Role(
        busy=(S.INFER, S.ACT),
        waits={S.WAIT: "wait.requests", S.HELD: "wait.ratio"},
        parts=(S.INFER_FORWARD, S.INFER_COPY, S.INFER_LOAD),
        latencies=(S.INFER_DWELL, S.POLICY_AGE),
        numbers=(S.ROWS, S.REQUESTS, S.POLICY_BEHIND),
    ),
    "loader": Role(
        busy=(S.INGEST, S.SAMPLE, S.PRIORITIES),
        waits={
            S.WAIT_CHUNKS: "wait.chunks",
            S.WAIT_DUE: "wait.due",
            S.WAIT_FREE: "wait.free_batch",
        },
        parts=(S.SAMPLE_DRAW, S.SAMPLE_GATHER),
        numbers=(S.CHUNKS, S.LAG),
    ),
    "trainer": Role(
        busy=(S.UPDATE, S.PUBLISH),
        waits={S.WAIT: "wait.batch"},
        parts=(S.PUBLISH_SNAPSHOT,),
        numbers=(S.STAGED,),
    ),
    "evaluator": Role(busy=(S.EVALUATE,), waits={S.WAIT: "wait.policy"}),
}


def role_of(process: str) -> Role:
    """Role of `worker 3`, `inference`, `loader`, ..."""
    return ROLES[process.partition(" ")[0]]


class Mark(IntEnum):
    """What a trace shows beside the stages: moments that flow arrows join, and an evaluation.

    Kinds of events, above all of Stage. The value says which request or chunk it is.
    """

    ASKED = 256  # worker: a request for actions is submitted
    ANSWERED = 257  # inference: its actions are chosen
    USED = 258  # worker: the step with these actions begins
    COMMITTED = 259  # worker: a chunk is handed over
    INGESTED = 260  # loader: it is stored
    DRAWN = 261  # loader: the batch being filled is the first with a row of it
    EVALUATION = 262  # evaluator: all episodes on one policy, value: its version


RECORD_NBYTES = record_bytes(len(Counter), len(Stage))


def open_record(buf: memoryview) -> Record:
    """The record in a segment's section."""
    return Record(buf, len(Counter), len(Stage))


_UPPER: NDArray[np.float64] = np.array(
    [bucket_upper(i) for i in range(N_BUCKETS)], dtype=np.float64
)


def counts(record: Record, stage: Stage) -> NDArray[np.uint64]:
    """One histogram, (N_BUCKETS,) uint64."""
    return np.frombuffer(record.counts(stage), dtype=np.uint64)


def percentiles(
    histogram: NDArray[np.uint64], q: Iterable[float] = (50.0, 99.0, 99.9)
) -> list[float]:
    """Upper bounds of the buckets that hold the percentiles `q`; zeros without records."""
    cumulated = np.cumsum(histogram.astype(np.float64))
    if cumulated[-1] == 0:
        return [0.0 for _ in q]
    # The rank of the value, from 1; 99.9 % of 1000 is 999.0000000000001 in floating point.
    ranks = np.ceil(np.asarray(list(q)) / 100.0 * cumulated[-1] - 1e-9)
    at = np.searchsorted(cumulated, ranks)
    return [float(_UPPER[min(i, N_BUCKETS - 1)]) for i in at]
