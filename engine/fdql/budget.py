"""The latency budget: where every process spent its time between two looks at the records.

Read by the report; nothing here writes to a record. A `Snapshot` copies the histograms, the
difference of two is an interval, and the budget of an interval holds rates, percentiles and shares
of the wall time. A stage counts when it ends: one that began before the interval counts in full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.core_time import core_time
from fdql.profile import ROLES, Stage, counts, percentiles, role_of
from fdql.shm.records import Record, now_ns

WINDOW_SECONDS = 5.0  # of the recent budget
LOOK_SECONDS = 1.0  # between two snapshots that are kept for it

U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Histograms of all processes at one moment, or their difference over an interval.

    seconds     of the clock of now_ns, or the length of the interval
    sums        process -> (stages recorded,) uint64
    histograms  process -> (stages recorded, N_BUCKETS) uint64
    cores       process -> seconds on a core, seconds ready without one; where the kernel counts it
    """

    seconds: float
    sums: dict[str, U64]
    histograms: dict[str, U64]
    cores: dict[str, tuple[float, float]]

    @staticmethod
    def take(records: Mapping[str, Record], pids: Mapping[str, int] | None = None) -> Snapshot:
        """Read the records, process -> record, and the times of the living processes."""
        sums, histograms = {}, {}
        for process, record in records.items():
            stages = role_of(process).recorded
            histograms[process] = np.stack([counts(record, s) for s in stages])
            sums[process] = np.array([record.sum_ns(s) for s in stages], dtype=np.uint64)
        cores: dict[str, tuple[float, float]] = {}
        for process, pid in (pids or {}).items():
            main, others = core_time(pid)
            cores[process] = main
            if process == "trainer":
                cores["loader"] = others
        return Snapshot(now_ns() / 1e9, sums, histograms, cores)

    def since(self, earlier: Snapshot) -> Snapshot:
        """What was recorded between `earlier` and this."""
        return Snapshot(
            self.seconds - earlier.seconds,
            {p: v - earlier.sums[p] for p, v in self.sums.items()},
            {p: v - earlier.histograms[p] for p, v in self.histograms.items()},
            {p: _gained(v, earlier.cores.get(p)) for p, v in self.cores.items()},
        )

    def by_role(self) -> Snapshot:
        """All workers taken together, as `worker`."""
        sums: dict[str, Any] = {}
        histograms: dict[str, Any] = {}
        cores: dict[str, tuple[float, float]] = {}
        for process, (on_core, ready) in self.cores.items():
            kind = process.partition(" ")[0]
            before = cores.get(kind, (0.0, 0.0))
            cores[kind] = before[0] + on_core, before[1] + ready
        for process in self.sums:
            kind = process.partition(" ")[0]
            sums[kind] = sums.get(kind, 0) + self.sums[process]
            histograms[kind] = histograms.get(kind, 0) + self.histograms[process]
        return Snapshot(self.seconds, sums, histograms, cores)

    @property
    def records(self) -> int:
        """Values recorded."""
        return int(sum(int(h.sum()) for h in self.histograms.values()))


def _gained(now: tuple[float, float], before: tuple[float, float] | None) -> tuple[float, float]:
    """Seconds since `before`; all of them when the process is another (a restarted worker)."""
    if before is None or now[0] < before[0]:
        return now
    return now[0] - before[0], max(0.0, now[1] - before[1])


@dataclass(frozen=True, slots=True)
class Reading:
    """One histogram over an interval: microseconds, or plain numbers for Role.numbers.

    share       of the wall time; of latencies and numbers: no meaning
    p50 ...     upper bounds of their buckets, at most 12.5 % above the value
    """

    count: int
    per_second: float
    share: float
    p50: float
    p99: float
    p999: float

    def to_dict(self, *, share: bool) -> dict[str, float]:
        """For JSON."""
        values: dict[str, float] = {"count": self.count, "per_second": round(self.per_second, 3)}
        if share:
            values["share"] = round(self.share, 5)
        return values | self.percentiles()

    def percentiles(self) -> dict[str, float]:
        """For JSON."""
        return {
            "p50": round(self.p50, 3),
            "p99": round(self.p99, 3),
            "p99.9": round(self.p999, 3),
        }


@dataclass(frozen=True, slots=True)
class Account:
    """One process over an interval. busy + waiting + other = 1, shares of the wall time.

    other    what no stage covers: the loop itself, the interpreter's lock, start and end
    core     on a core, as the kernel counts; a share of the same wall time
    queued   ready to run, but without a core; inside busy and other
    """

    busy: float
    waiting: float
    core: float
    queued: float
    stages: dict[str, Reading]
    waits: dict[str, Reading]
    latencies: dict[str, Reading]
    numbers: dict[str, Reading]

    @property
    def other(self) -> float:
        """The rest of the wall time."""
        return 1.0 - self.busy - self.waiting

    def shares(self) -> dict[str, float]:
        """`busy`, `waiting`, `core`, `queued`, every stage and wait, as shares of the wall time."""
        own = {"busy": self.busy, "waiting": self.waiting, "core": self.core, "queued": self.queued}
        return own | {k: r.share for k, r in (self.stages | self.waits).items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "busy": round(self.busy, 5),
            "waiting": round(self.waiting, 5),
            "other": round(self.other, 5),
            "core": round(self.core, 5),
            "queued": round(self.queued, 5),
            "stages_us": {k: r.to_dict(share=True) for k, r in self.stages.items()},
            "waits_us": {k: r.to_dict(share=True) for k, r in self.waits.items()},
            "latencies_us": {k: r.to_dict(share=False) for k, r in self.latencies.items()},
            "numbers": {k: r.to_dict(share=False) for k, r in self.numbers.items()},
        }


