"""Stages, counters and their readings: what every process records and how the records become
percentiles.

A process has one record (shm.records.Record): a counter per `Counter` and a histogram per `Stage`.
Its owner writes, the supervisor reads. The eight stage names are those of ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fdql.shm.records import N_BUCKETS, Record, bucket_upper, record_bytes


class Stage(IntEnum):
    """Histograms of a record. The first eight are the stages, nanoseconds each."""

    STEP = 0  # one step of one group of environments
    RING = 1  # handing a chunk over, waiting for room included
    INGEST = 2  # storing one chunk
    SAMPLE = 3  # filling one batch
    UPDATE = 4  # one update of the learner
    PUBLISH = 5  # one publication of a policy
    INFER = 6  # one forward pass with exploration
    ACT = 7  # handing the actions of one round over
    WAIT = 8  # waiting for work: worker for actions, inference for requests, trainer for a batch
    HELD = 9  # inference only: requests held back because the steps are ahead of the updates
    LAG = 10  # trainer only: updates between the policy that acted and the newest, per chunk
    ROWS = 11  # inference only: rows of a forward pass


class Counter(IntEnum):
    """Counters of a record; the role that writes it stands beside it."""

    STEPS = 0  # worker: environment steps handed over, over all its incarnations
    EPISODES = 1  # worker
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
    DROPPED = 12  # trainer: steps not stored because their episode was cut by a crash of the worker


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
    at = np.searchsorted(cumulated, np.asarray(list(q)) / 100.0 * cumulated[-1])
    return [float(_UPPER[min(i, N_BUCKETS - 1)]) for i in at]


def stage_table(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Stage name -> count, p50, p99, p99.9 over several records; times in microseconds."""
    everything = list(records)
    table: dict[str, dict[str, float]] = {}
    for stage in Stage:
        total = np.sum([counts(r, stage) for r in everything], axis=0).astype(np.uint64)
        n = int(total.sum())
        if n == 0:
            continue
        unit = 1.0 if stage in (Stage.LAG, Stage.ROWS) else 1e-3
        p50, p99, p999 = percentiles(total)
        table[stage.name.lower()] = {
            "count": n,
            "p50": p50 * unit,
            "p99": p99 * unit,
            "p99.9": p999 * unit,
        }
    return table
