"""The HL-Gauss head: a critic's outputs are the logits of a distribution over `support`.

`support` are values evenly on [-v_max, v_max]; a critic's value is the distribution's mean. Stages
`inference` (values) and `update` (targets, gradients). n rows, K bins, W bins of a window.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_math import HALF, ONE, REDUCTION, ZERO, erf, exp
from fdql.sac.nets import F32

I64 = NDArray[np.int64]


@kernel(fastmath=REDUCTION | {"nnan"})
def highest(row: F32) -> np.float32:
    """Largest value of row (k,), up to rounding; any value if there is a NaN.

    LLVM makes SIMD of this form (4 us for 512 x 101 values), not of max(m, row[j]) (16 us).
    """
    m = row[0]
    for j in range(row.size):
        above = row[j] - m
        m += above if above > ZERO else ZERO
    return m


@kernel()
def row_maxima(logits: F32, out: F32) -> None:
    """out[i] = max_j logits[i, j]. A pass of its own: exponentials need not wait for each row's."""
    for i in range(out.size):
        out[i] = highest(logits[i])


@kernel(fastmath=REDUCTION)
def mean_value(logits: F32, support: F32, out: F32) -> None:
    """out[i] = sum_j support[j] softmax(logits[i])[j]; logits (n, K), support (K,), out (n,)."""
    row_maxima(logits, out)
    n, bins = logits.shape
    for i in range(n):
        m = out[i]
        total = ZERO
        weighted = ZERO
        for j in range(bins):
            e = exp(logits[i, j] - m)
            total += e
            weighted += e * support[j]
        out[i] = weighted / total


@kernel(fastmath=REDUCTION)
def hl_gauss_target(y: F32, bins: int, v_max: float, sigma_bins: float, first: I64, p: F32) -> None:
    """Normal(y, sigma) cut to the bins: p_j = (Phi(e_j+1) - Phi(e_j)) / normaliser (Imani 2018).

    Only the W bins around y are computed: the mass beyond 6 sigma, 2e-9, does not show in float32.
    y      (n,) in [-v_max, v_max]
    first  (n,)   out: index of the window's first bin
    p      (n, W) out: probabilities, each row sums to 1
    """
    n, w = p.shape
    per_unit = np.float32((bins - 1) / (2.0 * v_max))
    scale = np.float32(1.0 / (math.sqrt(2.0) * sigma_bins))
    top = np.float32(v_max)
    for i in range(n):
        at = (y[i] + top) * per_unit  # y in bins, centre of bin 0 is 0
        low = min(max(int(at + HALF) - w // 2, 0), bins - w)
        first[i] = low
        start = (np.float32(low) - HALF - at) * scale  # the window's lower edge, in sigma sqrt 2
        for j in range(w):
            p[i, j] = erf(start + np.float32(j + 1) * scale)
        below = erf(start)
        share = ONE / (p[i, w - 1] - below)
        for j in range(w - 1, 0, -1):
            p[i, j] = (p[i, j] - p[i, j - 1]) * share
        p[i, 0] = (p[i, 0] - below) * share


@kernel(fastmath=REDUCTION)
def cross_entropy_gradient(logits: F32, support: F32, first: I64, p: F32, q: F32) -> float:
    """Loss of one critic, -mean_i sum_j p_ij ln softmax(l_i)_j, and its gradient.

    logits    (n, K) in; out: dL/dl = (softmax(l_i) - p_i) / n
    first, p  targets, as hl_gauss_target leaves them
    q         (n,) out: values, sum_j support[j] softmax(l_i)_j
    """
    n, bins = logits.shape
    w = p.shape[1]
    share = ONE / np.float32(n)
    loss = 0.0
    row_maxima(logits, q)
    for i in range(n):
        at = first[i]
        m = q[i]
        expected = ZERO
        for j in range(w):
            expected += p[i, j] * logits[i, at + j]
        total = ZERO
        weighted = ZERO
        for j in range(bins):
            e = exp(logits[i, j] - m)
            logits[i, j] = e
            total += e
            weighted += e * support[j]
        q[i] = weighted / total
        loss += math.log(total) + m - expected
        scale = share / total
        for j in range(bins):
            logits[i, j] *= scale
        for j in range(w):
            logits[i, at + j] -= share * p[i, j]
    return loss / n


@kernel(fastmath=REDUCTION)
def value_gradient(logits: F32, support: F32, weight: float, q: F32) -> None:
    """Gradient of weight sum_i Q_i: logits (n, K), then weight p_ij (support_j - Q_i); q (n,)."""
    n, bins = logits.shape
    row_maxima(logits, q)
    for i in range(n):
        m = q[i]
        total = ZERO
        weighted = ZERO
        for j in range(bins):
            e = exp(logits[i, j] - m)
            logits[i, j] = e
            total += e
            weighted += e * support[j]
        value = weighted / total
        q[i] = value
        scale = np.float32(weight) / total
        for j in range(bins):
            logits[i, j] *= scale * (support[j] - value)
