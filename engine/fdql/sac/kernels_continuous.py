"""The whole update for continuous actions: one call, without the GIL. Stage 5 of 8, `update`.

Order of the equations:

    a'  = tanh(mean(s') + std(s') noise)                           actor
    y   = R + discount V, V = pessimistic Qbar(s', a')               target critics, by their head
    critics, priorities, target critics; and at every policy_delay-th update the actor descends
    mean_i[temperature ln pi(a|s) - mean_k Q_k(s, a)], a = tanh(mean(s) + std(s) noise)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.kernels_adamw import adamw, clip_factor, gradient_norm
from fdql.sac.kernels_backward import backward, backward_input
from fdql.sac.kernels_critic import Critics, Rates, critics_gradient, critics_step, hidden_of
from fdql.sac.kernels_dense import Hidden, forward, net_at, normalise_obs
from fdql.sac.kernels_heads import (
    tanh_normal,
    tanh_normal_gradient,
    tanh_normal_ln_density,
    values_gradient,
)
from fdql.sac.kernels_targets import next_outputs, priorities, targets
from fdql.sac.nets import F32

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Actor(NamedTuple):
    """Memory of the actor's learner; P parameters, B rows of a batch, w units, A components.

    params, grad, m, v, keep (P,)           flat vectors; keep is AdamW's decay factor
    n0 x1 n1 x2 d2 d1 (B, w), r0 r1 (B,)    activations and their gradients
    s next_s (B, O)                         normalised observations
    x (B, O + A)                            input of the critics
    out (B, 2 A)                            means and raw log stds; then their gradient
    action da (B, A), one (2, B, A)         an action; dL/daction, and the share of each critic
    ln_density bonus (B,)                   ln pi(a|s); what entropy adds to V(s')
    policy (B, 1), order (B,)               1: the action drawn; 0, 1, 2, ...: rows keep their order
    """

    params: F32
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
    s: F32
    next_s: F32
    x: F32
    out: F32
    action: F32
    da: F32
    one: F32
    ln_density: F32
    bonus: F32
    policy: F32
    order: I64


@kernel()
def _join(s: F32, action: F32, x: F32) -> None:
    """x (B, O + A) = s (B, O) beside action (B, A)."""
    obs_dim = s.shape[1]
    for i in range(s.shape[0]):
        for j in range(obs_dim):
            x[i, j] = s[i, j]
        for j in range(action.shape[1]):
            x[i, obs_dim + j] = action[i, j]


@kernel(parallel=True)
def _next_outputs_on_two(c: Critics, x: F32) -> None:
    for k in prange(2):
        next_outputs(c, x, k, c.outputs[k])


@kernel()
def _next_action(c: Critics, a: Actor, weight: float, noise: F32) -> None:
    """What the target critics say of one a' ~ pi(.|s'); bonus = -weight ln pi(a'|s')."""
    w = a.x1.shape[1]
    actor = net_at(a.params, 0, 1, 0, a.s.shape[1], w, a.out.shape[1])
    forward(actor, a.next_s, Hidden(a.n0, a.x1, a.r0, a.n1, a.x2, a.r1), a.out)
    tanh_normal(a.out, noise, a.action)
    if weight > 0.0:
        tanh_normal_ln_density(a.out, noise, a.ln_density)
        for i in range(a.bonus.size):
            a.bonus[i] = -weight * a.ln_density[i]
    _join(a.next_s, a.action, a.x)
    if c.x1.shape[0] == 2:
        _next_outputs_on_two(c, a.x)
    else:
        for k in range(2):
            next_outputs(c, a.x, k, c.outputs[0])


@kernel()
def _action_gradient(c: Critics, x: F32, first: int, k: int, one: F32) -> None:
    """q[k] = Q_k at x (B, O + A), and one (B, A) = d(-Q_k / (2 B)) / da, a from column first on."""
    t = k % c.x1.shape[0]
    hidden, outputs = hidden_of(c, t), c.outputs[t]
    net = net_at(c.params, 0, 2, k, x.shape[1], c.x1.shape[2], c.support.size)
    forward(net, x, hidden, outputs)
    values_gradient(c.head, outputs, c.support, -0.5 / x.shape[0], c.q[k])
    backward_input(net, hidden, outputs, c.d2[t], c.d1[t], first, one)


@kernel(parallel=True)
def _action_gradients_on_two(c: Critics, x: F32, first: int, one: F32) -> None:
    for k in prange(2):
        _action_gradient(c, x, first, k, one[k])


@kernel()
def actor_gradient(
    c: Critics, a: Actor, temperature: float, noise: F32
) -> tuple[float, float, float]:
    """Fill the actor's gradient, the critics fixed; returns loss, entropy and mean std.

    (Haarnoja 2018, arXiv 1812.05905, eq. 9, with the mean of the critics in place of one)
    """
    obs_dim, rows = a.s.shape[1], a.s.shape[0]
    actor = net_at(a.params, 0, 1, 0, obs_dim, a.x1.shape[1], a.out.shape[1])
    grad = net_at(a.grad, 0, 1, 0, obs_dim, a.x1.shape[1], a.out.shape[1])
    hidden = Hidden(a.n0, a.x1, a.r0, a.n1, a.x2, a.r1)
    forward(actor, a.s, hidden, a.out)
    tanh_normal(a.out, noise, a.action)
    ln_density, std = tanh_normal_ln_density(a.out, noise, a.ln_density)
    _join(a.s, a.action, a.x)
    if c.x1.shape[0] == 2:
        _action_gradients_on_two(c, a.x, obs_dim, a.one)
    else:
        for k in range(2):
            _action_gradient(c, a.x, obs_dim, k, a.one[k])
    value = 0.0
    for i in range(rows):
        value += 0.5 * (c.q[0, i] + c.q[1, i])
        for j in range(a.da.shape[1]):
            a.da[i, j] = a.one[0, i, j] + a.one[1, i, j]
    tanh_normal_gradient(a.out, noise, a.action, temperature, a.da)
    backward(actor, grad, a.s, hidden, a.out, a.d2, a.d1)
    return temperature * ln_density - value / rows, -ln_density, std


@kernel()
def update_continuous(
    c: Critics, a: Actor, rates: Rates, temperature: float, step: int, actor_step: int,
    next_noise: F32, noise: F32, obs: F32, action: F32, reward: F32, discount: F32, next_obs: F32,
    obs_mean: F32, obs_scale: F32, reward_scale: F32, priority_out: F64,
) -> tuple[float, float, float, float, float, float, float, float, float]:  # fmt: skip
    """One update in place; the batch as in learner.Learner.update.

    step         updates of the critics with this one; actor_step those of the actor, or 0: not now
    next_noise   (B, A) standard normal for a'; noise (B, A) for a, unused when actor_step is 0
    Returns share of targets clipped, critic loss, gradient norm, mean Q, mean |y - Q|; then actor
    loss, entropy, mean std, gradient norm. A network whose norm is not finite is as before, and
    after the critics' the actor's turn is left out.
    """
    normalise_obs(obs, obs_mean, obs_scale, a.s)
    normalise_obs(next_obs, obs_mean, obs_scale, a.next_s)
    _next_action(c, a, rates.entropy_backup * temperature, next_noise)
    clipped = targets(c, a.policy, a.bonus, a.order, reward, discount, reward_scale[0], rates)
    _join(a.s, action, a.x)
    loss = critics_gradient(c, a.x)
    norm = critics_step(c, rates, step)
    value, error = priorities(c, a.order, rates, priority_out)

    actor_loss, entropy, std, actor_norm = np.nan, np.nan, np.nan, 0.0
    if actor_step > 0 and np.isfinite(norm):
        actor_loss, entropy, std = actor_gradient(c, a, temperature, noise)
        actor_norm = gradient_norm(a.grad)
        if np.isfinite(actor_norm):
            factor = clip_factor(actor_norm, rates.gradient_clip)
            adamw(a.params, a.grad, a.m, a.v, a.keep, factor, rates.learning_rate, actor_step)
    return clipped, loss, norm, value, error, actor_loss, entropy, std, actor_norm
