"""The reading end of the transition rings, in the trainer's place: takes every chunk, checks each.

Columns are copied while the clock runs, as ingest does; the check comes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fdql.proc.memory import RunMemory, RunPlan
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED, ChunkViews
from fdql.shm.ring import Chunk

from rates import NULL
from rates.null_env import LENGTH

ENDED = TERMINATED | TRUNCATED


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk that was taken: its header and copies of its R rows.

    lane, flags  (R,) uint16, uint8
    reward, obs  (R,) and (R, O) float32
    """

    head: Chunk
    lane: np.ndarray[Any, Any]
    flags: np.ndarray[Any, Any]
    reward: np.ndarray[Any, Any]
    obs: np.ndarray[Any, Any]


class Drain:
    """Reads every ring of a run; the only reader."""

    def __init__(self, memory: RunMemory) -> None:
        self.plan: RunPlan = memory.plan
        self.rings = [memory.ring_reader(w) for w in range(self.plan.workers)]
        self.kept: list[list[Kept]] = [[] for _ in self.rings]
        self.steps = 0
        self._views: list[dict[int, ChunkViews]] = [{} for _ in self.rings]

    def take(self) -> int:
        """Take every chunk that is ready. Returns how many."""
        taken = 0
        for w, ring in enumerate(self.rings):
            n = ring.peek()
            for k in range(n):
                slot = ring.slot_index(k)
                if slot not in self._views[w]:
                    self._views[w][slot] = self.plan.chunk.views(ring.payload(k))
                self.keep(w, ring.chunk(k), self._views[w][slot])
            if n:
                ring.release(n)
            taken += n
        return taken

    def keep(self, worker: int, head: Chunk, views: ChunkViews) -> None:
        """Copy a chunk's columns."""
        n = head.n_rows
        columns = (views.lane, views.flags, views.reward, views.obs)
        self.kept[worker].append(Kept(head, *(c[:n].copy() for c in columns)))
        self.steps += head.n_steps

    def close(self) -> None:
        """Let go of the shared memory; what was kept stays."""
        self._views = [{} for _ in self.rings]
        self.rings = []

    def faults(self, committed: list[int]) -> list[str]:
        """What is wrong with what was taken; `committed`: steps that each worker says it made."""
        wrong = []
        for w, chunks in enumerate(self.kept):
            seen = sum(c.head.n_steps for c in chunks)
            if not seen == committed[w] == self.rings[w].committed_steps:
                wrong.append(
                    f"worker {w} committed {committed[w]} steps, its ring counts "
                    f"{self.rings[w].committed_steps}, drained were {seen}"
                )
            seqs = [c.head.seq for c in chunks]
            if seqs != list(range(1, len(chunks) + 1)):
                wrong.append(f"worker {w}: chunk numbers are not 1, 2, ... {len(chunks)}")
            if any(c.head.n_steps != int((c.flags & BOUNDARY == 0).sum()) for c in chunks):
                wrong.append(f"worker {w}: a chunk's count of steps is not that of its rows")
            wrong += self._faults_of_lanes(w, chunks)
        return wrong

    def _faults_of_lanes(self, worker: int, chunks: list[Kept]) -> list[str]:
        if not chunks:
            return [f"worker {worker}: not one chunk"]
        columns = zip(*((c.lane, c.flags, c.reward, c.obs) for c in chunks), strict=True)
        lane, flags, reward, obs = (np.concatenate(column) for column in columns)
        wrong, steps = [], []
        for number in range(self.plan.envs_per_worker):
            mine = lane == number
            what = lane_fault(flags[mine])
            if what is None and self.plan.env.env == NULL:
                what = null_fault(number, flags[mine], reward[mine], obs[mine])
            if what:
                wrong.append(f"worker {worker} lane {number}: {what}")
            steps.append(int((flags[mine] & BOUNDARY == 0).sum()))
        per_group = self.plan.envs_per_group
        groups = [set(steps[i : i + per_group]) for i in range(0, len(steps), per_group)]
        if any(len(g) > 1 for g in groups):
            wrong.append(f"worker {worker}: the lanes of a group made unequal steps: {steps}")
        return wrong


def lane_fault(flags: np.ndarray[Any, Any]) -> str | None:
    """What is wrong with the order of a lane's rows: RESET first and after a boundary, a boundary
    after an end, and nowhere else.
    """
    if not flags.size:
        return "no rows"
    boundary, reset, ended = (flags & bit > 0 for bit in (BOUNDARY, RESET, ENDED))
    if not reset[0] or boundary[0]:
        return "its first row does not begin an episode"
    if not (np.array_equal(boundary[1:], ended[:-1]) and np.array_equal(reset[1:], boundary[:-1])):
        return "an episode's end, its final observation and the next reset do not follow each other"
    return None


def null_fault(
    number: int,
    flags: np.ndarray[Any, Any],
    reward: np.ndarray[Any, Any],
    obs: np.ndarray[Any, Any],
) -> str | None:
    """The first row of the counting environment that is not what it must be."""
    i = np.arange(len(obs))
    episode, at = np.divmod(i, LENGTH + 1)
    right = np.stack([np.full(i.size, number), episode, at], axis=1)
    bad = (obs != right).any(axis=1) | ((flags & BOUNDARY == 0) & (reward != at + 1))
    if not bad.any():
        return None
    k = int(np.argmax(bad))
    return f"row {k} is {obs[k].tolist()}, reward {reward[k]:g}; {right[k].tolist()} was due"
