"""Actions for a round of observations: the published network's forward pass, then exploration.

Stage `inference`; one owner. `snapshot` is the flat vector of nets.policy_shapes: obs_mean (O,),
obs_scale (O,), temperature, reward_scale, then the network. Images come as features, and have no
obs_scale. Random numbers come in as arrays, so that the generator, and with it the reproducibility
of a seed, stays with the caller.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_dense import Hidden, forward, net_at, normalise_obs
from fdql.sac.kernels_heads import std_of, values
from fdql.sac.kernels_math import HALF, ONE, TWO, tanh
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Scratch(NamedTuple):
    """Working memory of a forward pass of up to R rows; float32.

    head        what the critics' outputs are, index in nets.HEADS
    scales      components with a mean and a scale in the snapshot: O; 0 for features of images
    network     where the network that acts begins in the snapshot, behind temperature and scale
    x (R, O)   normalised observations        n, h (R, w), r (R,)   hidden layers, in turn
    out (R, o) the network's output           a, b (R, A)           values; or mean, deviation
    """

    head: int
    scales: int
    network: int
    x: F32
    n: F32
    h: F32
    r: F32
    out: F32
    a: F32
    b: F32


@kernel()
def _hidden(s: Scratch, rows: int) -> Hidden:
    """Both layers in the same memory: nothing has to be kept for a backward pass."""
    n, h, r = s.n[:rows], s.h[:rows], s.r[:rows]
    return Hidden(n, h, r, n, h, r)


@kernel()
def _inputs(snapshot: F32, obs: F32, n: int, x: F32) -> None:
    """x = obs normalised by the snapshot's n means and scales; n = 0: as it is."""
    if n:
        normalise_obs(obs, snapshot[:n], snapshot[n : 2 * n], x)
    else:
        x[...] = obs


@kernel()
def mean_q(snapshot: F32, obs: F32, support: F32, s: Scratch) -> F32:
    """Mean of both critics' values of every action: view (n, A) of the scratch. obs (n, O) raw."""
    rows, obs_dim = obs.shape
    width, actions, bins = s.n.shape[1], s.a.shape[1], support.size
    x, out, q, q1 = s.x[:rows], s.out[:rows], s.a[:rows], s.b[:rows]
    _inputs(snapshot, obs, s.scales, x)
    for k in range(2):
        net = net_at(snapshot, s.network, 2, k, obs_dim, width, actions * bins)
        forward(net, x, _hidden(s, rows), out)
        of = (q if k == 0 else q1).reshape(rows * actions)
        values(s.head, out.reshape((rows * actions, bins)), support, of)
    for i in range(rows):
        for j in range(actions):
            q[i, j] = HALF * (q[i, j] + q1[i, j])
    return q


@kernel()
def mean_and_std(snapshot: F32, obs: F32, s: Scratch) -> tuple[F32, F32]:
    """The actor's normal before tanh: mean and deviation, views (n, A) of the scratch.

    obs (n, O), raw.
    """
    rows, obs_dim = obs.shape
    width, components = s.n.shape[1], s.a.shape[1]
    x, out, mean, std = s.x[:rows], s.out[:rows], s.a[:rows], s.b[:rows]
    _inputs(snapshot, obs, s.scales, x)
    net = net_at(snapshot, s.network, 1, 0, obs_dim, width, 2 * components)
    forward(net, x, _hidden(s, rows), out)
    for i in range(rows):
        for j in range(components):
            mean[i, j] = out[i, j]
            std[i, j] = std_of(out[i, components + j])
    return mean, std


@kernel()
def greedy_discrete(snapshot: F32, obs: F32, support: F32, s: Scratch, out: I32) -> None:
    """out (n,) = argmax_a mean_i Q_i."""
    q = mean_q(snapshot, obs, support, s)
    for i in range(q.shape[0]):
        out[i] = np.argmax(q[i])


@kernel()
def greedy_continuous(snapshot: F32, obs: F32, s: Scratch, out: F32) -> None:
    """out (n, A) = tanh(mean)."""
    mean, _ = mean_and_std(snapshot, obs, s)
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            out[i, j] = tanh(mean[i, j])


