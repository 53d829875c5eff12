"""Images from planes, as frames are stored, to the numbers that convolutions read, in one pass.

A pixel x becomes x - m, m its mean so far: what never moves is 0, whatever its brightness, and what
moves is all that the network has to look at. m is a whole number, so that float32 and bfloat16 say
the difference exactly. The channels of a pixel lie side by side. Stages 5, `update`, and 7,
`infer`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.sac.jit import kernel
from fdql.sac.nets import F32

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]


@kernel()
def _bits(x: int, mean: float) -> np.uint32:
    """x - mean in bfloat16: the upper half of a float32."""
    return np.float32(np.float32(x) - mean).view(np.uint32) >> np.uint32(16)


@kernel()
def _overlap(pixels: int, ahead: int) -> tuple[slice, slice]:
    """Places p of a flat image with p + ahead in it too, and those p + ahead."""
    first, stop = max(0, -ahead), min(pixels, pixels - ahead)
    return slice(first, stop), slice(first + ahead, stop + ahead)


@kernel()
def _repeat_edges(out: NDArray[Any], down: int, right: int) -> None:
    """Fill what has no source in out (height, width, channels) with the nearest that has."""
    height, width, channels = out.shape
    first, stop = max(0, -right), min(width, width - right)
    top, bottom = max(0, -down), min(height, height - down)
    for y in range(top, bottom):
        for x in range(first):
            for c in range(channels):
                out[y, x, c] = out[y, first, c]
        for x in range(stop, width):
            for c in range(channels):
                out[y, x, c] = out[y, stop - 1, c]
    for y in range(top):
        out[y] = out[top]
    for y in range(bottom, height):
        out[y] = out[bottom - 1]


@kernel()
def _bfloat16_of_four(planes: U8, mean: F32, shift: I32, words: NDArray[np.uint64]) -> None:
    n, height, width, _ = words.shape
    for i in range(n):
        down, right = shift[i]
        here, there = _overlap(height * width, down * width + right)
        a, b = planes[i, 0, there], planes[i, 1, there]
        c, d = planes[i, 2, there], planes[i, 3, there]
        k, m, o, q = mean[0, there], mean[1, there], mean[2, there], mean[3, there]
        out = words[i].reshape(-1)[here]
        for p in range(len(out)):
            low = np.uint64(_bits(a[p], k[p])) | np.uint64(_bits(b[p], m[p])) << np.uint64(16)
            high = np.uint64(_bits(c[p], o[p])) | np.uint64(_bits(d[p], q[p])) << np.uint64(16)
            out[p] = low | high << np.uint64(32)
        _repeat_edges(words[i], down, right)


@kernel()
def _bfloat16(planes: U8, mean: F32, shift: I32, out: NDArray[np.int16]) -> None:
    n, height, width, channels = out.shape
    for i in range(n):
        down, right = shift[i]
        here, there = _overlap(height * width, down * width + right)
        for c in range(channels):
            a, k, to = planes[i, c, there], mean[c, there], out[i].reshape(-1, channels)[here, c]
            for p in range(len(to)):
                to[p] = _bits(a[p], k[p])
        _repeat_edges(out[i], down, right)


@kernel()
def _float32(planes: U8, mean: F32, shift: I32, out: F32) -> None:
    n, height, width, channels = out.shape
    for i in range(n):
        down, right = shift[i]
        here, there = _overlap(height * width, down * width + right)
        for c in range(channels):
            a, k, to = planes[i, c, there], mean[c, there], out[i].reshape(-1, channels)[here, c]
            for p in range(len(to)):
                to[p] = np.float32(a[p]) - k[p]
        _repeat_edges(out[i], down, right)


def less_mean(
    images: NDArray[Any], image: tuple[int, int, int], mean: F32, bfloat16: bool,
    shift: I32 | None = None,
) -> NDArray[Any]:  # fmt: skip
    """(n, channels * height * width) uint8 -> (n, height, width, channels), x - mean.

    mean   (channels * height * width,) float32, whole numbers
    shift  (n, 2) int32, rows and columns, smaller than the image: the value at y, x is the one at
           y + rows, x + columns, where that is outside the nearest; None: 0
    float32; or int16, the bits of bfloat16. 256 stacks of four 84 x 84 frames: 2.6 ms; 0.8 ms.
    """
    channels, height, width = image
    planes = images.reshape(-1, channels, height * width)
    means = mean.reshape(channels, height * width)
    n = len(planes)
    moved = np.zeros((n, 2), np.int32) if shift is None else shift
    out = np.empty((n, height, width, channels), np.int16 if bfloat16 else np.float32)
    if not bfloat16:
        _float32(planes, means, moved, out)
    elif channels == 4:
        _bfloat16_of_four(planes, means, moved, out.view(np.uint64))
    else:
        _bfloat16(planes, means, moved, out)
    return out
