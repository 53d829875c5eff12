"""The TQC head (Kuznetsov 2020, arXiv 2005.04269): a critic's outputs are quantiles of the return.

Output j of N is the quantile of level (j + 1/2) / N, a critic's value is their mean. The target is
what both target critics say together, its highest quantiles left out: they are where a maximum over
noise hides. Stages `inference` (values) and `update` (targets, gradients). n rows, A actions, M
quantiles of the target.
"""

from __future__ import annotations

import numpy as np

from fdql.sac.jit import kernel
from fdql.sac.kernels_math import HALF, ONE, REDUCTION, ZERO
from fdql.sac.nets import F32


@kernel(fastmath=REDUCTION)
def mean_quantile(quantiles: F32, out: F32) -> None:
    """out[i] = mean_j quantiles[i, j]; quantiles (n, N), out (n,)."""
    n, count = quantiles.shape
    share = ONE / np.float32(count)
    for i in range(n):
        total = ZERO
        for j in range(count):
            total += quantiles[i, j]
        out[i] = total * share


@kernel()
def mean_quantile_gradient(quantiles: F32, weight: float, q: F32) -> None:
    """Gradient of weight sum_i Q_i: quantiles (n, N), then weight / N each; q (n,) = Q."""
    mean_quantile(quantiles, q)
    quantiles[:] = np.float32(weight / quantiles.shape[1])


@kernel()
def sort_rows(x: F32) -> None:
    """Each row of x (n, N) in ascending order, by insertion: a trained critic's nearly is."""
    n, count = x.shape
    for i in range(n):
        for j in range(1, count):
            value = x[i, j]
            at = j
            while at > 0 and x[i, at - 1] > value:
                x[i, at] = x[i, at - 1]
                at -= 1
            x[i, at] = value


@kernel()
def pooled_quantiles(policy: F32, sorted_quantiles: F32, z: F32) -> None:
    """z_im = sum_a pi(a|s_i) of the m-th lowest of both critics' quantiles of a; M <= 2 N are kept.

    policy (n, A), sorted_quantiles (2, n, A N) each critic's in ascending order, z (n, M) out. The
    mean of z is the policy's mean of the truncated values (Kuznetsov 2020, eq. 9, for one action).
    """
    n, actions = policy.shape
    count = sorted_quantiles.shape[2] // actions
    for i in range(n):
        for m in range(z.shape[1]):
            z[i, m] = ZERO
        for a in range(actions):
            share = policy[i, a]
            first = sorted_quantiles[0, i, a * count : (a + 1) * count]
            second = sorted_quantiles[1, i, a * count : (a + 1) * count]
            j = k = 0
            for m in range(z.shape[1]):
                if k == count or (j < count and first[j] <= second[k]):
                    z[i, m] += share * first[j]
                    j += 1
                else:
                    z[i, m] += share * second[k]
                    k += 1


@kernel(fastmath=REDUCTION)
def quantile_huber_gradient(quantiles: F32, levels: F32, z: F32, threshold: float, q: F32) -> float:
    """Loss of one critic, mean_i sum_j mean_m |tau_j - [u < 0]| H(u) / threshold, u = z_im - x_ij,
    and its gradient. (Dabney 2018, arXiv 1710.10044, eq. 10; Kuznetsov 2020 has mean_j)

    H(u) = c (u - c / 2), c = u cut to +-threshold, is Huber's loss; its slope is c.
    quantiles (n, N) x in; out: dL/dx
    levels    (N,) tau; z (n, M) target
    q         (n,) out: values, mean_j x_ij
    A NaN passes through.
    """
    n, count = quantiles.shape
    kept = z.shape[1]
    high = np.float32(threshold)
    share = np.float32(1.0 / (n * kept * threshold))
    mean_quantile(quantiles, q)
    loss = 0.0
    for i in range(n):
        row = ZERO
        for j in range(count):
            x = quantiles[i, j]
            above = levels[j]
            below = ONE - above
            slope = ZERO
            cost = ZERO
            for m in range(kept):
                u = z[i, m] - x
                c = high if u > high else u
                c = -high if c < -high else c
                weighted = (below if u < ZERO else above) * c
                slope += weighted
                cost += weighted * (u - HALF * c)
            quantiles[i, j] = -share * slope
            row += cost
        loss += row
    return float(loss * share)
