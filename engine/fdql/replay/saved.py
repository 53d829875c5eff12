"""A saved replay in its files: every declared type and shape is looked at before memory is taken.

Read by the thread that owns the replay, before its first other call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import CheckpointError, Tensors
from fdql.replay.lanes import HEAD
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
        if (head < 0).any():
            raise CheckpointError(f"{path}: a lane has less than no rows")
        used = int(min(head.max(), lane_rows))
        tables["leaves"] = file.read("leaves", np.float64, (n_lanes, used))
        for name, dtype, words in (
            ("scalars", np.float64, 2), ("counts", np.int64, 2), ("generator", np.uint64, 6),
        ):  # fmt: skip
            tables[name] = file.read(name, dtype, (words,))
        for name in ("first", "end"):
            tables[NEWEST + name] = file.read(NEWEST + name, np.int64, (n_lanes,))
        newest = int((head > 0).sum())
        for name, like in columns_of(replay).items():
            tables[NEWEST + name] = file.read(NEWEST + name, like.dtype, (newest, *like.shape[1:]))
    counts = tables[NEWEST + "end"] - tables[NEWEST + "first"]
    if not np.array_equal(tables[NEWEST + "end"], head) or not np.array_equal(counts, head > 0):
        raise CheckpointError(f"{path}: its newest rows are not the newest")
    return tables
