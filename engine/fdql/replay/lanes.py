"""Rows of all environments, one ring (lane) for each. Stage 3 of 8, `ingest`.

One owner thread. Neighbours in time are neighbours in memory and the oldest row of a lane goes
first, so n-step windows and sequences are index arithmetic. The row of serial s in lane l of L rows
is l * L + s % L, which is also its leaf in the sum tree. With stacks of S frames a row holds the
newest frame only, and an observation is that row and up to S - 1 rows before it.

A leaf is positive if and only if its row can be sampled: the row is a step, either its n-th
successor or an earlier BOUNDARY row is there, and the S - 1 rows before it are not overwritten.
Rows leave oldest first, so a window never loses its tail, and a row that lost its history never
gets it back. A row is enabled when the row is appended that completes its window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.kernel_cache import njit
from fdql.replay.columns import zero_column
from fdql.replay.size import FANOUT, least_lane_rows
from fdql.replay.sum_tree import F64, I64
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED, ChunkViews, RowShape

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
Obs = NDArray[Any]  # observations: float32 or uint8, by RowShape.obs_dtype

# Columns of the lane table, int64.
HEAD = 0  # serial of the next row
SLOT = 1  # HEAD % L
PENDING = 2  # oldest serial that is not enabled yet; HEAD when there is none
OPEN = 3  # 1 while the newest row belongs to an unfinished episode
MARK = 4  # PENDING before the last call
LANE_WORDS = 5

# Counters, int64.
STEPS = 0  # steps ever appended; BOUNDARY rows are not steps
SAMPLEABLE = 1  # rows with a positive leaf
COUNTERS = 2


@njit()
def claim_row(lane: int, lane_rows: int, stack: int, table: I64, tree: F64, counters: I64) -> int:
    """Take the row of the lane's next serial; what it held is gone.

    The row S - 1 further on reaches back to it and is not sampled any more. Its own leaf and those
    between are 0 already: they were that row for the claims before.
    """
    slot = table[lane, SLOT]
    row: int = lane * lane_rows + slot
    lost = slot + stack - 1
    lost = lane * lane_rows + (lost if lost < lane_rows else lost - lane_rows)
    if tree[lost] > 0.0:
        tree[lost] = 0.0
        counters[SAMPLEABLE] -= 1
    table[lane, HEAD] += 1
    table[lane, SLOT] = slot + 1 if slot + 1 < lane_rows else 0
    return row


@njit()
def enable_before(
    end: int, lane: int, lane_rows: int, table: I64, tree: F64, priority: float, counters: I64
) -> None:
    """Give the lane's pending rows with serial < end the priority; they were 0."""
    while table[lane, PENDING] < end:
        slot = table[lane, SLOT] - (table[lane, HEAD] - table[lane, PENDING])
        tree[lane * lane_rows + (slot if slot >= 0 else slot + lane_rows)] = priority
        counters[SAMPLEABLE] += 1
        table[lane, PENDING] += 1


@njit()
def end_episode(
    lane: int, lane_rows: int, table: I64, tree: F64, priority: float, counters: I64
) -> None:
    """The newest row is a BOUNDARY row: enable all before it, leave nothing pending."""
    head = table[lane, HEAD]
    enable_before(head - 1, lane, lane_rows, table, tree, priority, counters)
    table[lane, PENDING] = head
    table[lane, OPEN] = 0


@njit()
def close_episode(
    lane: int, lane_rows: int, stack: int, table: I64, flags: U8, obs: Obs, tree: F64,
    priority: float, counters: I64,
) -> None:  # fmt: skip
    """End the lane's episode, if one is open, although its BOUNDARY row never came.

    After a TERMINATED step a BOUNDARY row is added, its observation never used (discount 0).
    Otherwise the newest row becomes the BOUNDARY row: the successor of its step is unknown, and
    the step before it counts as truncated there.
    """
    if table[lane, OPEN] == 0:
        return
    slot = table[lane, SLOT] - 1
    newest = lane * lane_rows + (slot if slot >= 0 else slot + lane_rows)
    if flags[newest] & TERMINATED:
        row = claim_row(lane, lane_rows, stack, table, tree, counters)
        for k in range(obs.shape[1]):
            obs[row, k] = obs[newest, k]
        flags[row] = BOUNDARY
    else:
        flags[newest] = flags[newest] & RESET | BOUNDARY
    end_episode(lane, lane_rows, table, tree, priority, counters)


