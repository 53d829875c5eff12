"""Slow twins that are right by reading: lists, dicts and loops. Imports nothing of the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

TERMINATED, TRUNCATED, BOUNDARY, RESET = 1, 2, 4, 16


class NaiveTree:
    """Priorities in a list; a draw adds them up from the left."""

    def __init__(self, n_leaves: int) -> None:
        self.leaves = [0.0] * n_leaves

    def set(self, leaf: list[int], priority: list[float]) -> None:
        for i, p in zip(leaf, priority, strict=True):
            self.leaves[i] = p

    @property
    def total(self) -> float:
        return math.fsum(self.leaves)

    def draw(self, mass: float) -> int:
        """First leaf whose cumulated priority exceeds `mass`; exact when the sums are."""
        below = 0.0
        for i, p in enumerate(self.leaves):
            below += p
            if mass < below:
                return i
        raise ValueError("mass is not below the total")


@dataclass
class Row:
    """What a lane holds for one serial. A BOUNDARY row has an observation and nothing else."""

    obs: tuple[float, ...]
    action: tuple[float, ...] = ()
    reward: float = 0.0
    flags: int = 0
    version: int = 0

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


def naive_window(rows: list[Row], t: int, n: int, discount: float) -> tuple[float, float, int]:
    """(sum of discounted rewards, discount of the bootstrap, row that follows) of rows[t].

    Rows of one lane in the order of time. At most n steps; stops after a step that terminated, or
    that a BOUNDARY row follows.
    """
    total, m = 0.0, 0
    while True:
        row = rows[t + m]
        total += discount**m * row.reward
        m += 1
        if row.has(TERMINATED):
            return total, 0.0, t + m
        if m == n or rows[t + m].has(BOUNDARY):
            return total, discount**m, t + m


def naive_stack(rows: list[Row], t: int, stack: int) -> list[float]:
    """Observations of the newest `stack` rows up to rows[t], oldest first, one after another.

    The episode's first, at its RESET row or behind a BOUNDARY row, stands for those before it too.
    """
    starts = [i for i in range(t + 1) if i == 0 or rows[i].has(RESET) or rows[i - 1].has(BOUNDARY)]
    frames = [row.obs for row in rows[max(starts[-1], t - stack + 1) : t + 1]]
    frames = frames[:1] * (stack - len(frames)) + frames
    return [x for frame in frames for x in frame]


@dataclass
class NaiveReplay:
    """Every row ever, in one list per lane; the ring is the tail of that list."""

    n_lanes: int
    lane_rows: int
    n_step: int
    discount: float
    stack: int = 1
    new_priority: float = 1.0
    lanes: list[list[Row]] = field(default_factory=list)
    priority: dict[tuple[int, int], float] = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    reward_sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lanes = [[] for _ in range(self.n_lanes)]
        self.running = [0.0] * self.n_lanes
        self.endless = [0.0] * self.n_lanes
        self.largest = 0.0

    def is_open(self, lane: int) -> bool:
        rows = self.lanes[lane]
        return bool(rows) and not rows[-1].has(BOUNDARY)

    def append(self, lane: int, row: Row) -> None:
        """A row as the worker sent it. A missing BOUNDARY row is noticed at the next step's row."""
        if self.is_open(lane) and not row.has(BOUNDARY):
            ended = self.lanes[lane][-1].has(TERMINATED | TRUNCATED)
            if row.has(RESET) or ended:
                self.close(lane)
        self.lanes[lane].append(row)
        if not row.has(BOUNDARY):
            start = 0.0 if row.has(RESET) else self.running[lane]
            g = self.discount * start + row.reward
            self.reward_sums.append(g)
            self.running[lane] = 0.0 if row.has(TERMINATED | TRUNCATED) else g
            endless = self.discount * self.endless[lane] + row.reward
            self.largest = max(self.largest, abs(endless))
            self.endless[lane] = 0.0 if row.has(TERMINATED) else endless
            self.steps.append(row)
        else:
            self.running[lane] = 0.0
        self.refresh(lane)

    def close(self, lane: int) -> None:
        """The episode's BOUNDARY row will never come."""
        if not self.is_open(lane):
            return
        last = self.lanes[lane][-1]
        if last.has(TERMINATED):
            self.lanes[lane].append(Row(last.obs, flags=BOUNDARY))
        else:
            kept = last.flags & RESET
            self.lanes[lane][-1] = Row(last.obs, flags=kept | BOUNDARY, version=last.version)
        self.refresh(lane)

    def can_be_sampled(self, lane: int, serial: int) -> bool:
        rows = self.lanes[lane]
        if serial - (self.stack - 1) < len(rows) - self.lane_rows or rows[serial].has(BOUNDARY):
            return False
        after = rows[serial + 1 : serial + 1 + self.n_step]
        return len(after) == self.n_step or any(r.has(BOUNDARY) for r in after)

    def refresh(self, lane: int) -> None:
        """New rows get the priority of the moment, gone ones lose theirs."""
        for serial in range(len(self.lanes[lane])):
            if not self.can_be_sampled(lane, serial):
                self.priority.pop((lane, serial), None)
            else:
                self.priority.setdefault((lane, serial), self.new_priority)

    def leaf(self, lane: int, serial: int) -> int:
        return lane * self.lane_rows + serial % self.lane_rows

    def update(self, lane: int, serial: int, priority: float) -> bool:
        if (lane, serial) not in self.priority:
            return False
        self.priority[lane, serial] = priority
        return True

    def end_update(self, priorities: list[float]) -> None:
        mean = sum(priorities) / len(priorities)
        self.new_priority = max(1.0, self.new_priority + 0.01 * (mean - self.new_priority))

    def obs_moments(self) -> tuple[list[float], list[float]]:
        """Mean and variance per component, with a prior of weight 1e-12: mean 0 and variance 1."""
        weight = len(self.steps) + 1e-12
        means, variances = [], []
        for column in zip(*(row.obs for row in self.steps), strict=True):
            mean = math.fsum(column) / weight
            square = math.fsum((x - mean) ** 2 for x in column) + 1e-12 * (1.0 + mean**2)
            means.append(mean)
            variances.append(square / weight)
        return means, variances

    def reward_scale(self, v_max: float) -> float:
        g = self.reward_sums
        mean = math.fsum(g) / len(g)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in g) / len(g))
        return max(std, self.largest / (0.9 * v_max), 1e-8)
