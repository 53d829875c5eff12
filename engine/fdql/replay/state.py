"""A replay as named arrays and back, for checkpoints: tables (priorities, statistics, draws) and
ranges of rows.

A row that has a successor in its lane never changes until it is overwritten, so a range of such
rows is written once for many checkpoints. The newest row of each lane may still become a BOUNDARY
row: it goes with the tables. Called by the thread that owns the replay, between two of its other
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fdql.config import ConfigError
from fdql.replay.lanes import HEAD, OPEN, STEPS
from fdql.replay.replay import Replay
from fdql.replay.sum_tree import F64, I64
from fdql.shm.chunk import BOUNDARY, ChunkViews

State = dict[str, NDArray[Any]]

WORD = (1 << 64) - 1
NEWEST = "newest."  # before the names of the columns of every lane's newest row
# Words of `shape`; what follows these must be equal to load at all.
LANES, LANE_ROWS, N_STEP, SHAPE_WORDS = 0, 1, 2, 7


class Unfit(ConfigError):
    """The saved replay has rows of another kind."""


class Range(Protocol):
    """Saved rows `first` to `end`, serials, (lanes,) int64 each, of every lane, lane after lane."""

    @property
    def first(self) -> I64: ...
    @property
    def end(self) -> I64: ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop of a column, counted from the range's first."""
        ...


@dataclass(frozen=True, slots=True)
class Copied:
    """What `rows_between` returned, as a Range."""

    columns: State

    @property
    def first(self) -> I64:
        """Serial of each lane's first row."""
        return self.columns["first"]

    @property
    def end(self) -> I64:
        """Serial behind each lane's last row."""
        return self.columns["end"]

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See Range."""
        return self.columns[name][start:stop]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of a saved replay that its ranges held, and that none held; `exactly`: they are where
    they were, and everything else is as it was.
    """

    kept: int
    lost: int
    exactly: bool


def columns_of(replay: Replay) -> State:
    """The columns of its rows, (rows, ...) each."""
    rows = replay.rows
    return {
        "flags": rows.flags,
        "reward": rows.reward,
        "version": rows.version,
        "action": rows.action,
        "obs": rows.obs,
    }


def table_arrays(replay: Replay) -> State:
    """Its arrays that are small and change all the time."""
    rows, statistics = replay.rows, replay.statistics
    return {
        "table": rows.table,
        "counters": rows.counters,
        "running": statistics.running,
        "reward_sums": statistics.sums,
        "moments": statistics.moments,
        "obs_mean": statistics.obs_mean,
        "obs_scale": statistics.obs_scale,
    }


def _shape(replay: Replay) -> dict[str, int]:
    rows = replay.rows
    return {
        "lanes": rows.n_lanes,
        "rows per lane": rows.lane_rows,
        "n_step": rows.n_step,
        "observation components": rows.obs.shape[1],
        "bytes per component": rows.obs.itemsize,
        "frames per stack": rows.stack,
        "words of an action": rows.action.shape[1],
    }


def settled(replay: Replay) -> I64:
    """(lanes,) int64: rows with a smaller serial do not change any more."""
    return np.maximum(replay.rows.table[:, HEAD] - 1, 0)


def oldest(replay: Replay) -> I64:
    """(lanes,) int64: serial of each lane's oldest row that is not overwritten."""
    return np.maximum(replay.rows.table[:, HEAD] - replay.rows.lane_rows, 0)


def rows_between(replay: Replay, first: I64, end: I64) -> State:
    """Copies of rows `first` to `end` (serials, (lanes,) int64, not overwritten) of every lane.

    The columns lane after lane, and `first` and `end` themselves.
    """
    n, size = replay.rows.lane_rows, int((end - first).sum())
    out: State = {"first": first.astype(np.int64), "end": end.astype(np.int64)}
    for name, column in columns_of(replay).items():
        copy = np.empty((size, *column.shape[1:]), dtype=column.dtype)
        at = 0
        for lane, (a, b) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
            while a < b:  # twice at most: up to the lane's end, and from its beginning
                stop = min(b, a - a % n + n)
                row = lane * n + a % n
                copy[at : at + stop - a] = column[row : row + stop - a]
                at, a = at + stop - a, stop
        out[name] = copy
    return out