def budget(interval: Snapshot, processes: Mapping[str, int] | None = None) -> dict[str, Account]:
    """Process -> account. `processes`: how many stand behind a name (by_role), else one each.

    Shares are those of one process, the mean over several; counts and rates are of all together.
    """
    return {
        process: _account(process, interval, (processes or {}).get(process, 1))
        for process in interval.sums
    }


def _account(process: str, interval: Snapshot, n: int) -> Account:
    role, seconds = role_of(process), max(interval.seconds, 1e-9)
    readings: dict[Stage, Reading] = {}
    for stage, sum_ns, histogram in zip(
        role.recorded, interval.sums[process], interval.histograms[process], strict=True
    ):
        number = stage in role.numbers
        count, unit = int(histogram.sum()), 1.0 if number else 1e-3
        p50, p99, p999 = (unit * p for p in percentiles(histogram))
        share = float(sum_ns) / 1e9 / seconds / max(n, 1)
        readings[stage] = Reading(count, count / seconds, share, p50, p99, p999)

    def named(stages: tuple[Stage, ...]) -> dict[str, Reading]:
        return {role.name(s): readings[s] for s in stages if readings[s].count}

    on_core, ready = interval.cores.get(process, (0.0, 0.0))
    return Account(
        core=on_core / seconds / max(n, 1),
        queued=ready / seconds / max(n, 1),
        busy=sum(readings[s].share for s in role.busy),
        waiting=sum(readings[s].share for s in role.waits),
        stages=named((*role.busy, *role.parts)),
        waits=named(tuple(role.waits)),
        latencies=named(role.latencies),
        numbers=named(role.numbers),
    )


class Ledger:
    """Snapshots of a run: since its first update, and the last seconds.

    records   process -> record; the loader thread has the trainer's
    """

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.records = records
        self.pids: dict[str, int] = {}  # of the processes that said they are ready
        self.processes = {role: sum(p.partition(" ")[0] == role for p in records) for role in ROLES}
        self.start = Snapshot.take(records)
        self.first: Snapshot | None = None  # at the first update
        self.last: Snapshot | None = None  # when the run began to end
        self._recent = deque([self.start])

    def look(self, *, training: bool) -> None:
        """Keep a snapshot for the recent budget once a second; `training`: updates are made."""
        now = now_ns() / 1e9
        if training and self.first is None:
            self.first = Snapshot.take(self.records, self.pids)
            self._recent = deque([self.first])  # start-up is no sign of what limits the training
        elif now - self._recent[-1].seconds >= LOOK_SECONDS:
            self._recent.append(Snapshot.take(self.records, self.pids))
            while len(self._recent) > 1 and now - self._recent[1].seconds >= WINDOW_SECONDS:
                self._recent.popleft()

    def close(self) -> None:
        """The run begins to end: what follows is not its steady state."""
        self.last = Snapshot.take(self.records, self.pids)

    def recent(self) -> dict[str, Account]:
        """By role, over the last seconds. The workers' shares are their mean."""
        interval = Snapshot.take(self.records, self.pids).since(self._recent[0])
        return budget(interval.by_role(), self.processes)

    def whole(self) -> dict[str, Account]:
        """By role, over `interval`."""
        return budget(self.interval().by_role(), self.processes)

    def interval(self) -> Snapshot:
        """From the first update (from the start, when there was none) to the end, or to now."""
        return (self.last or Snapshot.take(self.records, self.pids)).since(self.first or self.start)

    def stage_table(self) -> dict[str, dict[str, float]]:
        """Name -> count, p50, p99, p99.9 in microseconds, since the start, workers together."""
        since_start = Snapshot.take(self.records, self.pids).since(self.start).by_role()
        return {
            name: {"count": r.count} | r.percentiles()
            for account in budget(since_start).values()
            for name, r in (account.stages | account.waits | account.latencies).items()
        }


def metrics(recent: Mapping[str, Account]) -> dict[str, float]:
    """A budget by role for a row of metrics; the parts of the stages are left to the summary."""
    row: dict[str, float] = {}
    for role, account in recent.items():
        at = f"budget/{role}"
        row[f"{at}/busy"] = round(account.busy, 4)
        row[f"{at}/core"] = round(account.core, 4)
        row[f"{at}/queued"] = round(account.queued, 4)
        for name, reading in account.waits.items():
            row[f"{at}/{name}"] = round(reading.share, 4)
        for name, reading in account.stages.items():
            if "." not in name:
                row[f"{at}/{name}_us_p50"] = round(reading.p50, 1)
                row[f"{at}/{name}_us_p99"] = round(reading.p99, 1)
        for name, reading in account.latencies.items():
            row[f"{at}/{name}_us_p50"] = round(reading.p50, 1)
        for name, reading in account.numbers.items():
            row[f"{at}/{name}_p50"] = round(reading.p50, 1)
    return row
