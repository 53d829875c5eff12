"""The staged batch and the gather that fills it. Stage 4 of 8, `sample`.

Written by the thread that owns the replay; the learner reads it, writes `priority`, gives it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from fdql.replay.lanes import F32, I32, U8, U32
from fdql.replay.sum_tree import F64, I64
from fdql.shm.chunk import action_words


@dataclass(frozen=True, slots=True)
class Batch:
    """B sampled transitions and the statistics of the moment; allocated once, refilled for ever.

    obs, next_obs  (B, O) float32, raw; next_obs is the final observation where the window was cut
    action         (B, A) float32 in [-1, 1], or (B,) int32
    reward         (B,)   float32, raw discounted sum over the window
    discount       (B,)   float32, of the bootstrap; 0 after termination
    leaf, serial   (B,)   int64, to hand back with `priority`
    priority       (B,)   float64, written by the learner
    version        (B,)   uint32, version of the policy that chose the action
    obs_mean       (O,)   float32, running mean
    obs_scale      (O,)   float32, 1 / sqrt(running variance + 1e-8)
    reward_scale   (1,)   float32, divides rewards
    action_words   (B, W) int32, the bytes of `action`
    """

    obs: F32
    action: F32 | I32
    reward: F32
    discount: F32
    next_obs: F32
    leaf: I64
    serial: I64
    priority: F64
    version: U32
    obs_mean: F32
    obs_scale: F32
    reward_scale: F32
    action_words: I32

    @staticmethod
    def allocate(size: int, obs_dim: int, action_dim: int, discrete: bool) -> Batch:
        """A batch of `size` transitions, all zero."""
        words = np.zeros((size, action_words(discrete, action_dim)), dtype=np.int32)

        def f32(*shape: int) -> F32:
            return np.zeros(shape, dtype=np.float32)

        return Batch(
            obs=f32(size, obs_dim),
            action=words[:, 0] if discrete else words.view(np.float32),
            reward=f32(size),
            discount=f32(size),
            next_obs=f32(size, obs_dim),
            leaf=np.zeros(size, dtype=np.int64),
            serial=np.zeros(size, dtype=np.int64),
            priority=np.zeros(size, dtype=np.float64),
            version=np.zeros(size, dtype=np.uint32),
            obs_mean=f32(obs_dim),
            obs_scale=f32(obs_dim),
            reward_scale=f32(1),
            action_words=words,
        )


@njit(cache=True, nogil=True, error_model="numpy")
def touch_rows(
    row: I64, ahead: int, flags: U8, reward: F32, version: U32, action: I32, obs: F32
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


@njit(cache=True, nogil=True, error_model="numpy")
def gather_rows(
    row: I64, end: I64, obs: F32, action: I32, version: U32,
    out_obs: F32, out_next: F32, out_action: I32, out_version: U32,
) -> None:  # fmt: skip
    """Copy rows into a batch, one column after the other so that cache misses overlap.

    row, end  (B,) int64: obs, action and version are read at `row`, the next observation at `end`
    """
    width = obs.shape[1]
    for b in range(row.size):
        at = row[b]
        for k in range(width):
            out_obs[b, k] = obs[at, k]
    for b in range(row.size):
        at = end[b]
        for k in range(width):
            out_next[b, k] = obs[at, k]
    for b in range(row.size):
        at = row[b]
        for k in range(action.shape[1]):
            out_action[b, k] = action[at, k]
        out_version[b] = version[at]
