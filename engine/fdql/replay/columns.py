"""Zeroed columns on cache-line boundaries, for rows and tree. Owned by whoever asks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64  # bytes; numpy's own large arrays start 16 bytes into a line


def zero_column(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros of `shape` on a 64-byte boundary; their memory becomes resident when written."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + LINE, dtype=np.uint8)
    skip = -raw.ctypes.data % LINE
    return raw[skip : skip + nbytes].view(dtype).reshape(shape)
