"""One step of both critics, shared by discrete and continuous actions. Stage 5 of 8, `update`.

The critics are walked one after the other, each forward and backward while its activations are in
cache. With discrete actions a row of the batch trains the distribution of one action only, so the
rows come sorted by action and the output layer works on one group of rows and its K columns at a
time: A times less work there than all actions of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fdql.sac.kernels_adamw import adamw, clip_factor, follow, gradient_norm
from fdql.sac.kernels_backward import add_rows, backward_hidden
from fdql.sac.kernels_dense import Hidden, Net, add_bias, forward_hidden, net_at, product
from fdql.sac.kernels_heads import cross_entropy_gradient, hl_gauss_target
from fdql.sac.kernels_math import ZERO
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Critics(NamedTuple):
    """Memory of the critics' learner; P parameters, B rows of a batch, w units, K bins, W window.

    params, target, grad, m, v, keep (P,)   flat vectors; keep is AdamW's decay factor
    n0 x1 n1 x2 d2 d1 (B, w), r0 r1 (B,)    activations and their gradients, of one critic at a time
    logits (B, K)                           of the action in the batch; then their gradient
    w2 w2_grad (w, K)                       the output layer's columns of one action
    support (K,), first (B,), p (B, W)      bins, and the target distributions
    y (B,), q (2, B)                        target values; both critics' values at the action taken
    starts (A + 1,)                         rows starts[a] : starts[a + 1] have action a; [0, B] if
                                            actions are continuous
    """

    params: F32
    target: F32
    grad: F32
    m: F32
    v: F32
    keep: F32
    n0: F32
    x1: F32
    r0: F32
    n1: F32
    x2: F32
    r1: F32
    d2: F32
    d1: F32
    logits: F32
    w2: F32
    w2_grad: F32
    support: F32
    first: I64
    p: F32
    y: F32
    q: F32
    starts: I64


class Rates(NamedTuple):
    """The settings an update needs, as config.SacConfig and the replay's exponent have them."""

    learning_rate: float
    gradient_clip: float
    target_rate: float
    v_max: float
    sigma_bins: float
    ln_min_temperature: float
    priority_exponent: float


@njit(cache=True, nogil=True, error_model="numpy")
def hidden_of(c: Critics) -> Hidden:
    """The activations' memory as the network kernels want it."""
    return Hidden(c.n0, c.x1, c.r0, c.n1, c.x2, c.r1)


@njit(cache=True, nogil=True, error_model="numpy")
def _columns(c: Critics, net: Net, at: int) -> F32:
    """net.w2[:, at : at + K], contiguous for BLAS: a copy, unless it is the whole matrix."""
    if c.starts.size == 2:
        return net.w2
    for i in range(c.w2.shape[0]):
        for j in range(c.w2.shape[1]):
            c.w2[i, j] = net.w2[i, at + j]
    return c.w2


@njit(cache=True, nogil=True, error_model="numpy")
def _output_forward(c: Critics, net: Net) -> None:
    """logits (B, K) of every row's own action."""
    bins = c.support.size
    for a in range(c.starts.size - 1):
        first, stop, at = c.starts[a], c.starts[a + 1], a * bins
        if first < stop:
            logits = c.logits[first:stop]
            product(c.x2[first:stop], _columns(c, net, at), logits)
            add_bias(logits, net.b2[at : at + bins])


@njit(cache=True, nogil=True, error_model="numpy")
def _output_backward(c: Critics, net: Net, grad: Net) -> None:
    """From dL/dlogits (B, K): gradients of the output layer, and d2 = dL/dx2."""
    bins = c.support.size
    for a in range(c.starts.size - 1):
        first, stop, at = c.starts[a], c.starts[a + 1], a * bins
        d = c.logits[first:stop]
        add_rows(d, grad.b2[at : at + bins])
        if c.starts.size == 2:
            np.dot(c.x2.T, d, grad.w2)
        else:
            if first < stop:
                np.dot(c.x2[first:stop].T, d, c.w2_grad)
            for i in range(c.w2_grad.shape[0]):
                for j in range(bins):
                    grad.w2[i, at + j] = c.w2_grad[i, j] if first < stop else ZERO
        if first < stop:
            np.dot(d, _columns(c, net, at).T, c.d2[first:stop])


@njit(cache=True, nogil=True, error_model="numpy")
def critics_gradient(c: Critics, x: F32) -> float:
    """Fill `grad` and q from x (B, i) and the targets first, p; returns the loss of both critics.

    L = -sum_k mean_i sum_j p_ij ln softmax(l_ki)_j (Farebrother 2024, arXiv 2403.03950)
    """
    i, w, o = x.shape[1], c.x1.shape[1], (c.starts.size - 1) * c.support.size
    hidden = hidden_of(c)
    loss = 0.0
    for k in range(2):
        net = net_at(c.params, 0, 2, k, i, w, o)
        grad = net_at(c.grad, 0, 2, k, i, w, o)
        forward_hidden(net, x, hidden)
        _output_forward(c, net)
        loss += cross_entropy_gradient(c.logits, c.support, c.first, c.p, c.q[k])
        _output_backward(c, net, grad)
        backward_hidden(net, grad, x, hidden, c.d2, c.d1)
    return loss


@njit(cache=True, nogil=True, error_model="numpy")
def critics_step(c: Critics, rates: Rates, step: int) -> float:
    """Clip the gradient of both critics together, apply AdamW, move the target critics.

    Returns the norm before the clip; when it is not finite nothing was changed.
    """
    norm = gradient_norm(c.grad)
    if np.isfinite(norm):
        factor = clip_factor(norm, rates.gradient_clip)
        adamw(c.params, c.grad, c.m, c.v, c.keep, factor, rates.learning_rate, step)
        follow(c.target, c.params, rates.target_rate)
    return norm


@njit(cache=True, nogil=True, error_model="numpy")
def targets(
    c: Critics, order: I64, reward: F32, discount: F32, v: F32, reward_scale: float, rates: Rates
) -> float:
    """y_i = R / reward_scale + discount V(s'), clipped to the bins, and its distribution p.

    reward, discount (B,) in the order of the batch, v (B,) in our order: row i of ours is row
    order[i] there. Returns the share of targets that were clipped.
    """
    top = np.float32(rates.v_max)
    clipped = 0
    for i in range(v.size):
        y = reward[order[i]] / reward_scale + discount[order[i]] * v[i]
        if abs(y) > top:
            y = top if y > ZERO else -top
            clipped += 1
        c.y[i] = y
    hl_gauss_target(c.y, c.support.size, rates.v_max, rates.sigma_bins, c.first, c.p)
    return clipped / v.size


@njit(cache=True, nogil=True, error_model="numpy")
def priorities(c: Critics, order: I64, rates: Rates, out: F64) -> tuple[float, float]:
    """out = max(|y - Q| / bin width, 1) ** exponent, Q the critics' mean (LAP, Fujimoto 2020).

    out (B,) in the order of the batch. Returns the mean of Q and the mean of |y - Q|.
    """
    per_unit = (c.support.size - 1) / (2.0 * rates.v_max)
    values = 0.0
    errors = 0.0
    for i in range(c.y.size):
        q = 0.5 * (c.q[0, i] + c.q[1, i])
        error = abs(c.y[i] - q)
        out[order[i]] = max(error * per_unit, 1.0) ** rates.priority_exponent
        values += q
        errors += error
    return values / c.y.size, errors / c.y.size
