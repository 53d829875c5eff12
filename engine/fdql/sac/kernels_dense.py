"""The network of critics and actor as kernels: twice (dense, layer norm, relu), then dense.

Parameters stay in the flat float32 vector of `nets.py`; a kernel takes views of it (`net_at`), so
that nothing is unpacked per call. Matrix products go to BLAS through np.dot(..., out); what stands
between them is one fused loop per row. Forward and backward mirror each other line by line:

    z_l = x_l w_l + b_l      n_l = (z_l - mean z_l) / std z_l      x_{l+1} = max(g_l n_l + h_l, 0)

Kernels take arrays and scalars, allocate nothing, check nothing: the class that calls them checks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fdql.sac.jit import kernel
from fdql.sac.kernels_math import ONE, REDUCTION, ZERO
from fdql.sac.nets import F32, LAYER_NORM_EPS, OBS_CLIP

_FEW = 24  # rows below which a plain loop beats BLAS, which packs its operands first
_EPS = np.float32(LAYER_NORM_EPS)
_OBS_CLIP = np.float32(OBS_CLIP)


class Net(NamedTuple):
    """One network's parameters, or their gradients. i inputs, w hidden units, o outputs; float32.

    w0 (i, w), b0 g0 h0 (w,)   first layer: matrix, bias, layer norm scale and shift
    w1 (w, w), b1 g1 h1 (w,)   second layer
    w2 (w, o), b2 (o,)         output layer, no norm
    """

    w0: F32
    b0: F32
    g0: F32
    h0: F32
    w1: F32
    b1: F32
    g1: F32
    h1: F32
    w2: F32
    b2: F32


class Hidden(NamedTuple):
    """What a forward pass leaves for its backward pass; n rows, w units; float32.

    n0 x1 (n, w)   first layer: normalised before scale and shift; after relu
    r0    (n,)     first layer: 1 / std of each row
    n1 x2 r1       second layer, the same
    """

    n0: F32
    x1: F32
    r0: F32
    n1: F32
    x2: F32
    r1: F32


@kernel()
def _matrix(flat: F32, at: int, rows: int, cols: int) -> F32:
    return flat[at : at + rows * cols].reshape((rows, cols))


@kernel(signature="(float32[::1], int64, int64, int64, int64, int64, int64)")
def net_at(flat: F32, at: int, copies: int, k: int, i: int, w: int, o: int) -> Net:
    """Views of network k of `copies` networks that stand interleaved in `flat` from `at` on.

    The order is that of nets.critic_shapes (copies = 2) and nets.actor_shapes (copies = 1): every
    name holds network 0, then network 1.
    """
    at_w0 = at + k * i * w
    at += copies * i * w
    at_b0 = at + k * w
    at_w1 = at + copies * 3 * w + k * w * w
    at += copies * (3 * w + w * w)
    at_b1 = at + k * w
    at_w2 = at + copies * 3 * w + k * w * o
    at_b2 = at + copies * (3 * w + w * o) + k * o
    step = copies * w
    return Net(
        _matrix(flat, at_w0, i, w),
        flat[at_b0 : at_b0 + w],
        flat[at_b0 + step : at_b0 + step + w],
        flat[at_b0 + 2 * step : at_b0 + 2 * step + w],
        _matrix(flat, at_w1, w, w),
        flat[at_b1 : at_b1 + w],
        flat[at_b1 + step : at_b1 + step + w],
        flat[at_b1 + 2 * step : at_b1 + 2 * step + w],
        _matrix(flat, at_w2, w, o),
        flat[at_b2 : at_b2 + o],
    )


@kernel(fastmath=REDUCTION)
def norm_relu(z: F32, b: F32, g: F32, h: F32, r: F32, x: F32) -> None:
    """Bias, layer norm (Ba 2016) and relu of one layer.

    z   (n, w) in: x w; out: normalised rows
    r   (n,)   out: 1 / sqrt(var + eps), biased variance
    x   (n, w) out: max(g n + h, 0); a NaN stays a NaN

    Mean and variance in one pass, of differences to the row's first unit: they stay small beside
    the spread, so that E[d**2] - E[d]**2 keeps its digits. 13 us against 17 us with two passes.
    """
    n, w = z.shape
    share = ONE / np.float32(w)
    for i in range(n):
        origin = z[i, 0] + b[0]
        total = ZERO
        squares = ZERO
        for j in range(w):
            d = z[i, j] + b[j] - origin
            z[i, j] = d
            total += d
            squares += d * d
        mean = total * share
        variance = squares * share - mean * mean
        scale = ONE / np.sqrt((ZERO if variance < ZERO else variance) + _EPS)
        r[i] = scale
        for j in range(w):
            v = (z[i, j] - mean) * scale
            z[i, j] = v
            u = g[j] * v + h[j]
            x[i, j] = ZERO if u < ZERO else u


@kernel(fastmath=REDUCTION)
def _product_few(x: F32, w: F32, out: F32) -> None:
    """out = x w for few rows: two rows and four inputs at a time, to read w once per two rows."""
    n, inputs = x.shape
    outputs = w.shape[1]
    for i in range(n):
        for j in range(outputs):
            out[i, j] = ZERO
    for i in range(0, n, 2):
        last = min(i + 1, n - 1)  # an odd last row stands alone
        pair = last > i
        k = 0
        while k + 3 < inputs:
            a0, a1, a2, a3 = x[i, k], x[i, k + 1], x[i, k + 2], x[i, k + 3]
            c0, c1, c2, c3 = x[last, k], x[last, k + 1], x[last, k + 2], x[last, k + 3]
            if pair:
                for j in range(outputs):
                    w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                    out[i, j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                    out[last, j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
            else:
                for j in range(outputs):
                    out[i, j] += (
                        a0 * w[k, j] + a1 * w[k + 1, j] + a2 * w[k + 2, j] + a3 * w[k + 3, j]
                    )
            k += 4
        while k < inputs:
            for row in range(i, last + 1):
                a0 = x[row, k]
                for j in range(outputs):
                    out[row, j] += a0 * w[k, j]
            k += 1


@kernel()
def product(x: F32, w: F32, out: F32) -> None:
    """out (n, o) = x (n, i) w (i, o). 8 x 128 x 128: 8 us own, 15 us BLAS; equal at 32 rows."""
    if x.shape[0] < _FEW:
        _product_few(x, w, out)
    else:
        np.dot(x, w, out)


@kernel()
def add_bias(z: F32, b: F32) -> None:
    """z (n, o) += b (o,)."""
    n, o = z.shape
    for i in range(n):
        for j in range(o):
            z[i, j] += b[j]


@kernel()
def forward_hidden(net: Net, x: F32, hidden: Hidden) -> None:
    """Both hidden layers at x (n, i); `hidden` keeps what the backward pass needs."""
    product(x, net.w0, hidden.n0)
    norm_relu(hidden.n0, net.b0, net.g0, net.h0, hidden.r0, hidden.x1)
    product(hidden.x1, net.w1, hidden.n1)
    norm_relu(hidden.n1, net.b1, net.g1, net.h1, hidden.r1, hidden.x2)


@kernel()
def forward(net: Net, x: F32, hidden: Hidden, out: F32) -> None:
    """out (n, o) = net(x), x (n, i)."""
    forward_hidden(net, x, hidden)
    product(hidden.x2, net.w2, out)
    add_bias(out, net.b2)


@kernel()
def normalise_obs(obs: F32, mean: F32, scale: F32, x: F32) -> None:
    """x[:, :O] = clip((obs - mean) * scale, -5, 5); obs (n, O), mean scale (O,), x (n, >= O)."""
    n, o = obs.shape
    for i in range(n):
        for j in range(o):
            v = (obs[i, j] - mean[j]) * scale[j]
            v = -_OBS_CLIP if v < -_OBS_CLIP else v
            x[i, j] = _OBS_CLIP if v > _OBS_CLIP else v
