"""Stacks of frames: where they begin and end, and which rows have lost too much of theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chunks import OBS, PIXELS, STACKED, VECTOR, chunk_of, make
from fdql.config import ConfigError
from fdql.replay.batch import gather_stacks
from fdql.replay.replay import Batch, Replay
from oracles import BOUNDARY, RESET, TERMINATED, TRUNCATED, Row

BOTH = pytest.mark.parametrize("shape", [PIXELS, STACKED], ids=["uint8", "float32"])


def fed(*flags, memory=None, lane=0, shape=PIXELS, n_step=1, new_incarnation=False, **sizes):
    """A replay that got one row for each flag, the k-th of all its rows showing k, from 1 on."""
    memory = memory or make(shape=shape, n_step=n_step, **sizes)
    start = int(memory.rows.table[lane, 0])
    rows = [
        (0, Row((start + k + 1,) * OBS, (k % 2, k % 2), float(k), flag))
        for k, flag in enumerate(flags)
    ]
    memory.ingest(
        chunk_of(rows, memory.shape), len(rows), lane, lanes_of_worker=1,
        new_incarnation=new_incarnation,
    )  # fmt: skip
    memory.check_valid()
    return memory


def frames(memory: Replay, leaf: int) -> tuple[list[int], list[int]]:
    """What a row's stack and that of its next observation show, oldest first."""
    assert memory.tree.leaves[leaf] > 0
    out = Batch.allocate(32, memory.shape)
    out.obs[:], out.next_obs[:] = 99, 99  # of the batch before
    out.leaf[:] = leaf
    memory.gather(out)
    shown = []
    for column in (out.obs, out.next_obs):
        assert column.dtype == memory.shape.obs_dtype
        stacks = column.reshape(32, memory.shape.stack, OBS)
        assert (stacks == stacks[:1, :, :1]).all()  # all rows alike, whole frames
        shown.append(stacks[0, :, 0].astype(int).tolist())
    return shown[0], shown[1]


def sampleable(memory: Replay) -> list[int]:
    return np.flatnonzero(memory.tree.leaves).tolist()


@BOTH
def test_the_first_frame_stands_for_those_before_it(shape):
    memory = fed(RESET, 0, 0, 0, 0, shape=shape)
    assert frames(memory, 0) == ([1, 1, 1], [1, 1, 2])
    assert frames(memory, 1) == ([1, 1, 2], [1, 2, 3])
    assert frames(memory, 2) == ([1, 2, 3], [2, 3, 4])
    assert frames(memory, 3) == ([2, 3, 4], [3, 4, 5])


@BOTH
@pytest.mark.parametrize("first", [RESET, 0])  # a BOUNDARY row divides without the flag too
def test_no_stack_reaches_into_the_episode_before(shape, first):
    memory = fed(RESET, 0, 0, TRUNCATED, BOUNDARY, first, 0, 0, 0, shape=shape)
    assert frames(memory, 5) == ([6, 6, 6], [6, 6, 7])
    assert frames(memory, 6) == ([6, 6, 7], [6, 7, 8])
    assert frames(memory, 7) == ([6, 7, 8], [7, 8, 9])


@pytest.mark.parametrize("end", [TRUNCATED, TERMINATED])
def test_the_final_observation_has_its_own_history(end):
    memory = fed(RESET, 0, 0, end, BOUNDARY, RESET, 0, 0, n_step=3)
    # all windows but the first are cut at row 4, which shows 5
    assert frames(memory, 0) == ([1, 1, 1], [2, 3, 4])
    assert frames(memory, 2) == ([1, 2, 3], [3, 4, 5])
    assert frames(memory, 3) == ([2, 3, 4], [3, 4, 5])


def test_episodes_shorter_than_a_stack():
    memory = fed(RESET | TRUNCATED, BOUNDARY, RESET, TRUNCATED, BOUNDARY, n_step=3)
    assert frames(memory, 0) == ([1, 1, 1], [1, 1, 2])
    assert frames(memory, 2) == ([3, 3, 3], [3, 4, 5])
    assert frames(memory, 3) == ([3, 3, 4], [3, 4, 5])


def test_a_first_row_ends_the_walk_by_its_flag_alone():
    flags = np.array([0, RESET, 0, 0], np.uint8)
    obs = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    out = np.full((3, 3, 2), 99, np.float32)
    gather_stacks(np.array([1, 2, 3]), 4, flags, obs, out)
    assert out.reshape(3, 6).tolist() == [
        [3, 4, 3, 4, 3, 4],
        [3, 4, 3, 4, 5, 6],
        [3, 4, 5, 6, 7, 8],
    ]


def test_a_successor_s_first_row_without_the_flag():
    # row 3 becomes the BOUNDARY row of its episode; nothing of it is seen from row 4 on
    memory = fed(RESET, 0, 0, 0)
    fed(0, 0, 0, memory=memory, new_incarnation=True)
    assert frames(memory, 2) == ([1, 2, 3], [2, 3, 4])
    assert frames(memory, 4) == ([5, 5, 5], [5, 5, 6])
    assert frames(memory, 5) == ([5, 5, 6], [5, 6, 7])