def tables_of(replay: Replay) -> State:
    """Copies of everything but the settled rows; bit-exact through load_replay.

    leaves  (lanes, rows that were ever written) float64
    """
    rows = replay.rows
    head = rows.table[:, HEAD]
    used = int(min(head.max(), rows.lane_rows))
    generator: Any = replay.rng.bit_generator.state
    words = [generator["state"]["state"], generator["state"]["inc"]]
    halves = [half for word in words for half in (word & WORD, word >> 64)]
    spare = [generator["has_uint32"], generator["uinteger"]]
    newest = rows_between(replay, settled(replay), head)
    return {
        **{name: table.copy() for name, table in table_arrays(replay).items()},
        **{NEWEST + name: column for name, column in newest.items()},
        "leaves": replay.tree.leaves.reshape(rows.n_lanes, -1)[:, :used].copy(),
        "shape": np.array(list(_shape(replay).values()), dtype=np.int64),
        "scalars": np.array([replay.new_priority, replay.statistics.reward_scale]),
        "counts": np.array([replay.stale, replay.rescale_at], dtype=np.int64),
        "generator": np.array(halves + spare, dtype=np.uint64),
    }


def same_lanes(replay: Replay, tables: State) -> bool:
    """True when the saved replay had the lanes and windows of this one, so that rows go where they
    were. Raises Unfit when its rows mean something else.
    """
    pairs = list(zip(_shape(replay).items(), tables["shape"].tolist(), strict=True))
    for (name, here), saved in pairs[N_STEP + 1 :]:
        if here != saved:
            raise Unfit(f"the saved replay has {name} = {saved} and this one {here}")
    return all(here == saved for (_, here), saved in pairs[: N_STEP + 1])


def load_replay(replay: Replay, tables: State, ranges: Sequence[Range]) -> Loaded:
    """Make a fresh `replay` what the saved one was: `ranges` are its rows in the order of their
    writing. Close its lanes afterwards if the environments start anew.

    With other lanes or windows, or without some of the ranges, the rows are stored anew, episode by
    episode, each with its priority; then every episode is closed, also where rows are missing
    behind it. Of more rows than fit, every saved lane keeps its newest. Raises Unfit, and
    ValueError for rows that the replay never had.
    """
    parts = [*ranges, Copied(_newest(tables))]
    kept, lost = _held(tables, parts)
    exactly = same_lanes(replay, tables) and not lost
    replay.new_priority, replay.statistics.reward_scale = tables["scalars"].tolist()
    replay.stale, replay.rescale_at = tables["counts"].tolist()
    (_load_exactly if exactly else _store_anew)(replay, tables, parts)
    s0, s1, i0, i1, has_spare, spare = (int(x) for x in tables["generator"])
    replay.rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": s0 | s1 << 64, "inc": i0 | i1 << 64},
        "has_uint32": has_spare,
        "uinteger": spare,
    }
    return Loaded(kept, lost, exactly)


def _held(tables: State, ranges: Sequence[Range]) -> tuple[int, int]:
    """Rows that the ranges hold, and that none of them does."""
    head = tables["table"][:, HEAD]
    reached = np.maximum(head - int(tables["shape"][LANE_ROWS]), 0)
    rows, lost = int((head - reached).sum()), 0
    for part in ranges:
        gap = np.maximum(part.first - reached, 0)
        lost += int(gap[part.end > reached].sum())
        reached = np.maximum(reached, part.end)
    if not np.array_equal(reached, head):  # the last of them ends there
        raise ValueError("there are rows that the saved replay never had")
    return rows - lost, lost


