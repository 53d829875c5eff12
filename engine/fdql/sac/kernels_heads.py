"""What the networks' outputs mean: the critics' distributions and the actor's tanh-normal action.

Stages `inference` (values, actions) and `update` (targets, gradients). A critic's output is the
logits of a distribution over `support`, values evenly on [-v_max, v_max]; its value is the mean.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fdql.sac.kernels_math import ONE, REDUCTION, ZERO, exp, tanh
from fdql.sac.nets import F32, LOG_STD_HALF, LOG_STD_MIN

LOG_STD_LOW = np.float32(LOG_STD_MIN)
LOG_STD_SPAN = np.float32(LOG_STD_HALF)


@njit(cache=True, nogil=True, fastmath=REDUCTION | {"nnan"})
def highest(row: F32) -> np.float32:
    """Largest value of row (k,). Of a row with NaN: any value (the exponentials keep the NaN)."""
    m = row[0]
    for j in range(row.size):
        m = max(m, row[j])
    return m


@njit(cache=True, nogil=True, fastmath=REDUCTION)
def mean_value(logits: F32, support: F32, out: F32) -> None:
    """out[i] = sum_j support[j] softmax(logits[i])[j]; logits (n, K), support (K,), out (n,)."""
    n, bins = logits.shape
    for i in range(n):
        m = highest(logits[i])
        total = ZERO
        weighted = ZERO
        for j in range(bins):
            e = exp(logits[i, j] - m)
            total += e
            weighted += e * support[j]
        out[i] = weighted / total


@njit(cache=True, nogil=True)
def std_of(raw: np.float32) -> np.float32:
    """Standard deviation before tanh from the actor's raw output, exp(-10) .. exp(2)."""
    return exp(LOG_STD_LOW + LOG_STD_SPAN * (ONE + tanh(raw)))