@BOTH
@pytest.mark.parametrize("lane", [0, 5, 127])
def test_a_stack_wraps_with_its_lane(shape, lane):
    # serials 12..19 in 8 rows: slot 0 holds 16; serial s shows s + 1
    memory = fed(RESET, *[0] * 19, shape=shape, n_lanes=128, lane=lane)
    base = 8 * lane
    assert frames(memory, base + 7) == ([14, 15, 16], [15, 16, 17])
    assert frames(memory, base + 0) == ([15, 16, 17], [16, 17, 18])
    assert frames(memory, base + 1) == ([16, 17, 18], [17, 18, 19])


def test_rows_ahead_of_the_write_position_lack_their_history():
    # 8 rows, stacks of 3, n = 1
    memory = fed(RESET, *[0] * 5, n_lanes=128)
    assert sampleable(memory) == [0, 1, 2, 3, 4]
    for expected in (
        [1, 2, 3, 4, 5],  # 7 rows: the next but one would take what a long episode's row 0 needs
        [2, 3, 4, 5, 6],
        [3, 4, 5, 6, 7],
        [0, 4, 5, 6, 7],  # slots 2 and 3 are whole but reach back to what slots 0 and 1 held
    ):
        fed(0, memory=memory)
        assert sampleable(memory) == expected
    assert memory.size == 5


def test_whole_lanes_at_once():
    # 3 chunks of 20 rows into 8: every sum above every leaf is right again after each
    memory = fed(RESET, *[0] * 19, n_lanes=128, lane=3)
    for _ in range(2):
        fed(*[0] * 20, memory=memory, lane=3)
    assert sampleable(memory) == [24 + s % 8 for s in sorted(range(54, 59), key=lambda s: s % 8)]


def test_the_row_whose_history_goes_is_in_another_node():
    # 16 rows, two nodes: serial 22 goes to slot 6 and takes slot 8's leaf; single rows, then more
    memory = fed(RESET, *[0] * 15, n_lanes=64, lane=1)
    for n in [1] * 20 + [2, 3, 5, 7, 11]:
        fed(*[0] * n, memory=memory, lane=1)
    assert memory.size == 16 - 2 - 1


def test_a_lane_as_short_as_allowed():
    # n = 4, stacks of 3 in 8 rows: four wait, two lack their history, two are left
    memory = fed(RESET, *[0] * 7, n_step=4, n_lanes=128)
    assert sampleable(memory) == [2, 3]
    for serial in range(3, 30):
        fed(0, memory=memory)
        assert sampleable(memory) == sorted([serial % 8, (serial + 1) % 8])
    with pytest.raises(ConfigError, match=r"replay.n_step = 5 with stacks of 3 frames needs 9"):
        make(shape=PIXELS, n_lanes=128, n_step=5)


def test_closing_a_full_lane_takes_a_stack_away():
    # the added BOUNDARY row is serial 8: rows 0 to 2 are gone or lack their history
    memory = fed(RESET, *[0] * 6, TERMINATED, n_step=3, n_lanes=128)
    memory.close_lanes(0, 1)
    memory.check_valid()
    assert sampleable(memory) == [3, 4, 5, 6, 7]


def test_check_valid_finds_a_row_without_its_history():
    memory = fed(RESET, *[0] * 19, n_lanes=128)
    for row in (4, 5):  # serials 12 and 13, whole but for their stack
        wrong = memory.tree.leaves.copy()
        wrong[row] = 1.0
        with pytest.raises(AssertionError, match="leaves of lane 0"):
            memory.rows.check_valid(wrong)


def test_a_row_that_lost_its_history_takes_no_priority():
    memory = fed(RESET, *[0] * 7, n_lanes=128, batch_size=2)
    leaf = np.array([2, 3])
    assert memory.update_priorities(leaf, leaf, np.array([5.0, 7.0])) == 2
    fed(0, memory=memory)  # serial 2 needs serial 0
    assert memory.update_priorities(leaf, leaf, np.array([5.0, 7.0])) == 1
    assert memory.stale == 1
    memory.check_valid()


def test_frames_of_a_stack_share_one_scale():
    memory = fed(RESET, 0, 0, 0, shape=STACKED, batch_size=4)
    out = Batch.allocate(4, STACKED)
    memory.sample(out)
    assert out.obs_mean == pytest.approx([2.5] * 9, rel=1e-3)
    assert out.obs_scale == pytest.approx([1 / np.std([1, 2, 3, 4])] * 9, rel=1e-3)
    assert (out.obs.shape, out.next_obs.shape) == ((4, 9), (4, 9))


def test_images_without_a_stack():
    memory = fed(RESET, 0, 255, shape=replace(VECTOR, pixels=True))
    assert frames(memory, 1) == ([2], [3])
    assert memory.rows.obs.dtype == np.uint8
