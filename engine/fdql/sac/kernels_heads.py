"""What the networks' outputs mean: critics by their head, Boltzmann policy, tanh-normal action.

Stages `inference` (values, actions) and `update` (targets, gradients). The two heads are in
kernels_gauss.py and kernels_quantiles.py. Each function is one equation; n rows, K outputs of one
distribution, A actions or components.
"""

from __future__ import annotations

import math

import numpy as np

from fdql.sac.jit import kernel
from fdql.sac.kernels_gauss import highest, mean_value, value_gradient
from fdql.sac.kernels_math import HALF, ONE, REDUCTION, TWO, ZERO, exp, softplus, tanh
from fdql.sac.kernels_quantiles import mean_quantile, mean_quantile_gradient
from fdql.sac.learner import LN_TEMPERATURE_MAX, SOLVE_BISECTIONS
from fdql.sac.nets import F32, HEADS, LOG_STD_HALF, LOG_STD_MIN

TQC = HEADS.index("tqc")

LOG_STD_LOW = np.float32(LOG_STD_MIN)
LOG_STD_SPAN = np.float32(LOG_STD_HALF)
_LN_2 = np.float32(math.log(2.0))
_HALF_LN_2PI = np.float32(0.5 * math.log(2.0 * math.pi))


# -- critics --------------------------------------------------------------------------------------


@kernel()
def values(head: int, outputs: F32, support: F32, out: F32) -> None:
    """out (n,) = the value that each row of outputs (n, K) stands for."""
    if head == TQC:
        mean_quantile(outputs, out)
    else:
        mean_value(outputs, support, out)


@kernel()
def values_gradient(head: int, outputs: F32, support: F32, weight: float, q: F32) -> None:
    """Gradient of weight sum_i Q_i: outputs (n, K) in, their gradient out; q (n,) = Q out."""
    if head == TQC:
        mean_quantile_gradient(outputs, weight, q)
    else:
        value_gradient(outputs, support, weight, q)


@kernel()
def pessimistic(q0: np.float32, q1: np.float32, pessimism: np.float32) -> np.float32:
    """heads.pessimistic for one pair of values."""
    return HALF * (q0 + q1 - pessimism * abs(q0 - q1))


# -- discrete actions: the policy is a function of the critics ------------------------------------


@kernel()
def boltzmann_policy(q: F32, temperature: float, policy: F32, entropy: F32) -> float:
    """policy (n, A) = softmax(q / temperature), entropy (n,) of each row, nats; returns its mean.

    q (n, A) float32.
    """
    n, actions = q.shape
    sharpness = np.float32(1.0 / temperature)
    mean = 0.0
    for i in range(n):
        m = highest(q[i])
        total = ZERO
        spread = ZERO
        for a in range(actions):
            x = (q[i, a] - m) * sharpness
            e = exp(x)
            policy[i, a] = e
            total += e
            spread += e * x
        share = ONE / total
        for a in range(actions):
            policy[i, a] *= share
        nats = math.log(total) - spread * share
        entropy[i] = nats
        mean += nats
    return mean / n


@kernel()
def temperature_root(q: F32, goal: float, ln_lowest: float, policy: F32, entropy: F32) -> float:
    """ln temperature at which softmax(q / temperature) has mean entropy `goal`; q (n, A).

    The entropy grows with the temperature: bisections of [ln_lowest, 0] find the root, or the
    nearer end when the root lies outside. policy (n, A), entropy (n,) scratch.
    """
    low, high = ln_lowest, LN_TEMPERATURE_MAX
    for _ in range(SOLVE_BISECTIONS):
        middle = 0.5 * (low + high)
        if boltzmann_policy(q, math.exp(middle), policy, entropy) > goal:
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
def tanh_normal_ln_density(out: F32, noise: F32, density: F32) -> tuple[float, float]:
    """density (n,) = ln pi(a|s) at a = tanh(mean + std noise); returns its mean, and mean of std.

    ln(1 - tanh(u)**2) = 2 (ln 2 - u - softplus(-2 u)) (Haarnoja 2018, arXiv 1812.05905, app. C)
    """
    n, components = noise.shape
    total = 0.0
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
        density[i] = row
        total += row
        deviation += stds
    return total / n, deviation / (n * components)


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
