"""Forward passes of critics and actor in torch, for the reference learner. Stage 5, `update`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fdql.sac import heads
from fdql.sac.nets import CONVOLUTIONS, FEATURES, LAYER_NORM_EPS

Params = dict[str, Tensor]


def image_dtype(setting: str, device: str) -> torch.dtype:
    """sac.image_dtype as torch has it; auto: bfloat16 on a GPU and where the CPU multiplies it.

    With such instructions an update takes 0.4 of float32's time, without them it takes longer.
    """
    if setting == "auto":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
        except OSError:
            flags = []  # not Linux: float32 is right everywhere
        has = not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
        setting = "bfloat16" if has or device != "cpu" else "float32"
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def centred(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """x - 127.5 of uint8 images (B, height, width, channels), as (B, channels, height, width).

    Exact in bfloat16, which has 8 binary digits; `encode` leaves the division by 255 to its
    weights.
    """
    return images.to(dtype).sub_(127.5).permute(0, 3, 1, 2)


def encode(p: Params, x: Tensor) -> Tensor:
    """Features (B, 256) >= 0, float32, of `centred` images. (Mnih 2015, thinner)

    Products are made in the dtype of x; parameters and sums stay float32.
    """
    dtype = x.dtype
    for i, (_, _, stride) in enumerate(CONVOLUTIONS):
        w = p[f"encoder.w{i}"] / 255.0 if i == 0 else p[f"encoder.w{i}"]
        w = w.to(dtype, memory_format=torch.channels_last)
        x = F.conv2d(x, w, p[f"encoder.b{i}"].to(dtype), stride).relu_()
    flat = x.permute(0, 2, 3, 1).flatten(1)  # as they lie
    h = (flat @ p["encoder.w3"].to(dtype)).to(torch.float32) + p["encoder.b3"]
    g, shift = p["encoder.g3"], p["encoder.h3"]
    return F.layer_norm(h, (FEATURES,), g, shift, LAYER_NORM_EPS).relu()


def critic_logits(p: Params, x: Tensor) -> Tensor:
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
