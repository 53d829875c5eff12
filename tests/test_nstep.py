"""n-step windows: numbers worked out by hand, then random lanes against a loop over episodes."""

from __future__ import annotations

import numpy as np
import pytest
from fdql.replay.lanes import HEAD, SLOT
from fdql.replay.nstep import n_step_windows
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import BOUNDARY, TERMINATED, TRUNCATED, Row, naive_window


def windows(flags, rewards, rows, *, n_step, discount, head=None, lane_rows=None):
    """One lane whose columns are given slot by slot -> serial, end, sum, bootstrap of `rows`."""
    lane_rows = lane_rows or len(flags)
    head = len(flags) if head is None else head
    table = np.zeros((len(flags) // lane_rows, 5), dtype=np.int64)
    table[:, HEAD], table[:, SLOT] = head, head % lane_rows
    row = np.array(rows, dtype=np.int64)
    serial, end = np.zeros_like(row), np.zeros_like(row)
    total, bootstrap = np.zeros(row.size, np.float32), np.zeros(row.size, np.float32)
    n_step_windows(
        np.array(flags, np.uint8), np.array(rewards, np.float32), table, lane_rows, n_step,
        discount, row, serial, end, total, bootstrap,
    )  # fmt: skip
    return serial.tolist(), end.tolist(), total, bootstrap


# Rewards 1, 2, 3, discount 0.9, n = 3, V = 10 at whatever observation the window ends with.
@pytest.mark.parametrize(
    ("flags", "end", "target"),
    [
        # 1 + .9 * 2 + .81 * 3 + .729 * 10
        ([0, 0, 0, 0, 0], 3, 12.52),
        # 1 + .9 * 2, no future
        ([0, TERMINATED, BOUNDARY, 0, 0], 2, 2.80),
        # 1 + .9 * 2 + .81 * 10: the discount of the two steps taken (.729 would give 10.09)
        ([0, TRUNCATED, BOUNDARY, 0, 0], 2, 10.90),
        # the episode's last row was made a boundary after a crash: as if truncated there
        ([0, 0, BOUNDARY, 0, 0], 2, 10.90),
        # both at once: the state has no future
        ([0, TERMINATED | TRUNCATED, BOUNDARY, 0, 0], 2, 2.80),
        # 1 + .9 * 10 and 1
        ([TRUNCATED, BOUNDARY, 0, 0, 0], 1, 10.0),
        ([TERMINATED, BOUNDARY, 0, 0, 0], 1, 1.0),
        # an end just behind the window changes nothing: 1 + 1.8 + 2.43 + .729 * 10
        ([0, 0, TRUNCATED, BOUNDARY, 0], 3, 12.52),
        ([0, 0, TERMINATED, BOUNDARY, 0], 3, 5.23),
    ],
)
def test_targets_by_hand(flags, end, target):
    serial, ends, total, bootstrap = windows(flags, [1, 2, 3, 0, 0], [0], n_step=3, discount=0.9)
    assert (serial, ends) == ([0], [end])
    assert total[0] + bootstrap[0] * 10 == pytest.approx(target, abs=1e-5)


def test_one_step():
    # n = 1: 2 + .9 * 10
    _, end, total, bootstrap = windows([0] * 4, [1, 2, 3, 4], [1], n_step=1, discount=0.9)
    assert end == [2]
    assert total[0] + bootstrap[0] * 10 == pytest.approx(11)


def test_a_window_wraps_with_its_lane():
    # Two lanes of 5 rows, 13 rows written to both: slot 3 is the next, slot 2 holds serial 12.
    # Slots 3, 4, 0 (serial 8 on): 3 + .5 * 4 + .25 * 10 = 7.5, bootstrap .125 from slot 1.
    # The second lane wraps to its own start, row 5: 8 + .5 * 9 + .25 * 5, and 9 + .5 * 5 + .25 * 6.
    rewards = [10, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    serial, end, total, bootstrap = windows(
        [0] * 10, rewards, [3, 8, 9], n_step=3, discount=0.5, head=13, lane_rows=5
    )
    assert serial == [8, 8, 9]
    assert end == [1, 6, 7]
    assert total.tolist() == [7.5, 13.75, 13.0]
    assert bootstrap.tolist() == [0.125] * 3


def test_serials_before_and_after_the_wrap():
    # 5 rows, 3 written: slots 0..2 hold 0..2. 8 written: slots 0..4 hold 5, 6, 7, 3, 4.
    for head, expected in ((3, [0, 1, 2]), (8, [5, 6, 7, 3, 4])):
        serial, *_ = windows(
            [0] * 5, [0] * 5, range(len(expected)), n_step=1, discount=1.0, head=head
        )
        assert serial == expected


def test_rewards_are_added_in_float64():
    # 1e8 + 1 - 1e8 = 1; in float32 the 1 is lost
    _, _, total, _ = windows([0] * 4, [1e8, 1, -1e8, 0], [0], n_step=3, discount=1.0)
    assert total[0] == 1.0


def test_discount_zero_sees_one_reward():
    _, _, total, bootstrap = windows([0] * 4, [1, 2, 3, 4], [0], n_step=3, discount=0.0)
    assert (total[0], bootstrap[0]) == (1.0, 0.0)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 2, 3])), max_size=8),
    tail=st.integers(1, 8),
    n_step=st.integers(1, 6),
    turn=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_random_lanes_against_a_loop(lengths, tail, n_step, turn, seed):
    """Episodes of given lengths and ends, then an open one; the lane starts at slot `turn`."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for steps, how in lengths:
        ends = [0] * max(0, steps - 1) + [how] * (steps > 0)
        rows += [Row((), reward=float(rng.integers(-9, 9)), flags=f) for f in ends]
        rows.append(Row((), flags=BOUNDARY))
    rows += [Row((), reward=float(rng.integers(-9, 9))) for _ in range(tail)]
    size = len(rows)
    slot = (np.arange(size) + turn) % size
    flags, rewards = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    flags[slot] = [r.flags for r in rows]
    rewards[slot] = [r.reward for r in rows]
    head = turn + size
    starts = [
        t
        for t, r in enumerate(rows)
        if not r.has(BOUNDARY)
        and (t + n_step < size or any(x.has(BOUNDARY) for x in rows[t + 1 :]))
    ]
    serial, end, total, bootstrap = windows(
        flags, rewards, slot[starts], n_step=n_step, discount=0.9, head=head
    )
    for k, t in enumerate(starts):
        naive_total, naive_bootstrap, naive_end = naive_window(rows, t, n_step, 0.9)
        assert serial[k] == turn + t
        assert (end[k] - turn) % size == naive_end
        assert total[k] == pytest.approx(naive_total, abs=1e-4)
        assert bootstrap[k] == pytest.approx(naive_bootstrap)
