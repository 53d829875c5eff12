"""What the critics learn from: targets by the head, and the priorities that the errors leave.

Both kinds of action come here with a policy: softmax over A actions, or 1 for the one action drawn.
Stage 5 of 8, `update`.
"""

from __future__ import annotations

import numpy as np

from fdql.sac.jit import kernel
from fdql.sac.kernels_critic import F64, I64, Critics, Rates, hidden_of
from fdql.sac.kernels_dense import forward, net_at
from fdql.sac.kernels_gauss import hl_gauss_target, mean_value
from fdql.sac.kernels_heads import TQC, pessimistic
from fdql.sac.kernels_math import ZERO
from fdql.sac.kernels_quantiles import pooled_quantiles, sort_rows
from fdql.sac.nets import F32


@kernel()
def next_outputs(c: Critics, x: F32, k: int, scratch: F32) -> None:
    """Keep for `targets` what target critic k says of s': x (B, i), scratch (B, A K)."""
    rows, actions, count = x.shape[0], c.slow.shape[2], c.support.size
    hidden = hidden_of(c, k % c.x1.shape[0])
    net = net_at(c.target, 0, 2, k, x.shape[1], c.x1.shape[2], actions * count)
    if c.head == TQC:
        forward(net, x, hidden, c.pool[k])
        sort_rows(c.pool[k].reshape((rows * actions, count)))
    else:
        forward(net, x, hidden, scratch)
        lines = scratch.reshape((rows * actions, count))
        mean_value(lines, c.support, c.slow[k].reshape(rows * actions))


@kernel()
def _gauss_targets(
    c: Critics, policy: F32, bonus: F32, order: I64, reward: F32, discount: F32,
    reward_scale: np.float32, rates: Rates,
) -> float:  # fmt: skip
    top = np.float32(rates.v_max)
    pessimism = np.float32(rates.pessimism)
    clipped = 0
    for i in range(c.y.size):
        v = bonus[i]
        for a in range(policy.shape[1]):
            v += policy[i, a] * pessimistic(c.slow[0, i, a], c.slow[1, i, a], pessimism)
        y = reward[order[i]] / reward_scale + discount[order[i]] * v
        if abs(y) > top:
            y = top if y > ZERO else -top
            clipped += 1
        c.y[i] = y
    hl_gauss_target(c.y, c.support.size, rates.v_max, rates.sigma_bins, c.first, c.p)
    return clipped / c.y.size


@kernel()
def _quantile_targets(
    c: Critics, policy: F32, bonus: F32, order: I64, reward: F32, discount: F32,
    reward_scale: np.float32,
) -> float:  # fmt: skip
    pooled_quantiles(policy, c.pool, c.z)
    rows, kept = c.z.shape
    for i in range(rows):
        g = discount[order[i]]
        r = reward[order[i]] / reward_scale + g * bonus[i]
        total = ZERO
        for m in range(kept):
            z = r + g * c.z[i, m]
            c.z[i, m] = z
            total += z
        c.y[i] = total / np.float32(kept)
    return 0.0


@kernel()
def targets(
    c: Critics, policy: F32, bonus: F32, order: I64, reward: F32, discount: F32,
    reward_scale: np.float32, rates: Rates,
) -> float:  # fmt: skip
    """Fill y, and first and p or z, from what `next_outputs` kept. Returns the share clipped.

    y = R / reward_scale + discount (V(s') + bonus), V = sum_a pi(a|s') pessimistic Qbar(s', a);
    HL-Gauss clips it to the bins, TQC gives every quantile of V so and clips nothing.

    policy (B, A), bonus (B,) of s', in our order; reward, discount (B,) in the order of the batch:
    row i of ours is row order[i] there
    """
    if c.head == TQC:
        return _quantile_targets(c, policy, bonus, order, reward, discount, reward_scale)
    return _gauss_targets(c, policy, bonus, order, reward, discount, reward_scale, rates)


@kernel()
def priorities(c: Critics, order: I64, rates: Rates, out: F64) -> tuple[float, float]:
    """out = max(|y - Q| / unit, 1) ** exponent, Q the critics' mean (LAP, Fujimoto 2020).

    out (B,) in the order of the batch. Returns the mean of Q and the mean of |y - Q|.
    """
    per_unit = 1.0 / c.unit
    total = 0.0
    errors = 0.0
    for i in range(c.y.size):
        q = 0.5 * (c.q[0, i] + c.q[1, i])
        error = abs(c.y[i] - q)
        out[order[i]] = max(error * per_unit, 1.0) ** rates.priority_exponent
        total += q
        errors += error
    return total / c.y.size, errors / c.y.size
