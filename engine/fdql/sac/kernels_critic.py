"""One step of both critics, shared by discrete and continuous actions. Stage 5 of 8, `update`.

The critics are walked one after the other, each forward and backward while its activations are in
cache; or, with two threads, side by side, each with its own working memory. Nothing is summed
across them in between, so the numbers are the same bit for bit. With discrete actions a row of the
batch trains the distribution of one action only, so the rows come sorted by action and the output
layer works on one group of rows and its K columns at a time: A times less work there than all
actions of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_adamw import adamw, clip_factor, follow, gradient_norm
from fdql.sac.kernels_backward import add_rows, backward_hidden
from fdql.sac.kernels_dense import Hidden, add_bias, forward_hidden, net_at, product
from fdql.sac.kernels_gauss import cross_entropy_gradient
from fdql.sac.kernels_heads import TQC
from fdql.sac.kernels_math import ZERO
from fdql.sac.kernels_quantiles import quantile_huber_gradient
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Critics(NamedTuple):
    """Memory of the critics' learner; P parameters, B rows of a batch, w units, A actions (1 if
    continuous), K outputs of one distribution, W window, M target quantiles, T threads (1 or 2).

    head                                    index in nets.HEADS; what only the other needs is empty
    unit                                    an error that counts as one: bin width, Huber threshold

    params, target, grad, m, v, keep (P,)   flat vectors; keep is AdamW's decay factor
    n0 x1 n1 x2 d2 d1 (T, B, w), r0 r1 (T, B)   activations and their gradients, of the critic that
                                            a thread is at
    outputs (T, B, K)                       of the action in the batch; then their gradient
    columns (T, w, K)                       the output layer's columns of one action
    support (K,)                            the bins' values; or the quantiles' levels
    slow (2, B, A), first (B,), p (B, W)    HL-Gauss: target critics' values at s'; target
                                            distributions
    pool (2, B, A K), z (B, M)              TQC: target critics' quantiles at s'; target quantiles
    y (B,), q (2, B)                        target values; both critics' values at the action taken
    loss (2,)                               of each critic
    starts (A + 1,)                         rows starts[a] : starts[a + 1] have action a; [0, B] if
                                            actions are continuous
    """

    head: int
    unit: float
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
    outputs: F32
    columns: F32
    support: F32
    slow: F32
    first: I64
    p: F32
    pool: F32
    z: F32
    y: F32
    q: F32
    loss: F64
    starts: I64


PER_THREAD = ("n0", "x1", "r0", "n1", "x2", "r1", "d2", "d1", "outputs", "columns")


def with_threads(c: Critics, threads: int) -> Critics:
    """The same memory, for fewer threads."""
    return c._replace(**{name: getattr(c, name)[:threads] for name in PER_THREAD})


class Rates(NamedTuple):
    """The settings an update needs, as config.SacConfig and the replay's exponent have them."""

    learning_rate: float
    gradient_clip: float
    target_rate: float
    v_max: float
    sigma_bins: float
    ln_min_temperature: float
    priority_exponent: float
    pessimism: float
    entropy_backup: float


@kernel()
def hidden_of(c: Critics, t: int) -> Hidden:
    """The activations' memory of thread t as the network kernels want it."""
    return Hidden(c.n0[t], c.x1[t], c.r0[t], c.n1[t], c.x2[t], c.r1[t])


@kernel()
def _take_columns(wide: F32, at: int, narrow: F32) -> F32:
    """wide[:, at : at + K], contiguous: copied to narrow (w, K), unless it is all of wide."""
    if wide.shape[1] == narrow.shape[1]:
        return wide
    for i in range(narrow.shape[0]):
        for j in range(narrow.shape[1]):
            narrow[i, j] = wide[i, at + j]
    return narrow


@kernel()
def _put_columns(narrow: F32, wide: F32, at: int) -> None:
    """wide[:, at : at + K] = narrow (w, K)."""
    for i in range(narrow.shape[0]):
        for j in range(narrow.shape[1]):
            wide[i, at + j] = narrow[i, j]


