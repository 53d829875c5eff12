"""A saved replay in its files: every declared type and shape is looked at before memory is taken.

Read by the thread that owns the replay, before its first other call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import CheckpointError, Tensors
from fdql.replay.lanes import HEAD, OPEN, PENDING, SAMPLEABLE, SLOT
from fdql.replay.replay import Replay
from fdql.replay.state import (
    LANE_ROWS,
    LANES,
    NEWEST,
    SHAPE_WORDS,
    State,
    columns_of,
    same_lanes,
    table_arrays,
)
from fdql.replay.sum_tree import I64

MOST_ROWS = 1 << 40  # of a lane, of all lanes: more is no replay of this world


class SavedRange:
    """A file of rows, as a state.Range."""

    def __init__(self, path: Path, replay: Replay, n_lanes: int) -> None:
        self.path, self._replay = path, replay
        with Tensors(path) as file:
            self.first: I64 = file.read("first", np.int64, (n_lanes,))
            self.end: I64 = file.read("end", np.int64, (n_lanes,))
            counts = self.end - self.first
            if (self.first < 0).any() or (counts < 0).any() or counts.sum() > MOST_ROWS:
                raise CheckpointError(f"{path}: its range of rows is none")
            self._size = int(counts.sum())
            flags = columns_of(replay)["flags"]  # that so many rows are there
            file.read("flags", flags.dtype, (self._size, *flags.shape[1:]), 0, 0)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See state.Range."""
        like = columns_of(self._replay)[name]
        with Tensors(self.path) as file:
            return file.read(name, like.dtype, (self._size, *like.shape[1:]), start, stop)


def read_tables(path: Path, replay: Replay) -> State:
    """What state.tables_of returned. Raises CheckpointError, and Unfit when `replay` has rows of
    another kind.
    """
    with Tensors(path) as file:
        shape = file.read("shape", np.int64, (SHAPE_WORDS,))
        n_lanes, lane_rows = int(shape[LANES]), int(shape[LANE_ROWS])
        if min(n_lanes, lane_rows) < 1 or n_lanes * lane_rows > MOST_ROWS:
            raise CheckpointError(f"{path}: {n_lanes} lanes of {lane_rows} rows are no replay")
        same_lanes(replay, {"shape": shape})
        tables: State = {"shape": shape}
        for name, like in table_arrays(replay).items():
            by_lane = (n_lanes, *like.shape[1:]) if name in ("table", "running") else like.shape
            tables[name] = file.read(name, like.dtype, by_lane)
        head = tables["table"][:, HEAD]
        if not _fits(tables["table"], lane_rows):
            raise CheckpointError(f"{path}: the table of its lanes is none")
        if not 0 <= tables["counters"][SAMPLEABLE] <= n_lanes * lane_rows:
            raise CheckpointError(f"{path}: more rows than there are could be drawn")
        used = int(min(head.max(), lane_rows))
        tables["leaves"] = file.read("leaves", np.float64, (n_lanes, used))
        for name, dtype, words in (
            ("scalars", np.float64, 2), ("counts", np.int64, 2), ("generator", np.uint64, 6),
        ):  # fmt: skip
            tables[name] = file.read(name, dtype, (words,))
        if tables["generator"][4] > 1 or tables["generator"][5] >> 32:
            raise CheckpointError(f"{path}: the state of its random generator is none")
        for name in ("first", "end"):
            tables[NEWEST + name] = file.read(NEWEST + name, np.int64, (n_lanes,))
        newest = int((head > 0).sum())
        for name, like in columns_of(replay).items():
            tables[NEWEST + name] = file.read(NEWEST + name, like.dtype, (newest, *like.shape[1:]))
    counts = tables[NEWEST + "end"] - tables[NEWEST + "first"]
    if not np.array_equal(tables[NEWEST + "end"], head) or not np.array_equal(counts, head > 0):
        raise CheckpointError(f"{path}: its newest rows are not the newest")
    return tables


def _fits(table: I64, lane_rows: int) -> bool:
    """Kernels index by what the lane table says: every word must be one that they may leave."""
    head, slot, pending, opened = (table[:, word] for word in (HEAD, SLOT, PENDING, OPEN))
    return bool(
        (head >= 0).all()
        and (slot == head % lane_rows).all()
        and (pending >= np.maximum(head - lane_rows, 0)).all()
        and (pending <= head).all()
        and ((opened == 0) | (opened == 1) & (head > 0)).all()
    )
