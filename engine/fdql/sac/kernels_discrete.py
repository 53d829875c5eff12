"""The whole update for discrete actions: one call, without the GIL. Stage 5 of 8, `update`.

The policy is softmax(mean_k Q_k / temperature), so there is no actor. Order of the equations:

    pi(a|s')   = softmax(mean_k Q_k(s', a) / temperature)          online critics
    V(s')      = sum_a pi(a|s') pessimistic Qbar(s', a)            target critics
    y          = R + discount V(s')                                by the head; then critics,
                                                                   priorities, target critics
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_critic import Critics, Rates, critics_gradient, critics_step, hidden_of
from fdql.sac.kernels_dense import forward, net_at, normalise_obs
from fdql.sac.kernels_heads import boltzmann_policy, temperature_root, values
from fdql.sac.kernels_math import HALF
from fdql.sac.kernels_targets import next_outputs, priorities, targets
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


class Discrete(NamedTuple):
    """Memory of an update, beside that of the critics.

    order (B,)               row i of everything below is row order[i] of the batch, by action
    x next_x (B, O)          normalised observations
    out (T, B, A K)          one critic's outputs for every action, of each thread
    online (2, B, A)         values of the online critics at s'
    q policy (B, A)          their mean; pi(a|s')
    bonus (B,)               entropy at s'; then what it adds to V(s')
    """

    order: I64
    x: F32
    next_x: F32
    out: F32
    online: F32
    q: F32
    policy: F32
    bonus: F32


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
    """Q_k(s', .) of online critic k: online[k] (B, A); and what target critic k says of s'."""
    rows, actions = d.q.shape
    bins = c.support.size
    t = k % c.x1.shape[0]
    out = d.out[t]
    net = net_at(c.params, 0, 2, k, d.next_x.shape[1], c.x1.shape[2], actions * bins)
    forward(net, d.next_x, hidden_of(c, t), out)
    lines = out.reshape((rows * actions, bins))
    values(c.head, lines, c.support, d.online[k].reshape(rows * actions))
    next_outputs(c, d.next_x, k, out)


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
    for i in range(d.q.shape[0]):
        for a in range(d.q.shape[1]):
            d.q[i, a] = HALF * (d.online[0, i, a] + d.online[1, i, a])
    root = np.nan
    if solve:
        root = temperature_root(d.q, goal, rates.ln_min_temperature, d.policy, d.bonus)
    entropy = boltzmann_policy(d.q, temperature, d.policy, d.bonus)
    for i in range(d.bonus.size):
        d.bonus[i] *= rates.entropy_backup * temperature
    clipped = targets(c, d.policy, d.bonus, d.order, reward, discount, reward_scale[0], rates)

    loss = critics_gradient(c, d.x)
    norm = critics_step(c, rates, step)
    value, error = priorities(c, d.order, rates, priority_out)
    return entropy, root, clipped, loss, norm, value, error