@kernel()
def hold_steps(cumulative: F64, u: float) -> int:
    """Steps a fresh noise lasts, 1..len(cumulative): the inverse of that distribution at u."""
    k = 0
    while k < cumulative.size - 1 and cumulative[k] < u:
        k += 1
    return k + 1


@kernel()
def act_boltzmann(
    snapshot: F32, obs: F32, support: F32, s: Scratch, lanes: I64, explorer: BoolArray,
    uniform: F64, epsilon: float, cumulative: F64, left: I64, held: I64, out: I32,
) -> None:  # fmt: skip
    """Sample softmax(Q / temperature) by its Gumbel maximum; explorers also hold uniform actions.

    lanes (n,)            lane of each row; explorer (lanes,) those that explore
    left, held (lanes,)   steps left of a hold, action held
    uniform (n, A + 3)    in [0, 1): one per action, then: start a hold?, for how long, which action
    epsilon               chance that a free explorer starts a hold (Dabney 2021)
    """
    q = mean_q(snapshot, obs, support, s)
    rows, actions = q.shape
    temperature = snapshot[s.network - 2]
    for i in range(rows):
        lane = lanes[i]
        best = -np.inf
        for j in range(actions):
            score = q[i, j] / temperature - np.log(-np.log(uniform[i, j] + 1e-300))
            if score > best:
                best = score
                out[i] = j
        if explorer[lane]:
            if left[lane] > 0:
                left[lane] -= 1
                out[i] = held[lane]
            elif uniform[i, actions] < epsilon:
                left[lane] = hold_steps(cumulative, uniform[i, actions + 1]) - 1
                held[lane] = int(uniform[i, actions + 2] * actions)
                out[i] = held[lane]


@kernel()
def act_tanh_normal(
    snapshot: F32, obs: F32, s: Scratch, lanes: I64, explorer: BoolArray,
    normal: F32, uniform: F64, factor: np.float32, least: np.float32,
    policy_cumulative: F64, cumulative: F64, left: I64, held: F32, out: F32,
) -> None:  # fmt: skip
    """out = tanh(mean + std noise), the noise held; the std of explorers is max(factor std, least).

    lanes (n,)        lane of each row; explorer (lanes,) those that explore
    left (lanes,)     steps left of a hold; held (lanes, A) the noise held
    normal (n, A)     fresh noise; uniform (n,) in [0, 1) for the length of a new hold
    """
    mean, std = mean_and_std(snapshot, obs, s)
    rows, components = mean.shape
    for i in range(rows):
        lane = lanes[i]
        if left[lane] == 0:
            lasts = cumulative if explorer[lane] else policy_cumulative
            left[lane] = hold_steps(lasts, uniform[i])
            for j in range(components):
                held[lane, j] = normal[i, j]
        left[lane] -= 1
        for j in range(components):
            deviation = std[i, j]
            if explorer[lane]:
                deviation = max(factor * deviation, least)
            out[i, j] = tanh(mean[i, j] + deviation * held[lane, j])


@kernel()
def hold_uniform_discrete(
    lanes: I64, actions: int, uniform: F64, cumulative: F64, left: I64, held: I64, out: I32
) -> None:
    """Warm-up: every lane repeats a uniform action. uniform (n, 2): which action, for how long."""
    for i in range(lanes.size):
        lane = lanes[i]
        if left[lane] == 0:
            left[lane] = hold_steps(cumulative, uniform[i, 1])
            held[lane] = int(uniform[i, 0] * actions)
        left[lane] -= 1
        out[i] = held[lane]


@kernel()
def hold_uniform(
    lanes: I64, uniform: F32, hold: F64, cumulative: F64, left: I64, held: F32, out: F32
) -> None:
    """Warm-up: every lane repeats an action uniform in [-1, 1]; uniform (n, A), hold (n,)."""
    for i in range(lanes.size):
        lane = lanes[i]
        if left[lane] == 0:
            left[lane] = hold_steps(cumulative, hold[i])
            for j in range(held.shape[1]):
                held[lane, j] = TWO * uniform[i, j] - ONE
        left[lane] -= 1
        for j in range(held.shape[1]):
            out[i, j] = held[lane, j]
