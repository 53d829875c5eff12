"""What tells a healthy learner from a sick one: values of given actions, units that are dead.

Numpy: called a few times a second at most, by trainer and evaluator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fdql.sac.nets import F32, LAYER_NORM_EPS, NetSpec, output_support

Network = dict[str, F32]
ROWS = 64  # of a batch that units must excite, or count as dead


def critic_pass(network: Network, x: F32) -> tuple[list[F32], F32]:
    """Both critics at inputs x (n, critic_in): hidden layers after relu, two of (2, n, w), and
    outputs (2, n, critic_out).
    """
    hidden: list[F32] = []
    x = np.broadcast_to(x, (2, *x.shape))
    for layer in ("0", "1"):
        z = x @ network["critic.w" + layer] + network["critic.b" + layer][:, None]
        z -= z.mean(-1, keepdims=True)
        z /= np.sqrt(z.var(-1, keepdims=True) + np.float32(LAYER_NORM_EPS))
        g, h = network["critic.g" + layer][:, None], network["critic.h" + layer][:, None]
        x = np.maximum(g * z + h, np.float32(0.0))
        hidden.append(x)
    return hidden, x @ network["critic.w2"] + network["critic.b2"][:, None]


def critic_inputs(spec: NetSpec, features: F32, action: NDArray[np.generic]) -> F32:
    """features (n, F), beside the actions (n, A) when they are continuous."""
    if spec.discrete:
        return features
    return np.concatenate([features, action.astype(np.float32)], 1)


def action_values(
    spec: NetSpec, network: Network, features: F32, action: NDArray[np.generic]
) -> F32:
    """Mean of both critics, scaled rewards, at features (n, F) and actions (n,) or (n, A): (n,)."""
    _, outputs = critic_pass(network, critic_inputs(spec, features, action))
    outputs = outputs.reshape(2, len(features), -1, spec.bins)
    at = action.astype(np.int64) if spec.discrete else np.zeros(len(features), dtype=np.int64)
    chosen = outputs[:, np.arange(len(features)), at]
    if spec.head == "tqc":
        return np.asarray(chosen.mean((0, -1)))
    p = np.exp(chosen - chosen.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    values: F32 = (p @ output_support(spec)).mean(0)
    return values


def dead_share(
    spec: NetSpec, network: Network, features: F32, action: NDArray[np.generic]
) -> float:
    """Share of the critics' hidden units that are 0 on every one of n rows (Sokar 2023, with the
    threshold 0).
    """
    hidden, _ = critic_pass(network, critic_inputs(spec, features, action))
    return float(np.mean([(layer <= 0).all(1) for layer in hidden]))


def some_rows(batch_size: int) -> slice:
    """At least ROWS of a batch, evenly: it is sorted by lane, and every lane should be seen."""
    return slice(None, None, max(1, batch_size // ROWS))


def data_health(
    version: NDArray[np.uint32], priority: NDArray[np.float64], updates: int
) -> dict[str, float]:
    """How old and how uneven a batch was. (B,) versions of the policies that acted, 0 those of the
    warm-up, which are left out; (B,) new priorities; updates made so far.
    """
    spread = {"priority_spread": float(priority.max() / priority.mean())}
    chosen = version[version > 0].astype(np.int64)
    return spread | ({"data_age": float((updates - chosen).mean())} if chosen.size else {})
