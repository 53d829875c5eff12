"""The image encoder in torch: its forward pass for learning and for acting, its precision, its
memory. Acting imports it only where there are images: torch takes seconds. Stages 5, `update`, and
7, `infer`.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fdql.sac import kernels_images
from fdql.sac.nets import CONVOLUTIONS, F32, FEATURES, LAYER_NORM_EPS, NetSpec

Params = dict[str, Tensor]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def image_dtype(setting: str, device: str) -> torch.dtype:
    """sac.image_dtype as torch has it; auto: bfloat16 on a GPU and where the CPU multiplies it.

    With such instructions an update takes 0.64 of float32's time.
    """
    if setting == "auto":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
        except OSError:
            flags = []  # not Linux: float32 is right everywhere
        has = not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
        setting = "bfloat16" if has or device != "cpu" else "float32"
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, in this process: glibc would return the images' tensors to the
    kernel at every update, and to get zeroed pages back takes a fifth of the update's time.
    """
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def less_mean(
    images: NDArray[Any], image: tuple[int, int, int], mean: F32,
    dtype: torch.dtype = torch.float32, shift: NDArray[np.int32] | None = None,
) -> Tensor:  # fmt: skip
    """x - mean of images (B, O), mean (O,), O = channels * height * width, as (B, channels, height,
    width), each moved by its rows and columns of shift (B, 2).

    Exact in float32 and bfloat16, the two that `dtype` may be, for means that are whole numbers;
    `encode` leaves the division by 255 to its weights.
    """
    short = dtype == torch.bfloat16
    pixels = torch.from_numpy(kernels_images.less_mean(images, image, mean, short, shift))
    return (pixels.view(torch.bfloat16) if short else pixels).permute(0, 3, 1, 2)


def encode(p: Params, x: Tensor) -> Tensor:
    """Features (B, 256) >= 0, float32, of images `less_mean`. (Mnih 2015, thinner)

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


class Encoder:
    """Features of images; reads the parameters where they are, so that a new policy is seen.

    spec     has an image
    network  name -> float32 view of the snapshot, obs_mean and nets.encoder_shapes among them
    """

    def __init__(self, spec: NetSpec, network: dict[str, F32]) -> None:
        assert spec.image is not None
        self._image, self._mean = spec.image, network["obs_mean"]
        self._network = {k: torch.from_numpy(v) for k, v in network.items() if k[:7] == "encoder"}

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> F32:
        """(n, O) uint8, O = channels * height * width -> (n, 256) float32."""
        pixels = less_mean(images, self._image, self._mean)
        features: F32 = encode(self._network, pixels).numpy()
        return features
