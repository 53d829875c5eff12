"""Forward passes of critics and actor in torch, for the reference learner. Stage 5, `update`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fdql.sac import heads
from fdql.sac.nets import LAYER_NORM_EPS

Params = dict[str, Tensor]


def critic_outputs(p: Params, x: Tensor) -> Tensor:
    """Both critics on one input x (B, critic_in): (2, B, critic_out), one product per layer."""
    x = x.expand(2, *x.shape)
    for layer in ("0", "1"):
        h = torch.baddbmm(p["critic.b" + layer][:, None], x, p["critic.w" + layer])
        h = F.layer_norm(h, h.shape[-1:], eps=LAYER_NORM_EPS)
        x = torch.addcmul(p["critic.h" + layer][:, None], h, p["critic.g" + layer][:, None]).relu()
    return torch.baddbmm(p["critic.b2"][:, None], x, p["critic.w2"])


def actor_moments(p: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ln std before tanh, each (B, A), at observations x (B, O)."""
    for layer in ("0", "1"):
        h = torch.addmm(p["actor.b" + layer], x, p["actor.w" + layer])
        g, shift = p["actor.g" + layer], p["actor.h" + layer]
        x = F.layer_norm(h, h.shape[-1:], g, shift, eps=LAYER_NORM_EPS).relu()
    mean, raw = torch.addmm(p["actor.b2"], x, p["actor.w2"]).chunk(2, -1)
    return mean, heads.ln_std_of(raw)
