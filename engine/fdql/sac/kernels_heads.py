"""What the networks' outputs mean: the critics' distributions and the actor's tanh-normal action.

Stages `inference` (values, actions) and `update` (targets, gradients). A critic's output is the
logits of a distribution over `support`, values evenly on [-v_max, v_max]; its value is the mean.
Each function is one equation; n rows, K bins, W bins of a window, A actions or components.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_math import HALF, ONE, REDUCTION, TWO, ZERO, erf, exp, softplus, tanh
from fdql.sac.learner import LN_TEMPERATURE_MAX, SOLVE_BISECTIONS
from fdql.sac.nets import F32, LOG_STD_HALF, LOG_STD_MIN

I64 = NDArray[np.int64]

LOG_STD_LOW = np.float32(LOG_STD_MIN)
LOG_STD_SPAN = np.float32(LOG_STD_HALF)
_LN_2 = np.float32(math.log(2.0))
_HALF_LN_2PI = np.float32(0.5 * math.log(2.0 * math.pi))


# -- critic ---------------------------------------------------------------------------------------


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


@kernel()
def pessimistic(q0: np.float32, q1: np.float32, pessimism: np.float32) -> np.float32:
    """heads.pessimistic for one pair of values."""
    return HALF * (q0 + q1 - pessimism * abs(q0 - q1))


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


# -- discrete actions: the policy is a function of the critics ------------------------------------


@kernel()
def boltzmann_value(q: F32, low: F32, temperature: float, v: F32) -> float:
    """v_i = sum_a pi(a|s_i) low_ia with pi = softmax(q / temperature); returns the mean entropy.

    q, low (n, A), v (n,) float32; entropy in nats.
    """
    n, actions = q.shape
    sharpness = np.float32(1.0 / temperature)
    entropy = 0.0
    for i in range(n):
        m = highest(q[i])
        total = ZERO
        value = ZERO
        spread = ZERO
        for a in range(actions):
            x = (q[i, a] - m) * sharpness
            e = exp(x)
            total += e
            value += e * low[i, a]
            spread += e * x
        v[i] = value / total
        entropy += math.log(total) - spread / total
    return entropy / n


@kernel()
def temperature_root(q: F32, goal: float, ln_lowest: float, scratch: F32) -> float:
    """ln temperature at which softmax(q / temperature) has mean entropy `goal`; q (n, A).

    The entropy grows with the temperature: bisections of [ln_lowest, 0] find the root, or the
    nearer end when the root lies outside. scratch (n,).
    """
    low, high = ln_lowest, LN_TEMPERATURE_MAX
    for _ in range(SOLVE_BISECTIONS):
        middle = 0.5 * (low + high)
        if boltzmann_value(q, q, math.exp(middle), scratch) > goal:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


# -- continuous actions: a normal variable squashed by tanh ----------------------------------------


@kernel()
def std_of(raw: np.float32) -> np.float32:
    """Standard deviation before tanh from the actor's raw output, exp(-10) .. exp(2)."""
    return exp(LOG_STD_LOW + LOG_STD_SPAN * (ONE + tanh(raw)))


@kernel(fastmath=REDUCTION)
def tanh_normal(out: F32, noise: F32, action: F32) -> None:
    """action = tanh(mean + std noise). out (n, 2 A): means, raw log stds; noise (n, A)."""
    n, components = noise.shape
    for i in range(n):
        for j in range(components):
            std = std_of(out[i, components + j])
            action[i, j] = tanh(out[i, j] + std * noise[i, j])


@kernel(fastmath=REDUCTION)
def tanh_normal_ln_density(out: F32, noise: F32) -> tuple[float, float]:
    """Mean over the rows of ln pi(a|s) at a = tanh(mean + std noise), and mean of std.

    ln(1 - tanh(u)**2) = 2 (ln 2 - u - softplus(-2 u)) (Haarnoja 2018, arXiv 1812.05905, app. C)
    """
    n, components = noise.shape
    density = 0.0
    deviation = 0.0
    for i in range(n):
        row = ZERO
        stds = ZERO
        for j in range(components):
            e = noise[i, j]
            ln_std = LOG_STD_LOW + LOG_STD_SPAN * (ONE + tanh(out[i, components + j]))
            std = exp(ln_std)
            u = out[i, j] + std * e
            normal = -HALF * e * e - ln_std - _HALF_LN_2PI
            row += normal - TWO * (_LN_2 - u - softplus(-TWO * u))
            stds += std
        density += row
        deviation += stds
    return density / n, deviation / (n * components)


@kernel(fastmath=REDUCTION)
def tanh_normal_gradient(out: F32, noise: F32, action: F32, temperature: float, da: F32) -> None:
    """Gradient of mean_i[temperature ln pi(a_i|s_i)] + L(action), through action = tanh(u).

    out     (n, 2 A) in: the actor's output; out: dL/dout
    da      (n, A) dL/daction;   action  (n, A) as tanh_normal gave it
    d ln pi / du = 2 a + ...: the normal part is constant in u, its std enters by -ln std
    """
    n, components = noise.shape
    weight = np.float32(temperature / n)
    for i in range(n):
        for j in range(components):
            a = action[i, j]
            slope = tanh(out[i, components + j])
            std = exp(LOG_STD_LOW + LOG_STD_SPAN * (ONE + slope))
            du = da[i, j] * (ONE - a * a) + weight * TWO * a
            d_ln_std = du * std * noise[i, j] - weight
            out[i, j] = du
            out[i, components + j] = d_ln_std * LOG_STD_SPAN * (ONE - slope * slope)
