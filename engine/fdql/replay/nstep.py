"""n-step windows over rows in lanes, built when a batch is sampled. Stage 4 of 8, `sample`.

Read only; called by the thread that owns the rows. Building windows at sampling leaves n and the
discount free to change and needs no flush when an episode ends.
"""

from __future__ import annotations

from numba import njit

from fdql.replay.lanes import F32, HEAD, SLOT, U8
from fdql.replay.sum_tree import I64
from fdql.shm.chunk import BOUNDARY, TERMINATED


@njit(cache=True, nogil=True, error_model="numpy")
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

    A window stops after a step that is followed by a BOUNDARY row: truncation keeps its bootstrap,
    from the final observation, with the discount of the steps really taken (Pardo 2018).
    """
    for b in range(row.size):
        at = row[b]
        lane = at // lane_rows
        slot = at - lane * lane_rows
        age = table[lane, SLOT] - 1 - slot
        serial[b] = table[lane, HEAD] - 1 - (age if age >= 0 else age + lane_rows)
        past = (lane + 1) * lane_rows
        total = 0.0
        weight = 1.0
        for _ in range(n_step):
            total += weight * float(reward[at])
            weight *= discount
            if flags[at] & TERMINATED:
                weight = 0.0
            at += 1
            if at == past:
                at -= lane_rows
            if weight == 0.0 or flags[at] & BOUNDARY:
                break
        end[b] = at
        n_step_sum[b] = total
        bootstrap[b] = weight
