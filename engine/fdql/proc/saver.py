"""Checkpoints beside training: what the trainer process writes, and how it begins from one.

The owner of the replay copies rows that do not change any more, a range at a time, while they
arrive; a thread of its own writes them. A checkpoint is then the last, short range, copies of the
small tables, and the learner's state as the trainer copied it between two updates: training waits
for copies in memory, never for the disk. Serial mode does the same without the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fdql.checkpoint import Arrays, CheckpointError, Part, Tensors
from fdql.checkpoint_folder import CheckpointFolder
from fdql.config_file import to_dict
from fdql.proc.memory import RunPlan
from fdql.replay.replay import Replay
from fdql.replay.size import row_nbytes
from fdql.replay.state import oldest, rows_between, settled, tables_of
from fdql.replay.sum_tree import I64

RANGES = 64  # that a full replay is kept in, about; a shorter range is written again with the next
LEAST_RANGE = 1024  # rows
MOST_RANGE_NBYTES = 32 << 20  # copied at a time: some 10 ms
MOST_WAITING = 2  # ranges that are copied and not written yet

Written = tuple[str, Part]


@dataclass(slots=True)
class _Range:
    """Rows `first` to `end` of every lane; `file` is done when they are written."""

    first: I64
    end: I64
    file: Future[Written]


@dataclass(frozen=True, slots=True)
class Captured:
    """The learner between two updates: copies, and what is not an array."""

    arrays: Arrays
    facts: Mapping[str, Any]


class Saver:
    """The checkpoints of one run. `work` and `close` are called by the owner of the replay, `give`
    by the owner of the learner; a checkpoint that fails is told through `say` and tried again.
    """

    def __init__(self, plan: RunPlan, replay: Replay, say: Callable[..., None]) -> None:
        config = plan.config
        self.plan, self.replay, self.say = plan, replay, say
        self.folder = CheckpointFolder(Path(plan.run_dir) / "checkpoints")
        self.keep, self.every = config.checkpoint_keep, config.checkpoint_every
        most = MOST_RANGE_NBYTES // row_nbytes(replay.shape)
        self.range_rows = max(1, min(most, max(LEAST_RANGE, replay.capacity // RANGES)))
        self._asked = self._given = 0  # learner's states: written by the one thread and the other
        self._captured: Captured | None = None
        self._ranges: list[_Range] = []
        self._copied_at = 0  # steps
        self._next = time.monotonic() + self.every
        self._writer = None if config.serial else ThreadPoolExecutor(1, "checkpoint")
        self._checkpoint: Future[Path] | None = None

    def adopt(self, ranges: list[tuple[str, Part, I64, I64]]) -> None:
        """Begin with rows that are written already, in order; the replay holds them."""
        for name, part, first, end in ranges:
            done: Future[Written] = Future()
            done.set_result((name, part))
            self._ranges.append(_Range(first, end, done))
        self._copied_at = self.replay.steps

    def due(self) -> bool:
        """True when it is time for a checkpoint."""
        return self.keep > 0 and self.every > 0 and time.monotonic() >= self._next

    @property
    def wants_learner(self) -> bool:
        """True when `give` is waited for."""
        return self._given != self._asked

    def give(self, captured: Captured) -> None:
        """The learner's state for the checkpoint that is due."""
        self._captured = captured
        self._given = self._asked

    def work(self) -> bool:
        """Between two other calls of the replay's owner: copy what is due, in small portions.
        False when nothing was.
        """
        steps = self.replay.steps - self._copied_at
        if self.keep == 0 or (steps < self.range_rows and not self.due()):
            return False
        self._forget_failed()
        if sum(not r.file.done() for r in self._ranges[-MOST_WAITING:]) >= MOST_WAITING:
            return False  # the disk is behind: the rows wait where they are
        if self.replay.steps - self._copied_at >= self.range_rows:
            self._copy_range()
            return True
        busy = self._checkpoint is not None and not self._checkpoint.done()
        if busy or self.wants_learner or not self.due():
            return False
        if self._captured is None:
            self._asked += 1
            return False
        self.save(self._captured)
        return True

    def save(self, captured: Captured, more: Mapping[str, Arrays] | None = None) -> None:
        """Copy the replay's side and hand everything to the writer; called by the replay's owner.

        more   further files of the checkpoint; serial mode's
        """
        self._captured = None
        self._next = time.monotonic() + self.every
        self._forget_failed()
        while self._copy_range() > 0:
            if len(self._ranges) >= MOST_WAITING:
                self._ranges[-MOST_WAITING].file.exception()  # waits: memory holds a few at most
        parts = {"learner": captured.arrays, "replay": tables_of(self.replay), **(more or {})}
        facts = {
            **captured.facts,
            "env_steps": self.replay.steps,
            "replay": self.replay.size,
            "resumes": self.plan.resumes,
            "config": to_dict(self.plan.config),
            "best_return": self._best_return(),
        }
        files = [r.file for r in self._ranges]
        self._checkpoint = self._submit(self._write, parts, facts, files)

    def close(self, captured: Captured | None, more: Mapping[str, Arrays] | None = None) -> None:
        """The last checkpoint, if there is something to save; raises what its writing raises."""
        try:
            if captured is not None and self.keep > 0:
                if self._writer is not None:
                    for each in (*(r.file for r in self._ranges), self._checkpoint):
                        each is None or each.exception()  # waits
                self.save(captured, more)
                assert self._checkpoint is not None
                self._checkpoint.result()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def _copy_range(self) -> int:
        """Copy settled rows that no range holds, and those of a short last range again, up to
        range_rows. Returns how many are left.
        """
        alive, end = oldest(self.replay), settled(self.replay)
        while self._ranges and (self._ranges[0].end <= alive).all():
            del self._ranges[0]
        first = self._ranges[-1].end if self._ranges else alive
        if self._ranges and self._is_short(self._ranges[-1]):
            first = self._ranges.pop().first
        first = np.maximum(first, alive)
        total = int((end - first).sum())
        if total > self.range_rows:  # every lane gives its share
            end = first + ((end - first) * self.range_rows + total - 1) // total
        left = total - int((end - first).sum())
        self._copied_at = self.replay.steps - left
        if (end > first).any():
            arrays = rows_between(self.replay, first, end)
            file = self._submit(self.folder.write_rows, arrays)
            self._ranges.append(_Range(first, end, file))
        return left

    def _is_short(self, r: _Range) -> bool:
        return r.file.done() and bool((r.end - r.first).sum() < self.range_rows // 2)

    def _forget_failed(self) -> None:
        """Rows whose writing failed, and all after them, are copied again while they last."""
        for i, each in enumerate(self._ranges):
            if each.file.done() and each.file.exception() is not None:
                del self._ranges[i:]
                return

    def _submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        if self._writer is not None:
            return self._writer.submit(call, *args)
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args))
        except OSError as error:
            done.set_exception(error)
        return done

    def _write(
        self, parts: Mapping[str, Arrays], facts: Mapping[str, Any], files: list[Future[Written]]
    ) -> Path:
        """The writer's side of a checkpoint: all its ranges were handed over before it."""
        t0 = time.monotonic()
        try:
            shared = dict(file.result() for file in files)
            path = self.folder.write(int(facts["updates"]), parts, facts, shared)
            self.folder.prune(self.keep)
        except Exception as error:
            self.say("checkpoint_failed", message=f"{type(error).__name__}: {error}")
            raise
        self.say("checkpoint", name=path.name, seconds=time.monotonic() - t0)
        return path

    def _best_return(self) -> float | None:
        try:
            with Tensors(Path(self.plan.run_dir) / "best" / "policy.safetensors") as best:
                return float(best.facts["eval_return_mean"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None
