"""The update's formulas, one closed function each, named after its equation, on torch tensors.

Shapes are written with B = batch, A = actions or action components, K = outputs of a critic for one
action (bins, quantiles); leading dimensions marked ... are free. Every function works in the dtype
of its input. Stage 5 of 8, `update`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fdql.sac.learner import LN_TEMPERATURE_MAX, SOLVE_BISECTIONS
from fdql.sac.nets import LOG_STD_HALF, LOG_STD_MIN, OBS_CLIP

LN_2 = math.log(2.0)
HALF_LN_2PI = 0.5 * math.log(2.0 * math.pi)


def normalised_obs(obs: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """clip((obs - mean) * scale, -5, 5); obs (B, O), mean and scale (O,)."""
    return ((obs - mean) * scale).clamp(-OBS_CLIP, OBS_CLIP)


# -- critic, HL-Gauss: a categorical distribution over evenly spaced returns -----------------------


def bin_width(bins: int, v_max: float) -> float:
    """Distance between neighbouring centres, scaled reward units."""
    return 2.0 * v_max / (bins - 1)


def bin_centres(bins: int, v_max: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """(K,) centres, evenly on [-v_max, v_max]."""
    return torch.linspace(-v_max, v_max, bins, dtype=dtype)


def bin_edges(bins: int, v_max: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """(K + 1,) edges, half a bin to either side of the centres."""
    half = bin_width(bins, v_max) / 2
    return torch.linspace(-v_max - half, v_max + half, bins + 1, dtype=dtype)


def hl_gauss_target(value: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Normal(value, sigma) cut to the bins: p_j = (Phi(e_j+1) - Phi(e_j)) / (Phi(e_K) - Phi(e_0)).

    value (...), within the centres; edges (K + 1,); sigma in the units of value. Returns (..., K),
    rows sum to 1. (HL-Gauss: Imani 2018; Farebrother 2024, arXiv 2403.03950, eq. 3.1)
    """
    cdf = torch.erf((edges - value[..., None]) / (math.sqrt(2.0) * sigma))  # 2 Phi - 1
    return (cdf[..., 1:] - cdf[..., :-1]) / (cdf[..., -1:] - cdf[..., :1])


def expected_value(logits: Tensor, centres: Tensor) -> Tensor:
    """Q = sum_j b_j softmax(logits)_j (Bellemare 2017); logits (..., K), centres (K,) -> (...)."""
    return torch.softmax(logits, -1) @ centres


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_i mean_batch sum_j p_j ln softmax(l_i)_j: sum over critics i, mean over the batch.

    logits (2, B, K), target (B, K). Returns a scalar. (Farebrother 2024, eq. 2.3)
    """
    return -(target * torch.log_softmax(logits, -1)).sum(-1).mean(1).sum()


# -- critic, TQC: quantiles of the return ----------------------------------------------------------


def truncated_quantiles(quantiles: Tensor, dropped: int) -> Tensor:
    """Both critics' quantiles together in ascending order, without the `dropped` highest.

    quantiles (2, ..., K), returns (..., 2 K - dropped). (Kuznetsov 2020, arXiv 2005.04269, eq. 9)
    """
    pooled, _ = torch.cat([quantiles[0], quantiles[1]], -1).sort(-1)
    return pooled[..., : pooled.shape[-1] - dropped]


def quantile_huber(quantiles: Tensor, levels: Tensor, target: Tensor, threshold: float) -> Tensor:
    """sum_i mean_batch sum_j mean_m |tau_j - [u < 0]| H(u) / threshold, u = z_m - x_ij: sum over
    critics i, mean over the batch, sum over their quantiles j, mean over the target's m.

    H is Huber's loss. quantiles (2, B, K) x, levels (K,) tau, target (B, M) z. Returns a scalar.
    (Dabney 2018, arXiv 1710.10044, eq. 10; Kuznetsov 2020, eq. 10, takes the mean over j)
    """
    u = target[:, None, :] - quantiles[..., None]
    weight = (levels[:, None] - (u < 0).to(u.dtype)).abs()
    huber = F.huber_loss(u, torch.zeros_like(u), reduction="none", delta=threshold)
    return (weight * huber / threshold).mean(-1).sum(-1).mean(1).sum()


# -- targets ---------------------------------------------------------------------------------------


def bellman_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = R + gamma^m (1 - terminated) V(s_{t+m}), all (B,) or (B, M).

    By default no entropy is in V: Q stays an ordinary discounted return. (Yu 2022, 2201.12434)
    """
    return reward + discount * next_value


