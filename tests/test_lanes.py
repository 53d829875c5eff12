"""Rows in lanes: which can be sampled, at every edge of an episode, a ring and a worker's life."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fdql.replay.lanes import HEAD, MARK, OPEN, PENDING, SAMPLEABLE, STEPS, LaneStore
from fdql.replay.sum_tree import SumTree
from fdql.shm.chunk import ChunkSchema, RowShape
from oracles import BOUNDARY, RESET, TERMINATED, TRUNCATED

SHAPE = RowShape(obs_dim=1, action_dim=2, discrete=True)


class Lanes:
    """A store and a tree, fed with chunks of rows; the observation is a running number."""

    def __init__(self, *, lane_rows=8, n_lanes=1, n_step=3, stack=1):
        self.store = LaneStore(
            n_lanes=n_lanes, lane_rows=lane_rows, shape=replace(SHAPE, stack=stack), n_step=n_step
        )
        self.tree = SumTree(n_lanes * lane_rows)
        self.priority = 1.0
        self.sent = 0

    def send(self, *rows, first_lane=0, lanes=None, close=False):
        """Rows are flags, or (lane, flags): one chunk of a worker with `lanes` lanes."""
        schema = ChunkSchema(max(1, len(rows)), SHAPE)
        views = schema.views(bytearray(schema.nbytes))
        for k, row in enumerate(rows):
            views.lane[k], views.flags[k] = row if isinstance(row, tuple) else (0, row)
            views.obs[k] = views.reward[k] = views.action[k] = views.version[k] = self.sent
            self.sent += 1
        lanes = lanes or self.store.n_lanes - first_lane
        touched = self.store.append(
            views, len(rows), first_lane, lanes, self.tree.tree, self.priority, close=close
        )
        self.tree.repair(self.store.touched, touched)
        self.tree.check_valid()
        self.store.check_valid(self.tree.leaves)
        return self

    @property
    def sampleable(self):
        return np.flatnonzero(self.tree.leaves).tolist()

    @property
    def flags(self):
        return self.store.flags.tolist()

    @property
    def obs(self):
        return self.store.obs[:, 0].tolist()


def test_a_row_waits_for_its_nth_successor():
    lanes = Lanes(n_step=3)
    for expected in ([], [], [], [0], [0, 1], [0, 1, 2]):
        assert lanes.send(0).sampleable == expected


def test_the_newest_row_has_no_window():
    # 8 rows, 3 written, n = 3: the row before the write position is not sampleable, whatever n
    assert Lanes(n_step=3).send(0, 0, 0).sampleable == []
    assert Lanes(n_step=1).send(0, 0, 0).sampleable == [0, 1]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED, TERMINATED | TRUNCATED, 0])
def test_the_end_of_an_episode_enables_its_last_rows(end):
    lanes = Lanes(n_step=3).send(RESET, 0, end)
    assert lanes.sampleable == []  # the final observation is not there yet
    lanes.send(BOUNDARY)
    assert lanes.sampleable == [0, 1, 2]  # and the BOUNDARY row is never one
    assert lanes.store.table[0, OPEN] == 0
    assert lanes.store.table[0, PENDING] == lanes.store.table[0, HEAD] == 4
    assert lanes.send(RESET, 0).sampleable == [0, 1, 2]


def test_an_episode_of_one_step():
    lanes = Lanes(n_step=5).send(RESET | TERMINATED, BOUNDARY, RESET | TRUNCATED, BOUNDARY)
    assert lanes.sampleable == [0, 2]
    assert lanes.store.counters[STEPS] == 2


def test_overwriting_takes_the_oldest_row_away():
    # 8 rows, n = 2: row 8 replaces serial 0, enables serial 6 and leaves 7 and 8 waiting
    lanes = Lanes(n_step=2).send(*[0] * 8)
    assert lanes.sampleable == [0, 1, 2, 3, 4, 5]
    assert lanes.send(0).sampleable == [1, 2, 3, 4, 5, 6]
    assert lanes.send(0).sampleable == [2, 3, 4, 5, 6, 7]
    assert lanes.send(0).sampleable == [0, 3, 4, 5, 6, 7]  # slot 0 holds serial 8 now
    assert lanes.obs == [8, 9, 10, 3, 4, 5, 6, 7]


def test_an_overwritten_boundary_row_changes_no_other():
    lanes = Lanes(n_step=3).send(0, TERMINATED, BOUNDARY, 0, 0, 0, 0, 0)
    assert lanes.sampleable == [0, 1, 3, 4]
    assert lanes.send(0, 0).sampleable == [3, 4, 5, 6]  # serials 0 and 1 are gone
    assert lanes.send(0).sampleable == [3, 4, 5, 6, 7]  # the BOUNDARY row is gone


def test_a_lane_as_short_as_allowed():
    # n = 6 in 8 rows: 6 waiting rows, their successor, and one place to write
    lanes = Lanes(n_step=6).send(*[0] * 7)
    assert lanes.sampleable == [0]
    for head in range(8, 40):  # the newest complete row and the oldest one, which goes next
        newest = head - 7
        expected = {(newest - 1) % 8, newest % 8}
        assert lanes.send(0).sampleable == sorted(expected), head
    lanes.send(TERMINATED, BOUNDARY)
    assert len(lanes.sampleable) == 7  # all rows but the BOUNDARY row


def test_a_lane_shorter_than_the_episode():
    lanes = Lanes(n_step=2).send(RESET, *[0] * 30)
    assert len(lanes.sampleable) == 6
    assert lanes.send(TRUNCATED, BOUNDARY).store.counters[SAMPLEABLE] == 7


def test_one_chunk_longer_than_the_lane():
    # 20 rows in a lane of 8: serials 12..19 remain, 17..19 wait
    lanes = Lanes(n_step=3).send(*[0] * 20)
    assert lanes.obs == [16, 17, 18, 19, 12, 13, 14, 15]
    assert lanes.sampleable == [0, 4, 5, 6, 7]


def test_lanes_do_not_mix():
    lanes = Lanes(n_lanes=3, n_step=2)
    lanes.send((0, 0), (1, 0), (0, 0), (1, TERMINATED), (0, 0), (1, BOUNDARY), first_lane=1)
    # lane 1: observations 0, 2, 4; lane 2: 1, 3 and the final 5
    assert lanes.obs[8:11] == [0, 2, 4]
    assert lanes.obs[16:19] == [1, 3, 5]
    assert lanes.sampleable == [8, 16, 17]


def test_columns_are_kept_together():
    lanes = Lanes(n_step=1).send(RESET, 0, TERMINATED, BOUNDARY, RESET)
    store = lanes.store
    assert store.flags[:5].tolist() == [RESET, 0, TERMINATED, BOUNDARY, RESET]
    assert store.version[:5].tolist() == [0, 1, 2, 3, 4]
    assert store.reward[:5].tolist() == [0, 1, 2, 0, 4]
    assert store.action[[0, 1, 2, 4], 0].tolist() == [0, 1, 2, 4]


def test_new_rows_get_the_priority_of_the_moment():
    lanes = Lanes(n_step=1).send(0, 0)
    lanes.priority = 2.5
    lanes.send(0)
    assert lanes.tree.leaves[:3].tolist() == [1, 2.5, 0]


# --- a worker that died: its successor's first chunk closes its lanes


def test_closing_makes_the_newest_row_a_boundary():
    # rows 0 to 3 open: row 3's successor is unknown, rows 0 to 2 are complete
    lanes = Lanes(n_step=3).send(RESET, 0, 0, 0).send(close=True)
    assert lanes.sampleable == [0, 1, 2]
    assert lanes.flags[:4] == [RESET, 0, 0, BOUNDARY]
    assert lanes.store.table[0, OPEN] == 0
    assert lanes.store.counters[STEPS] == 4  # steps that were made stay counted


def test_closing_keeps_a_terminal_step():
    # the worker died between the terminal step and its BOUNDARY row: one is added, the step counts
    lanes = Lanes(n_step=3).send(RESET, 0, TERMINATED).send(close=True)
    assert lanes.sampleable == [0, 1, 2]
    assert lanes.flags[:4] == [RESET, 0, TERMINATED, BOUNDARY]
    assert lanes.obs[3] == 2  # never used: the discount is 0


def test_closing_after_a_truncation_without_final_observation():
    # what the truncated step led to is unknown, so that step goes; the one before bootstraps
    lanes = Lanes(n_step=3).send(RESET, 0, TRUNCATED).send(close=True)
    assert lanes.sampleable == [0, 1]
    assert lanes.flags[:3] == [RESET, 0, BOUNDARY]


def test_closing_a_first_row():
    lanes = Lanes(n_step=3).send(RESET).send(close=True)
    assert lanes.sampleable == []
    assert lanes.flags[0] == RESET | BOUNDARY
    assert lanes.send(RESET, TERMINATED, BOUNDARY).sampleable == [1, 2]


def test_closing_twice_and_closing_nothing():
    lanes = Lanes(n_step=3).send(close=True)
    assert not lanes.store.table.any()
    lanes.send(0, 0).send(close=True)
    before = lanes.store.table[:, :MARK].copy()
    lanes.send(close=True)
    assert np.array_equal(lanes.store.table[:, :MARK], before)
    lanes.send(0, TERMINATED, BOUNDARY).send(close=True)
    assert lanes.sampleable == [0, 2, 3]


def test_closing_in_a_full_lane_overwrites_like_any_row():
    # serials 0..7 fill 8 rows; the added BOUNDARY row takes the place of serial 0
    lanes = Lanes(n_step=3).send(*[0] * 7, TERMINATED).send(close=True)
    assert lanes.sampleable == [1, 2, 3, 4, 5, 6, 7]
    assert lanes.flags[0] == BOUNDARY


def test_closing_at_the_wrap():
    # the newest row is in the last slot, the next is slot 0
    lanes = Lanes(n_step=3).send(*[0] * 8).send(close=True)
    assert lanes.flags[7] == BOUNDARY
    assert lanes.sampleable == [0, 1, 2, 3, 4, 5, 6]


def test_only_the_worker_s_lanes_are_closed():
    lanes = Lanes(n_lanes=4, n_step=3)
    lanes.send((0, 0), (0, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (3, 0))
    lanes.send(first_lane=1, lanes=2, close=True)
    assert lanes.store.table[:, OPEN].tolist() == [1, 0, 0, 1]
    assert lanes.sampleable == [8, 16]


def test_the_successor_s_rows_follow_in_the_same_chunk():
    lanes = Lanes(n_step=2).send(RESET, 0, 0).send(RESET, 0, 0, close=True)
    assert lanes.sampleable == [0, 1, 3]
    assert lanes.flags[:6] == [RESET, 0, BOUNDARY, RESET, 0, 0]


# --- rows that a correct worker does not send: windows still do not cross


@pytest.mark.parametrize("flag", [TERMINATED, TRUNCATED])
def test_a_step_after_an_end_without_boundary_row(flag):
    lanes = Lanes(n_step=2).send(0, 0, flag, 0, 0, 0)
    boundary = 3 if flag == TERMINATED else 2
    assert lanes.flags[boundary] == BOUNDARY
    assert lanes.sampleable == [*range(boundary), boundary + 1]


def test_a_reset_without_an_end():
    lanes = Lanes(n_step=2).send(RESET, 0, 0, RESET, 0, 0)
    assert lanes.flags[:4] == [RESET, 0, BOUNDARY, RESET]
    assert lanes.sampleable == [0, 1, 3]


def test_boundary_rows_in_a_row():
    lanes = Lanes(n_step=2).send(BOUNDARY, BOUNDARY, 0, TERMINATED, BOUNDARY, BOUNDARY)
    assert lanes.sampleable == [2, 3]


def test_every_row_a_reset():
    # no step has a successor, so none is sampleable
    lanes = Lanes(n_step=3, n_lanes=2).send(*[RESET] * 50)
    assert lanes.sampleable == []
    # each terminal step is closed by the next: B T B T B T B T, the last one still open
    lanes.send(*[(k % 2, RESET | TERMINATED) for k in range(200)])
    assert len(lanes.sampleable) == 6


def test_check_valid_finds_a_wrong_leaf():
    lanes = Lanes(n_step=3).send(0, 0, 0, 0, 0)
    for row in (1, 2, 5):
        wrong = lanes.tree.leaves.copy()
        wrong[row] = 1.0 - wrong[row]
        with pytest.raises(AssertionError):
            lanes.store.check_valid(wrong)


def test_lanes_are_whole_nodes_and_long_enough():
    for lane_rows, n_step, stack in ((12, 3, 1), (8, 7, 1), (0, 1, 1), (8, 4, 4)):
        with pytest.raises(ValueError, match=f"lane_rows = {lane_rows}: must be a multiple of 8"):
            Lanes(lane_rows=lane_rows, n_step=n_step, stack=stack)