def _newest(tables: State) -> State:
    return {k.removeprefix(NEWEST): v for k, v in tables.items() if k.startswith(NEWEST)}


def _load_exactly(replay: Replay, tables: State, ranges: Sequence[Range]) -> None:
    rows = replay.rows
    for name, table in table_arrays(replay).items():
        table[...] = tables[name]
    alive = oldest(replay)
    for part in (p for p in ranges if (p.end > alive).any()):
        first, counts = part.first, part.end - part.first
        lane = np.repeat(np.arange(rows.n_lanes), counts)
        serial = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        kept = np.flatnonzero(serial >= alive[lane])
        to = lane[kept] * rows.lane_rows + serial[kept] % rows.lane_rows
        for name, column in columns_of(replay).items():
            column[to] = part.rows(name, 0, len(serial))[kept]
    used = tables["leaves"].shape[1]
    for at in range(rows.n_lanes):  # lane by lane: the tree's scratch grows with what it gets
        leaf = np.arange(at * rows.lane_rows, at * rows.lane_rows + used, dtype=np.int64)
        replay.tree.set(leaf, np.ascontiguousarray(tables["leaves"][at]))


def _store_anew(replay: Replay, tables: State, ranges: Sequence[Range]) -> None:
    """Append what every saved lane holds to the lanes that have least, an episode at a time."""
    store = replay.rows
    for name, table in table_arrays(replay).items():
        if name not in ("table", "counters", "running"):
            table[...] = tables[name]
    n_lanes, saved_rows = tables["shape"][[LANES, LANE_ROWS]].tolist()
    share = min(saved_rows, -(-replay.capacity // n_lanes))  # more would replace another lane's
    placed: list[tuple[int, int, F64]] = []
    for lane, head in enumerate(tables["table"][:, HEAD].tolist()):
        at = max(0, head - share)
        for part in ranges:
            first, end = part.first, part.end
            if end[lane] <= at:
                continue
            if first[lane] > at:  # rows are missing: what led up to them ends here
                replay.close_lanes(0, store.n_lanes)
                at = int(first[lane])
            start = int((end - first)[:lane].sum()) + at - int(first[lane])
            stop = start + int(end[lane]) - at
            columns = {name: part.rows(name, start, stop) for name in columns_of(replay)}
            priority = tables["leaves"][lane, np.arange(at, end[lane]) % saved_rows]
            placed += _append_episodes(replay, columns, priority)
            at = int(end[lane])
        replay.close_lanes(0, store.n_lanes)
    for lane, serial, priority in placed:
        serials = np.arange(serial, serial + len(priority))
        to = lane * store.lane_rows + serials % store.lane_rows
        there = serials >= store.table[lane, HEAD] - store.lane_rows
        there &= (replay.tree.leaves[to] > 0) & (priority > 0)
        replay.tree.set(to[there], priority[there])
    store.counters[STEPS] = tables["counters"][STEPS]


def _append_episodes(replay: Replay, columns: State, priority: F64) -> list[tuple[int, int, F64]]:
    """Append rows of one saved lane: each episode to one lane, a begun one where it began.

    Returns lane, serial of the first row, and saved priorities of each piece.
    """
    store, placed = replay.rows, []
    n = len(priority)
    ends = (np.flatnonzero(columns["flags"] & BOUNDARY) + 1).tolist()
    for a, b in zip([0, *ends], [*ends, n], strict=True):
        begun = np.flatnonzero(store.table[:, OPEN])
        lane = int(begun[0] if begun.size else store.table[:, HEAD].argmin())
        for at in range(a, b, store.lane_rows):
            piece = slice(at, min(b, at + store.lane_rows))
            copy = {name: np.array(column[piece]) for name, column in columns.items()}
            size = piece.stop - at
            placed.append((lane, int(store.table[lane, HEAD]), priority[piece]))
            views = ChunkViews(lane=np.zeros(size, np.uint16), action_words=copy["action"], **copy)
            replay.restore(views, size, lane)
    return placed
