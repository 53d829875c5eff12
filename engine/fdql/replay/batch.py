"""The staged batch and the gather that fills it. Stage 4 of 8, `sample`.

Written by the thread that owns the replay; the learner reads it, writes `priority`, gives it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fdql.kernel_cache import njit
from fdql.replay.lanes import F32, I32, U8, U32, Obs
from fdql.replay.sum_tree import F64, I64
from fdql.shm.chunk import BOUNDARY, RESET, RowShape


@dataclass(frozen=True, slots=True)
class Batch:
    """B sampled transitions and the statistics of the moment; allocated once, refilled for ever.

    O = stack * obs_dim numbers make an observation: frame after frame, the newest last, the
    episode's first for those before it.

    obs, next_obs  (B, O) float32 or uint8, raw; next_obs is the final observation where the window
                   was cut
    action         (B, A) float32 in [-1, 1], or (B,) int32
    reward         (B,)   float32, raw discounted sum over the window
    discount       (B,)   float32, of the bootstrap; 0 after termination
    leaf, serial   (B,)   int64, to hand back with `priority`
    priority       (B,)   float64, written by the learner
    version        (B,)   uint32, version of the policy that chose the action
    obs_mean       (O,)   float32, running mean, equal for all frames of a stack; images: whole
    obs_scale      (O,)   float32, 1 / running deviation; (0,) for images
    reward_scale   (1,)   float32, divides rewards
    action_words   (B, W) int32, the bytes of `action`
    """

    obs: Obs
    action: F32 | I32
    reward: F32
    discount: F32
    next_obs: Obs
    leaf: I64
    serial: I64
    priority: F64
    version: U32
    obs_mean: F32
    obs_scale: F32
    reward_scale: F32
    action_words: I32

    @staticmethod
    def allocate(size: int, shape: RowShape) -> Batch:
        """A batch of `size` transitions, all zero."""
        width = shape.stack * shape.obs_dim
        words = np.zeros((size, shape.action_words), dtype=np.int32)

        def f32(*dims: int) -> F32:
            return np.zeros(dims, dtype=np.float32)

        return Batch(
            obs=np.zeros((size, width), dtype=shape.obs_dtype),
            action=words[:, 0] if shape.discrete else words.view(np.float32),
            reward=f32(size),
            discount=f32(size),
            next_obs=np.zeros((size, width), dtype=shape.obs_dtype),
            leaf=np.zeros(size, dtype=np.int64),
            serial=np.zeros(size, dtype=np.int64),
            priority=np.zeros(size, dtype=np.float64),
            version=np.zeros(size, dtype=np.uint32),
            obs_mean=f32(width),
            obs_scale=f32(0 if shape.pixels else width),
            reward_scale=f32(1),
            action_words=words,
        )


@njit()
def touch_rows(
    row: I64, ahead: int, flags: U8, reward: F32, version: U32, action: I32, obs: Obs
) -> float:
    """Read one word of every cache line that the windows and the gather of these rows will need.

    row    (B,) int64
    ahead  rows to the one whose observation most probably follows the window

    A loop that does nothing else keeps many misses in flight: 256 rows of 32 float32 among 2**20
    take 42 us from here to the end of the gather, 57 us without. Of an observation the first 256
    bytes are touched; beyond them the processor sees the pattern itself. What is returned means
    nothing: it makes the compiler keep the reads.
    """
    words = 0
    here = np.float32(0)
    there = np.float32(0)
    last = obs.shape[0] - 1
    near = min(obs.shape[1], 64)
    for b in range(row.size):
        at = row[b]
        words += (int(flags[at]) ^ int(version[at])) & int(action[at, 0])
        here += reward[at]
        end = min(at + ahead, last)
        for k in range(0, near, 16):
            here += obs[at, k]
            there += obs[end, k]
    return float(here) + float(there) + float(words)


@njit()
def gather_obs(row: I64, obs: Obs, out: Obs) -> None:
    """Copy the observations (rows, O) of `row` (>= B,) int64 into `out` (B, O)."""
    width = obs.shape[1]
    for b in range(out.shape[0]):
        at = row[b]
        for k in range(width):
            out[b, k] = obs[at, k]


@njit()
def gather_stacks(row: I64, lane_rows: int, flags: U8, obs: Obs, out: Obs) -> None:
    """Copy the frame of each row and those before it in its episode, each once, no temporary.

    row    (>= B,) int64, rows none of whose stack - 1 predecessors in the lane is overwritten
    flags  (rows,) uint8, obs (rows, F): columns of the store
    out    (B, stack, F) of obs's dtype, written: oldest frame first, the episode's first again for
           those before it

    An episode begins at its RESET flag, and behind a BOUNDARY row whether or not the flag is there.
    A BOUNDARY row is the newest of its own episode, so this holds for final observations too.

    Frames are copied upwards, the way the processor reads ahead: 2 x 256 stacks of 4 frames of
    84 x 84 bytes take 1.4 ms, downwards 2.2 ms, two calls of numpy.take 1.2 ms.
    """
    last = out.shape[1] - 1
    width = obs.shape[1]
    for b in range(out.shape[0]):
        at = row[b]
        first = at // lane_rows * lane_rows
        past = first + lane_rows
        oldest = last  # place of the oldest frame that belongs to the episode
        while oldest > 0 and not flags[at] & RESET:
            before = at - 1 if at > first else past - 1
            if flags[before] & BOUNDARY:
                break
            at = before
            oldest -= 1
        for place in range(oldest):
            for k in range(width):
                out[b, place, k] = obs[at, k]
        for place in range(oldest, last + 1):
            for k in range(width):
                out[b, place, k] = obs[at, k]
            at = at + 1 if at + 1 < past else first


@njit()
def gather_actions(row: I64, action: I32, version: U32, out_action: I32, out_version: U32) -> None:
    """Copy action (rows, W) and version (rows,) of `row` (B,) int64 into those of a batch."""
    for b in range(row.size):
        at = row[b]
        for k in range(action.shape[1]):
            out_action[b, k] = action[at, k]
        out_version[b] = version[at]


@njit()
def gather_rows(
    row: I64, end: I64, stack: int, lane_rows: int, flags: U8, obs: Obs, action: I32, version: U32,
    out_obs: Obs, out_next: Obs, out_action: I32, out_version: U32,
) -> None:  # fmt: skip
    """Copy rows into a batch, one column after the other so that cache misses overlap.

    row  (B,) int64: obs, action and version are read here
    end  (>= B,) int64: the next observation is read here
    """
    if stack == 1:
        gather_obs(row, obs, out_obs)
        gather_obs(end, obs, out_next)
    else:
        shape = (row.size, stack, obs.shape[1])
        gather_stacks(row, lane_rows, flags, obs, out_obs.reshape(shape))
        gather_stacks(end, lane_rows, flags, obs, out_next.reshape(shape))
    gather_actions(row, action, version, out_action, out_version)
