"""Running statistics of all steps: scale of observations and of rewards. Stage 3 of 8, `ingest`.

Written by the thread that ingests, copied into every batch. Rows stay raw: they are scaled when a
batch is used, so that a better scale holds for old rows too.
"""

from __future__ import annotations

import math

import numpy as np

from fdql.kernel_cache import njit
from fdql.replay.lanes import F32, U8, U16, Obs
from fdql.replay.sum_tree import F64
from fdql.shm.chunk import BOUNDARY, RESET, TERMINATED, TRUNCATED, ChunkViews, RowShape

# Words of the reward sums g <- discount * g + reward over all steps of all lanes (Welford 1962).
COUNT = 0
MEAN = 1
SQUARES = 2  # sum of squared deviations from the mean
LARGEST = 3  # largest |g| of the sums that look past time limits
SUM_WORDS = 4
EPISODE, ENDLESS = 0, 1  # the two sums of a lane

START_COUNT = 1e-12  # weight of the initial mean 0 and variance 1: any chunk outweighs it
# Deviations below 1e-6 of the mean are float32's rounding, those below 1e-8 nothing.
RELATIVE_VARIANCE, SMALLEST_VARIANCE = 1e-12, 1e-16
SMALLEST_SCALE = 1e-8
# Share of the critics' support that the largest sum may take: a distribution at its very end is
# cut, its mean falls short, and every bootstrap would repeat that.
HEADROOM = 0.9


@njit()
def observe_rewards(
    lane: U16, flags: U8, reward: F32, n_rows: int, first_lane: int, discount: float,
    running: F64, sums: F64,
) -> None:  # fmt: skip
    """Take the steps among rows 0..n_rows of a chunk into the reward sums. No allocation.

    running    (lanes, 2) float64, discounted reward sums of each lane: EPISODE's since its begin;
               ENDLESS since the last termination, past time limits, as values are
    sums       (4,)     float64, COUNT, MEAN, SQUARES of all the first, LARGEST of the second
    """
    for r in range(n_rows):
        at = first_lane + int(lane[r])
        if flags[r] & (BOUNDARY | RESET):
            running[at, EPISODE] = 0.0
        if flags[r] & BOUNDARY:
            continue
        g = discount * running[at, EPISODE] + reward[r]
        endless = discount * running[at, ENDLESS] + reward[r]
        running[at, EPISODE] = 0.0 if flags[r] & (TERMINATED | TRUNCATED) else g
        running[at, ENDLESS] = 0.0 if flags[r] & TERMINATED else endless
        sums[COUNT] += 1.0
        off = g - sums[MEAN]
        sums[MEAN] += off / sums[COUNT]
        sums[SQUARES] += off * (g - sums[MEAN])
        sums[LARGEST] = max(sums[LARGEST], abs(endless))


@njit()
def observe_vectors(
    flags: U8, obs: Obs, n_rows: int, moments: F64, obs_mean: F32, obs_scale: F32
) -> None:
    """Take the steps among rows 0..n_rows of a chunk into the moments. No allocation.

    moments    (5, O)   float64, mean, variance, count in [2, 0], two rows of scratch (Chan 1979)
    obs_mean   (O,)     float32, written: mean
    obs_scale  (O,)     float32, written: 1 / sqrt(variance + 1e-12 mean**2 + 1e-16)
    """
    mean, square = moments[3], moments[4]
    width = obs_mean.size
    for k in range(width):
        mean[k] = 0.0
        square[k] = 0.0
    n = 0
    for r in range(n_rows):
        if flags[r] & BOUNDARY == 0:
            n += 1
            for k in range(width):
                mean[k] += obs[r, k]
    if n == 0:
        return
    for k in range(width):
        mean[k] /= n
    for r in range(n_rows):
        if flags[r] & BOUNDARY == 0:
            for k in range(width):
                off = obs[r, k] - mean[k]
                square[k] += off * off
    old = moments[2, 0]
    total = old + n
    moments[2, 0] = total
    for k in range(width):
        off = mean[k] - moments[0, k]
        variance = (moments[1, k] * old + square[k] + off * off * old * n / total) / total
        moments[0, k] += off * n / total
        moments[1, k] = variance
        obs_mean[k] = moments[0, k]
        floor = RELATIVE_VARIANCE * moments[0, k] ** 2 + SMALLEST_VARIANCE
        obs_scale[k] = 1.0 / math.sqrt(variance + floor)


@njit()
def observe_pixels(flags: U8, obs: Obs, n_rows: int, moments: F64, obs_mean: F32) -> None:
    """Take the steps among rows 0..n_rows of a chunk of images into the mean. No allocation.

    moments   (2, O) float64, sum of each pixel, exact; steps in [1, 0]
    obs_mean  (O,)   float32, written: mean, to the nearest whole number
    """
    n = 0
    for r in range(n_rows):
        if flags[r] & BOUNDARY == 0:
            n += 1
            for k in range(obs_mean.size):
                moments[0, k] += obs[r, k]
    if n == 0:
        return
    moments[1, 0] += n
    for k in range(obs_mean.size):
        obs_mean[k] = math.floor(moments[0, k] / moments[1, 0] + 0.5)


class Statistics:
    """Mean and scale of observations, sums of rewards; see observe_rewards, observe_vectors and
    observe_pixels for the arrays. Frames of a stack share those of the newest.

    Images have a mean alone: their scale is a constant.

    reward_scale  divides rewards; 1 before the first `rescale`
    """

    def __init__(self, *, n_lanes: int, shape: RowShape, discount: float, v_max: float) -> None:
        self.pixels = shape.pixels
        scaled = 0 if shape.pixels else shape.obs_dim
        self.discount = discount
        self.v_max = v_max
        self.running: F64 = np.zeros((n_lanes, 2), dtype=np.float64)
        self.sums: F64 = np.zeros(SUM_WORDS, dtype=np.float64)
        self.moments: F64 = np.zeros((2 if shape.pixels else 5, shape.obs_dim), dtype=np.float64)
        if not shape.pixels:
            self.moments[1] = 1.0
            self.moments[2] = START_COUNT
        self.obs_mean: F32 = np.zeros(shape.obs_dim, dtype=np.float32)
        self.obs_scale: F32 = np.ones(scaled, dtype=np.float32)
        self.reward_scale = 1.0

    def observe(self, views: ChunkViews, n_rows: int, first_lane: int) -> None:
        """Take in the steps among rows 0..n_rows of a chunk."""
        observe_rewards(
            views.lane, views.flags, views.reward, n_rows, first_lane, self.discount,
            self.running, self.sums,
        )  # fmt: skip
        rows = views.flags, views.obs, n_rows, self.moments, self.obs_mean
        if self.pixels:
            observe_pixels(*rows)
        else:
            observe_vectors(*rows, self.obs_scale)

    def rescale(self) -> None:
        """reward_scale = max(std of the reward sums, largest |sum| / (HEADROOM v_max), 1e-8).

        Sums of scaled rewards then have deviation <= 1 and stay within the critics' support.
        """
        count, _, squares, largest = (float(x) for x in self.sums)
        std = math.sqrt(squares / count) if count else 0.0
        self.reward_scale = max(std, largest / (HEADROOM * self.v_max), SMALLEST_SCALE)