def pessimistic(q: Tensor, pessimism: float) -> Tensor:
    """mean_i Q_i - pessimism |Q_0 - Q_1| / 2: the critics' minimum at 1, their mean at 0.

    q (2, ...), returns (...). (Fujimoto 2018, arXiv 1802.09477, takes the minimum)
    """
    return q.mean(0) - 0.5 * pessimism * (q[0] - q[1]).abs()


# -- discrete actions: the policy is a function of the critics -------------------------------------


def boltzmann_policy(q: Tensor, temperature: float) -> Tensor:
    """ln pi(a|s) = ln softmax(Q(s, .) / temperature)_a: what maximises E[Q] + temperature H.

    q (B, A), returns (B, A). (Haarnoja 2018, arXiv 1812.05905, eq. 4)
    """
    return torch.log_softmax(q / temperature, -1)


def policy_mean(policy: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """V(s) = sum_a pi(a|s) Q(s, a), without entropy; both (B, A), returns (B,).

    (Christodoulou 2019, arXiv 1910.07207, eq. 10, less its entropy: Asad 2025, arXiv 2509.09838)
    """
    return (policy * q).sum(dim)


def policy_entropy(ln_policy: Tensor) -> Tensor:
    """-sum_a pi ln pi of each row, nats; ln_policy (B, A), returns (B,)."""
    return -(ln_policy.exp() * ln_policy).sum(-1)


def temperature_root(q: Tensor, entropy: float, min_temperature: float) -> float:
    """ln temperature at which softmax(q / temperature) has this mean entropy; q (B, A).

    The mean entropy grows with the temperature, so 12 bisections of [ln min_temperature, 0] find
    the root to 1 part in 4096 of the interval, or the nearer end when the root lies outside.
    """
    low, high = math.log(min_temperature), LN_TEMPERATURE_MAX
    for _ in range(SOLVE_BISECTIONS):
        middle = 0.5 * (low + high)
        mean = policy_entropy(boltzmann_policy(q, math.exp(middle))).mean()
        if mean.item() > entropy:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


# -- continuous actions: a normal variable squashed by tanh ----------------------------------------


def ln_std_of(raw: Tensor) -> Tensor:
    """ln std = -10 + 6 (1 + tanh(raw)), so in -10..2 and smooth; any shape. (FlashSAC, layer.py)"""
    return LOG_STD_MIN + LOG_STD_HALF * (1.0 + torch.tanh(raw))


def squashed_normal_ln_density(pre_tanh: Tensor, noise: Tensor, ln_std: Tensor) -> Tensor:
    """ln pi(a|s) of a = tanh(u), u = mean + std * noise: normal density less sum ln(1 - tanh(u)^2).

    ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2u)), exact where tanh(u) rounds to 1. All (B, A),
    returns (B,). (Haarnoja 2018, arXiv 1812.05905, appendix C)
    """
    normal = -0.5 * noise * noise - ln_std - HALF_LN_2PI
    squash = 2.0 * (LN_2 - pre_tanh - F.softplus(-2.0 * pre_tanh))
    return (normal - squash).sum(-1)


def actor_loss(ln_density: Tensor, q: Tensor, temperature: float) -> Tensor:
    """mean[temperature ln pi(a|s) - mean_i Q_i(s, a)]; ln_density (B,), q (2, B), returns a scalar.

    (Haarnoja 2018, arXiv 1812.05905, eq. 9, with the mean of the critics in place of one)
    """
    return (temperature * ln_density - q.mean(0)).mean()


# -- replay priorities -----------------------------------------------------------------------------


def lap_priority(error: Tensor, width: float, exponent: float) -> Tensor:
    """max(|error| / width, 1) ** exponent; error (B,), returns (B,) >= 1.

    An error below one bin counts as one bin, where the loss is flat enough for uniform sampling.
    (LAP: Fujimoto 2020, arXiv 2007.06049, eq. 6, its threshold 1 measured in bins)
    """
    return (error.abs() / width).clamp(min=1.0) ** exponent