@kernel()
def output_forward(x2: F32, w2: F32, b2: F32, starts: I64, columns: F32, outputs: F32) -> None:
    """outputs (B, K) of every row's own action; columns (w, K) scratch."""
    bins = columns.shape[1]
    for a in range(starts.size - 1):
        first, stop, at = starts[a], starts[a + 1], a * bins
        if first < stop:
            product(x2[first:stop], _take_columns(w2, at, columns), outputs[first:stop])
            add_bias(outputs[first:stop], b2[at : at + bins])


@kernel()
def output_backward(
    x2: F32, w2: F32, starts: I64, columns: F32, d: F32, dw2: F32, db2: F32, d2: F32
) -> None:
    """From d = dL/doutputs (B, K): dw2, db2, and d2 (B, w) = dL/dx2; columns (w, K) scratch."""
    bins = columns.shape[1]
    for a in range(starts.size - 1):
        first, stop, at = starts[a], starts[a + 1], a * bins
        rows = d[first:stop]
        add_rows(rows, db2[at : at + bins])
        if dw2.shape[1] == bins:
            np.dot(x2.T, rows, dw2)
        elif first < stop:
            np.dot(x2[first:stop].T, rows, columns)
            _put_columns(columns, dw2, at)
        else:
            for i in range(dw2.shape[0]):
                for j in range(bins):
                    dw2[i, at + j] = ZERO
        if first < stop:
            np.dot(rows, _take_columns(w2, at, columns).T, d2[first:stop])


@kernel()
def _critic_gradient(c: Critics, x: F32, k: int) -> None:
    i, w, o = x.shape[1], c.x1.shape[2], (c.starts.size - 1) * c.support.size
    t = k % c.x1.shape[0]
    hidden = hidden_of(c, t)
    columns, outputs, d2 = c.columns[t], c.outputs[t], c.d2[t]
    net = net_at(c.params, 0, 2, k, i, w, o)
    grad = net_at(c.grad, 0, 2, k, i, w, o)
    forward_hidden(net, x, hidden)
    output_forward(hidden.x2, net.w2, net.b2, c.starts, columns, outputs)
    if c.head == TQC:
        c.loss[k] = quantile_huber_gradient(outputs, c.support, c.z, c.unit, c.q[k])
    else:
        c.loss[k] = cross_entropy_gradient(outputs, c.support, c.first, c.p, c.q[k])
    output_backward(hidden.x2, net.w2, c.starts, columns, outputs, grad.w2, grad.b2, d2)
    backward_hidden(net, grad, x, hidden, d2, c.d1[t])


@kernel(parallel=True)
def _critics_gradient_on_two(c: Critics, x: F32) -> None:
    for k in prange(2):
        _critic_gradient(c, x, k)


@kernel()
def critics_gradient(c: Critics, x: F32) -> float:
    """Fill `grad` and q from x (B, i) and the head's targets; returns the loss of both critics."""
    if c.x1.shape[0] == 2:
        _critics_gradient_on_two(c, x)
    else:
        for k in range(2):
            _critic_gradient(c, x, k)
    return float(c.loss[0] + c.loss[1])


@kernel()
def _step_half(c: Critics, factor: float, rates: Rates, step: int, k: int) -> None:
    half = c.params.size // 2
    first, stop = k * half, c.params.size if k else half
    p = c.params[first:stop]
    adamw(
        p, c.grad[first:stop], c.m[first:stop], c.v[first:stop], c.keep[first:stop],
        factor, rates.learning_rate, step,
    )  # fmt: skip
    follow(c.target[first:stop], p, rates.target_rate)


@kernel(parallel=True)
def _step_on_two(c: Critics, factor: float, rates: Rates, step: int) -> None:
    for k in prange(2):
        _step_half(c, factor, rates, step, k)


@kernel()
def critics_step(c: Critics, rates: Rates, step: int) -> float:
    """Clip the gradient of both critics together, apply AdamW, move the target critics.

    Returns the norm before the clip; when it is not finite nothing was changed.
    """
    norm = gradient_norm(c.grad)
    if np.isfinite(norm):
        factor = clip_factor(norm, rates.gradient_clip)
        if c.x1.shape[0] == 2:
            _step_on_two(c, factor, rates, step)
        else:
            for k in range(2):
                _step_half(c, factor, rates, step, k)
    return norm
