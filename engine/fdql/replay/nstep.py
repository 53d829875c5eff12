"""n-step windows over rows in lanes, built when a batch is sampled. Stage 4 of 8, `sample`.

Read only; called by the thread that owns the rows. Building windows at sampling leaves n and the
discount free to change and needs no flush when an episode ends.
"""

from __future__ import annotations

from fdql.kernel_cache import njit
from fdql.replay.lanes import F32, HEAD, SLOT, U8
from fdql.replay.sum_tree import I64
from fdql.shm.chunk import BOUNDARY, TERMINATED


@njit()
def n_step_windows(
    flags: U8, reward: F32, table: I64, lane_rows: int, n_step: int, discount: float,
    row: I64, serial: I64, end: I64, n_step_sum: F32, bootstrap: F32,
) -> None:  # fmt: skip
    """Walk from each row over at most n_step steps of its episode. O(B n_step), no allocation.

    flags, reward  columns of the store; row = lane * lane_rows + serial % lane_rows
    table          (lanes, 5) int64 lane table
    row            (B,) int64, sampleable rows: the window of m <= n_step steps and row m are there
    serial         (B,) int64, written: the row's serial in its lane
    end            (B,) int64, written: row whose observation follows the window
    n_step_sum     (B,) float32, written: sum of discount**k * reward_{t+k}, k < m, added in float64
    bootstrap      (B,) float32, written: discount**m, or 0 when the window's last step TERMINATED

    A window stops before a BOUNDARY row, which follows every step that ended an episode. Truncation
    keeps its bootstrap, from that row's observation, with the discount of the steps really taken
    (Pardo 2018). Rows in ascending order look up their lane once per lane, not once each.
    """
    first = 0  # rows first..past belong to the lane of the row before
    past = 0
    head = 0
    slot_past = 0
    for b in range(row.size):
        at = row[b]
        if at < first or at >= past:
            lane = at // lane_rows
            first = lane * lane_rows
            past = first + lane_rows
            head = table[lane, HEAD]
            slot_past = table[lane, SLOT]
        age = slot_past - 1 - (at - first)
        serial[b] = head - 1 - (age if age >= 0 else age + lane_rows)
        total = 0.0
        weight = 1.0
        flag = flags[at]
        for _ in range(n_step):
            total += weight * float(reward[at])
            weight *= discount
            at = at + 1 if at + 1 < past else first
            after = flags[at]
            if after & BOUNDARY:
                weight = 0.0 if flag & TERMINATED else weight
                break
            flag = after
        end[b] = at
        n_step_sum[b] = total
        bootstrap[b] = weight
