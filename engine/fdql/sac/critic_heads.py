"""What a critic's outputs say of the return, in torch: one class for each sac.head.

Both have one interface, CriticHead; their equations are in heads.py. Of the reference learner only:
the compiled one has the same two in kernels_gauss.py and kernels_quantiles.py. Stage 5, `update`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fdql.config import SacConfig
from fdql.sac import heads
from fdql.sac.nets import NetSpec, output_support


class Target(NamedTuple):
    """What the critics move towards.

    value    (B,) the target's mean
    goal     what `CriticHead.loss` takes: bin probabilities (B, K), or quantiles (B, M)
    clipped  share of the targets beyond what the head can say
    """

    value: Tensor
    goal: Tensor
    clipped: float


class CriticHead(Protocol):
    """K outputs of a critic for one action, and what they mean."""

    def value(self, outputs: Tensor) -> Tensor:
        """Q, (...), of outputs (..., K)."""
        ...

    def target(
        self, reward: Tensor, discount: Tensor, policy: Tensor, bonus: Tensor, slow: Tensor
    ) -> Target:
        """reward + discount (V + bonus), V the policy's over the target critics at s'.

        policy (B, A), slow (2, B, A, K) outputs; reward (scaled), discount, bonus (B,)
        """
        ...

    def loss(self, outputs: Tensor, goal: Tensor) -> Tensor:
        """Summed over both critics, mean over the batch; outputs (2, B, K), goal a Target's."""
        ...


class HLGauss:
    """Logits over bins; the target is a normal density around the pessimistic value."""

    def __init__(self, spec: NetSpec, config: SacConfig, device: torch.device) -> None:
        self._centres = heads.bin_centres(spec.bins, spec.v_max).to(device)
        self._edges = heads.bin_edges(spec.bins, spec.v_max).to(device)
        self._v_max = spec.v_max
        self._sigma = config.sigma_bins * heads.bin_width(spec.bins, spec.v_max)
        self._pessimism = config.pessimism_for(spec.discrete)

    def value(self, outputs: Tensor) -> Tensor:
        """See `CriticHead.value`."""
        return heads.expected_value(outputs, self._centres)

    def target(
        self, reward: Tensor, discount: Tensor, policy: Tensor, bonus: Tensor, slow: Tensor
    ) -> Target:
        """See `CriticHead.target`."""
        q = heads.pessimistic(self.value(slow), self._pessimism)
        y = heads.bellman_target(reward, discount, heads.policy_mean(policy, q) + bonus)
        clipped = y.clamp(-self._v_max, self._v_max)
        goal = heads.hl_gauss_target(clipped, self._edges, self._sigma)
        return Target(clipped, goal, (y != clipped).float().mean().item())

    def loss(self, outputs: Tensor, goal: Tensor) -> Tensor:
        """See `CriticHead.loss`."""
        return heads.cross_entropy(outputs, goal)


class TruncatedQuantiles:
    """Quantiles; the target are those of both target critics together, without the highest."""

    def __init__(self, spec: NetSpec, config: SacConfig, device: torch.device) -> None:
        self._levels = torch.from_numpy(output_support(spec)).to(device)
        self._dropped = 2 * config.quantiles_dropped
        self._threshold = config.quantile_huber

    def value(self, outputs: Tensor) -> Tensor:
        """See `CriticHead.value`."""
        return outputs.mean(-1)

    def target(
        self, reward: Tensor, discount: Tensor, policy: Tensor, bonus: Tensor, slow: Tensor
    ) -> Target:
        """See `CriticHead.target`; every quantile of V is moved so, and the mean with them."""
        pooled = heads.truncated_quantiles(slow, self._dropped)
        z = heads.policy_mean(policy[..., None], pooled, dim=1) + bonus[:, None]
        goal = heads.bellman_target(reward[:, None], discount[:, None], z)
        return Target(goal.mean(-1), goal, 0.0)

    def loss(self, outputs: Tensor, goal: Tensor) -> Tensor:
        """See `CriticHead.loss`."""
        return heads.quantile_huber(outputs, self._levels, goal, self._threshold)


def critic_head(spec: NetSpec, config: SacConfig, device: torch.device) -> CriticHead:
    """The head that spec.head names."""
    made = TruncatedQuantiles if spec.head == "tqc" else HLGauss
    return made(spec, config, device)