@njit()
def append_rows(
    chunk_lane: U16, chunk_flags: U8, chunk_reward: F32, chunk_version: U32, chunk_action: I32,
    chunk_obs: Obs, n_rows: int, first_lane: int, n_lanes: int, close: bool,
    flags: U8, reward: F32, version: U32, action: I32, obs: Obs, lane_rows: int, n_step: int,
    stack: int, table: I64, tree: F64, priority: float, touched: I64, counters: I64,
) -> int:  # fmt: skip
    """Close the episodes of a worker's lanes if asked to, then append rows 0..n_rows of its chunk.

    chunk_*       columns of the chunk, R rows; chunk_action (R, W) int32 words
    first_lane    lane of chunk_lane 0; the worker has n_lanes
    flags .. obs  columns of the store, (rows,) or (rows, *)
    table         (lanes, 5) int64: HEAD, SLOT, PENDING, OPEN, MARK
    tree          leaves are tree[row]; written here, the sums above them are left to the caller
    priority      of rows that become sampleable
    touched       (>= n_rows + (n_step + stack + 2) n_lanes,) int64, written: leaves to repair
    counters      (2,) int64: STEPS, SAMPLEABLE

    Returns how many of `touched` count: one leaf of each node of the tree that changed. In a lane
    these lie between the first row that was pending and the S - 1 rows after the last appended.
    Needs lane_rows >= n_step + 1 + stack, so that a pending row keeps its history: the oldest is
    n_step rows behind the one being claimed, the row whose history goes is lane_rows - (S - 1)
    behind it. No allocation.
    """
    for lane in range(first_lane, first_lane + n_lanes):
        table[lane, MARK] = table[lane, PENDING]
        if close:
            close_episode(lane, lane_rows, stack, table, flags, obs, tree, priority, counters)
    for r in range(n_rows):
        lane = first_lane + int(chunk_lane[r])
        flag = chunk_flags[r]
        if table[lane, OPEN] and not flag & BOUNDARY:
            slot = table[lane, SLOT] - 1
            newest = lane * lane_rows + (slot if slot >= 0 else slot + lane_rows)
            if flag & RESET or flags[newest] & (TERMINATED | TRUNCATED):
                # The BOUNDARY row is missing: a window must not cross the edge all the same.
                close_episode(lane, lane_rows, stack, table, flags, obs, tree, priority, counters)
        row = claim_row(lane, lane_rows, stack, table, tree, counters)
        flags[row] = flag
        version[row] = chunk_version[r]
        for k in range(obs.shape[1]):
            obs[row, k] = chunk_obs[r, k]
        if flag & BOUNDARY:
            end_episode(lane, lane_rows, table, tree, priority, counters)
        else:
            reward[row] = chunk_reward[r]
            for k in range(action.shape[1]):
                action[row, k] = chunk_action[r, k]
            table[lane, OPEN] = 1
            counters[STEPS] += 1
            end = table[lane, HEAD] - n_step
            enable_before(end, lane, lane_rows, table, tree, priority, counters)
    n = 0
    for lane in range(first_lane, first_lane + n_lanes):
        left = min(table[lane, HEAD] + stack - 1 - table[lane, MARK], lane_rows)
        slot = table[lane, SLOT] + stack - 1 - left
        slot = slot if slot >= 0 else slot + lane_rows
        slot = slot if slot < lane_rows else slot - lane_rows
        while left > 0:
            touched[n] = lane * lane_rows + slot
            n += 1
            step = 8 - (slot & 7)  # to the next node; a lane is made of whole nodes
            left -= step
            slot = slot + step if slot + step < lane_rows else 0
    return n


