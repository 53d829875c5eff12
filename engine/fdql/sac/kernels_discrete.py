"""The whole update for discrete actions: one call, without the GIL. Stage 5 of 8, `update`.

The policy is softmax(mean_k Q_k / temperature), so there is no actor. Order of the equations:

    pi(a|s')   = softmax(mean_k Q_k(s', a) / temperature)          online critics
    V(s')      = sum_a pi(a|s') pessimistic Qbar(s', a)            target critics
    y          = clip(R + discount V(s'), -v_max, v_max)           then critics, priorities, targets
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_critic import (
    Critics,
    Rates,
    critics_gradient,
    critics_step,
    hidden_of,
    priorities,
    targets,
)
from fdql.sac.kernels_dense import forward, net_at, normalise_obs
from fdql.sac.kernels_heads import boltzmann_value, mean_value, pessimistic, temperature_root
from fdql.sac.kernels_math import HALF
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


class Discrete(NamedTuple):
    """Memory of an update, beside that of the critics.

    order (B,)               row i of everything below is row order[i] of the batch, by action
    x next_x (B, O)          normalised observations
    out (T, B, A K)          one critic's logits of every action, of each thread
    online slow (2, B, A)    values of the online and of the target critics at s'
    q low (B, A)             mean of the online critics; pessimistic value of the targets
    v (B,)                   V(s')
    """

    order: I64
    x: F32
    next_x: F32
    out: F32
    online: F32
    slow: F32
    q: F32
    low: F32
    v: F32


@kernel()
def sort_by_action(action: I32, order: I64, starts: I64) -> None:
    """Counting sort, stable: rows order[starts[a] : starts[a + 1]] have action a."""
    for a in range(starts.size):
        starts[a] = 0
    for a in action:
        starts[a + 1] += 1
    for a in range(1, starts.size):
        starts[a] += starts[a - 1]
    for i in range(
        action.size
    ):  # starts[a] serves as the next free place, and ends as starts[a + 1]
        a = action[i]
        order[starts[a]] = i
        starts[a] += 1
    for a in range(starts.size - 1, 0, -1):
        starts[a] = starts[a - 1]
    starts[0] = 0


@kernel()
def _take_rows(source: F32, order: I64, out: F32) -> None:
    for i in range(order.size):
        for j in range(source.shape[1]):
            out[i, j] = source[order[i], j]


@kernel()
def _action_values(c: Critics, d: Discrete, k: int) -> None:
    """Q_k(s', .) of online and target critic k: online[k] and slow[k] (B, A)."""
    rows, actions = d.q.shape
    bins = c.support.size
    t = k % c.x1.shape[0]
    logits, hidden = d.out[t], hidden_of(c, t)
    lines = logits.reshape((rows * actions, bins))
    net = net_at(c.params, 0, 2, k, d.next_x.shape[1], c.x1.shape[2], actions * bins)
    forward(net, d.next_x, hidden, logits)
    mean_value(lines, c.support, d.online[k].reshape(rows * actions))
    net = net_at(c.target, 0, 2, k, d.next_x.shape[1], c.x1.shape[2], actions * bins)
    forward(net, d.next_x, hidden, logits)
    mean_value(lines, c.support, d.slow[k].reshape(rows * actions))


@kernel(parallel=True)
def _action_values_on_two(c: Critics, d: Discrete) -> None:
    for k in prange(2):
        _action_values(c, d, k)


@kernel()
def update_discrete(
    c: Critics, d: Discrete, rates: Rates, temperature: float, goal: float, solve: bool, step: int,
    obs: F32, action: I32, reward: F32, discount: F32, next_obs: F32,
    obs_mean: F32, obs_scale: F32, reward_scale: F32, priority_out: F64,
) -> tuple[float, float, float, float, float, float, float]:  # fmt: skip
    """One update in place; the batch as in learner.Learner.update, step counted from 1.

    Returns entropy at s', ln of the temperature that would make it `goal` (NaN unless `solve`),
    share of targets clipped, critic loss, gradient norm, mean Q, mean |y - Q|. When the norm is
    not finite the parameters are as before.
    """
    sort_by_action(action, d.order, c.starts)
    _take_rows(obs, d.order, d.x)
    normalise_obs(d.x, obs_mean, obs_scale, d.x)
    _take_rows(next_obs, d.order, d.next_x)
    normalise_obs(d.next_x, obs_mean, obs_scale, d.next_x)

    if c.x1.shape[0] == 2:
        _action_values_on_two(c, d)
    else:
        for k in range(2):
            _action_values(c, d, k)
    pessimism = np.float32(rates.pessimism)
    for i in range(d.q.shape[0]):
        for a in range(d.q.shape[1]):
            d.q[i, a] = HALF * (d.online[0, i, a] + d.online[1, i, a])
            d.low[i, a] = pessimistic(d.slow[0, i, a], d.slow[1, i, a], pessimism)

    entropy = boltzmann_value(d.q, d.low, temperature, d.v)
    clipped = targets(c, d.order, reward, discount, d.v, reward_scale[0], rates)
    root = np.nan
    if solve:
        root = temperature_root(d.q, goal, rates.ln_min_temperature, d.v)

    loss = critics_gradient(c, d.x)
    norm = critics_step(c, rates, step)
    value, error = priorities(c, d.order, rates, priority_out)
    return entropy, root, clipped, loss, norm, value, error
