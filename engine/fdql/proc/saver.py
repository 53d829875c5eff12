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

from fdql.checkpoint import Arrays, CheckpointError, Part
from fdql.checkpoint_folder import CheckpointFolder
from fdql.config_file import to_dict
from fdql.leaderboard import read
from fdql.proc.memory import RunPlan
from fdql.profile import Counter
from fdql.replay.replay import Replay
from fdql.replay.size import row_nbytes
from fdql.replay.state import columns_of, oldest, rows_between, settled, tables_of
from fdql.replay.sum_tree import I64
from fdql.shm.records import Record

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


def _silent() -> None:
    pass


class Saver:
    """The checkpoints of one run. `work` and `close` are called by the owner of the replay, `give`
    by the owner of the learner; a checkpoint that fails is told through `say` and tried again.

    record  of the trainer: who writes the files counts there how far a checkpoint is
    show    called after every piece that was written
    """

    def __init__(
        self, plan: RunPlan, replay: Replay, record: Record, say: Callable[..., None],
        show: Callable[[], None] = _silent,
    ) -> None:  # fmt: skip
        config = plan.config
        self.plan, self.replay, self.record = plan, replay, record
        self.say, self.show = say, show
        self.folder = CheckpointFolder(Path(plan.run_dir) / "checkpoints")
        self.keep, self.every = config.checkpoint_keep, config.checkpoint_every
        most = MOST_RANGE_NBYTES // row_nbytes(replay.shape)
        self.range_rows = max(1, min(most, max(LEAST_RANGE, replay.capacity // RANGES)))
        self._asked = self._given = 0  # learner's states: written by the one thread and the other
        self._captured: Captured | None = None
        self._ranges: list[_Range] = []
        self._named: set[str] = set()  # ranges that a checkpoint on the disk may need; the writer's
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
            self._named.add(name)
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
        if self.keep == 0 or self.every == 0:  # with one, at the end, most rows would be in vain
            return False
        if steps < self.range_rows and not self.due():
            return False
        self._forget(_has_failed)
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
        self._forget(self._is_gone)
        parts = {"learner": captured.arrays, "replay": tables_of(self.replay), **(more or {})}
        self._submit(self._begin, self._left_nbytes(parts))
        while self._copy_range() > 0:
            if len(self._ranges) >= MOST_WAITING:
                self._ranges[-MOST_WAITING].file.exception()  # waits: memory holds a few at most
        facts = {
            **captured.facts,
            "env_steps": self.replay.steps,
            "replay": self.replay.size,
            "resumes": self.plan.resumes,
            "config": to_dict(self.plan.config),
            "env": self.plan.env.to_dict(),
            "base": list(self.plan.base),
            "best_return": self._best_return(int(captured.facts["updates"])),
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
            self._drop([self._ranges.pop(0)])
        first = self._first()
        if self._ranges and (first < self._ranges[-1].end).any():  # it is copied again
            self._drop([self._ranges.pop()])
        total = int((end - first).sum())
        if total > self.range_rows:  # every lane gives its share
            end = first + ((end - first) * self.range_rows + total - 1) // total
        left = total - int((end - first).sum())
        self._copied_at = self.replay.steps - left
        if (end > first).any():
            arrays = rows_between(self.replay, first, end)
            file = self._submit(self.folder.write_rows, arrays, self._wrote)
            self._ranges.append(_Range(first, end, file))
        return left

    def _is_short(self, r: _Range) -> bool:
        return r.file.done() and bool((r.end - r.first).sum() < self.range_rows // 2)

    def _first(self) -> I64:
        """Rows that are copied next: behind the last range, or from its first if it is short."""
        alive = oldest(self.replay)
        if not self._ranges:
            return alive
        last = self._ranges[-1]
        return np.maximum(last.first if self._is_short(last) else last.end, alive)

    def _left_nbytes(self, parts: Mapping[str, Arrays]) -> int:
        """Bytes of a checkpoint that are to be written: its own parts, and rows in no range yet."""
        rows = int((settled(self.replay) - self._first()).sum())
        row = sum(column[:1].nbytes for column in columns_of(self.replay).values())
        return rows * row + sum(a.nbytes for arrays in parts.values() for a in arrays.values())

    def _forget(self, lost: Callable[[Future[Written]], bool]) -> None:
        """The first range whose file is `lost`, and all after it, are copied again while they
        last.
        """
        for i, each in enumerate(self._ranges):
            if each.file.done() and lost(each.file):
                self._drop(self._ranges[i:])
                del self._ranges[i:]
                return

    def _is_gone(self, file: Future[Written]) -> bool:
        return _has_failed(file) or not self.folder.has_rows(*file.result())

    def _drop(self, ranges: list[_Range]) -> None:
        """Delete files of rows that no later checkpoint will name, unless one before needs them:
        otherwise they would stay until the next one is written.
        """
        for each in ranges:
            self._submit(self._delete, each.file)

    def _delete(self, file: Future[Written]) -> None:
        """The writer's side: it has written the file by now, and every checkpoint that names it."""
        if not _has_failed(file) and file.result()[0] not in self._named:
            self.folder.drop_rows(file.result()[0])

    def _begin(self, nbytes: int) -> None:
        """The writer's side: files of so many bytes follow, which make a checkpoint."""
        self.record.set(Counter.SAVED, 0)
        self.record.set(Counter.TO_SAVE, nbytes)

    def _wrote(self, nbytes: int) -> None:
        self.record.add(Counter.SAVED, nbytes)
        self.show()

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
        t0, named = time.monotonic(), self._named
        try:
            there = self.folder.names()
            shared = dict(file.result() for file in files)
            self._named = named | shared.keys()
            path = self.folder.write(int(facts["updates"]), parts, facts, shared, self._wrote)
        except Exception as error:
            self.say("checkpoint_failed", message=f"{type(error).__name__}: {error}")
            if self._named is not named and self.folder.names() == there:
                self._named = named  # else it is there: what failed came after its rename
            raise
        finally:
            self.record.set(Counter.TO_SAVE, 0)
            self.record.set(Counter.SAVED, 0)
        self.say("checkpoint", name=path.name, seconds=time.monotonic() - t0)
        try:
            self._named = self.folder.prune(self.keep, shared)
        except (OSError, CheckpointError) as error:
            self.say("warning", message=f"old checkpoints could not be cleared away: {error}")
        return path

    def _best_return(self, updates: int) -> float | None:
        """The best evaluation of a policy of at most so many updates: a run that was killed and
        goes on may have evaluated later ones, which it makes again.
        """
        try:
            entries = read(Path(self.plan.run_dir) / "best")
        except CheckpointError:
            return None
        return max((e.mean for e in entries if e.updates <= updates), default=None)


def _has_failed(file: Future[Written]) -> bool:
    return file.exception() is not None