class LaneStore:
    """Rows of `n_lanes` lanes with `lane_rows` rows each.

    flags (rows,) uint8, reward (rows,) float32, version (rows,) uint32, action (rows, W) int32
    words, obs (rows, O) of shape.obs_dtype: zeros that become resident as rows arrive.
    table (lanes, 5) int64.
    """

    def __init__(self, *, n_lanes: int, lane_rows: int, shape: RowShape, n_step: int) -> None:
        least = least_lane_rows(n_step, shape.stack)
        if lane_rows % FANOUT or lane_rows < least:
            raise ValueError(f"lane_rows = {lane_rows}: must be a multiple of 8 above {least - 1}")
        rows = n_lanes * lane_rows
        self.n_lanes = n_lanes
        self.lane_rows = lane_rows
        self.n_step = n_step
        self.stack = shape.stack
        self.flags: U8 = zero_column((rows,), np.uint8)
        self.flags[:] = BOUNDARY  # no stack reaches back to what was never written
        self.reward: F32 = zero_column((rows,), np.float32)
        self.version: U32 = zero_column((rows,), np.uint32)
        self.action: I32 = zero_column((rows, shape.action_words), np.int32)
        self.obs: Obs = zero_column((rows, shape.obs_dim), shape.obs_dtype)
        self.table: I64 = np.zeros((n_lanes, LANE_WORDS), dtype=np.int64)
        self.counters: I64 = np.zeros(COUNTERS, dtype=np.int64)
        self.touched: I64 = np.zeros(0, dtype=np.int64)

    def append(
        self, views: ChunkViews, n_rows: int, first_lane: int, n_lanes: int, tree: F64,
        priority: float, *, close: bool,
    ) -> int:  # fmt: skip
        """Close lanes, append rows, write leaves. Returns how many of `touched` to repair."""
        most = n_rows + (self.n_step + self.stack + 2) * n_lanes
        if self.touched.size < most:
            self.touched = np.zeros(most, dtype=np.int64)
        touched: int = append_rows(
            views.lane, views.flags, views.reward, views.version, views.action_words, views.obs,
            n_rows, first_lane, n_lanes, close,
            self.flags, self.reward, self.version, self.action, self.obs, self.lane_rows,
            self.n_step, self.stack, self.table, tree, priority, self.touched, self.counters,
        )  # fmt: skip
        return touched

    def open_steps(self, first_lane: int, n_lanes: int) -> int:
        """Newest steps of these lanes whose outcome is not here: closing a lane makes such a step
        the BOUNDARY row of its episode.
        """
        table = self.table[first_lane : first_lane + n_lanes]
        lanes = first_lane + np.flatnonzero(table[:, OPEN])
        newest = (self.table[lanes, SLOT] - 1) % self.lane_rows
        return int(np.sum(self.flags[lanes * self.lane_rows + newest] & TERMINATED == 0))

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        columns = (self.flags, self.reward, self.version, self.action, self.obs)
        return sum(column.nbytes for column in columns)

    def check_valid(self, leaves: F64) -> None:
        """AssertionError unless the table is consistent and leaf > 0 iff the row can be sampled."""
        sampleable = 0
        for lane in range(self.n_lanes):
            head, slot, pending, is_open, _ = self.table[lane].tolist()
            assert slot == head % self.lane_rows
            oldest = max(0, head - self.lane_rows)
            base = lane * self.lane_rows
            row = base + np.arange(oldest, head) % self.lane_rows  # in the order of time
            boundary = (self.flags[row] & BOUNDARY) > 0
            ends = np.flatnonzero(boundary)
            last_end = oldest + int(ends[-1]) if ends.size else oldest - 1
            assert is_open == (head > 0 and not boundary[-1])
            complete = np.arange(oldest, head) < max(last_end, head - self.n_step)
            whole = np.arange(oldest, head) >= head - self.lane_rows + self.stack - 1
            can = complete & ~boundary & whole
            assert np.array_equal(leaves[row] > 0, can), f"leaves of lane {lane}"
            assert not leaves[base + len(row) : base + self.lane_rows].any()
            assert pending == max(last_end + 1, head - self.n_step, 0)
            assert pending >= head - self.lane_rows + self.stack - 1
            sampleable += int(can.sum())
        assert sampleable == self.counters[SAMPLEABLE]
