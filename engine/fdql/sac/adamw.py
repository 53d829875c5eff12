"""AdamW on a flat vector, the gradient clip before it, Adam on a number. Stage 5 of 8, `update`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdql.sac.learner import ADAM_BETA1, ADAM_BETA2, ADAM_EPS, CLIP_EPS, F64


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


def adam_scalar_step(moments: F64, gradient: float, rate: float, step: int) -> float:
    """Adam (Kingma 2015, algorithm 1) on one number: its change, `step` counted from 1.

    moments (2,) float64, updated in place.
    """
    moments[0] += (1.0 - ADAM_BETA1) * (gradient - moments[0])
    moments[1] += (1.0 - ADAM_BETA2) * (gradient * gradient - moments[1])
    root = math.sqrt(moments[1] / (1.0 - ADAM_BETA2**step)) + ADAM_EPS
    return -rate / (1.0 - ADAM_BETA1**step) * float(moments[0]) / root
