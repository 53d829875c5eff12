"""AdamW on a flat vector, and the gradient clip before it. Stage 5 of 8, `update`."""

from __future__ import annotations

import torch
from torch import Tensor

from fdql.sac.learner import ADAM_BETA1, ADAM_BETA2, ADAM_EPS, CLIP_EPS


def clip_gradient(gradient: Tensor, clip: float) -> float:
    """Scale a gradient (P,) in place to a norm of at most `clip`; returns the norm before."""
    norm = float(torch.linalg.vector_norm(gradient))
    gradient.mul_(min(1.0, clip / (norm + CLIP_EPS)))
    return norm


def adamw_step(
    params: Tensor, gradient: Tensor, moments: Tensor, keep: Tensor, rate: float, step: int
) -> None:
    """AdamW in place (Loshchilov 2019, algorithm 2), step counted from 1.

    params, gradient (P,); moments (2, P); keep (P,) = 1 - rate * decay where decay applies, else 1.
    """
    first, second = moments
    params.mul_(keep)
    first.lerp_(gradient, 1.0 - ADAM_BETA1)
    second.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1.0 - ADAM_BETA2)
    root = second.sqrt().mul_((1.0 - ADAM_BETA2**step) ** -0.5).add_(ADAM_EPS)
    params.addcdiv_(first, root, value=-rate / (1.0 - ADAM_BETA1**step))
