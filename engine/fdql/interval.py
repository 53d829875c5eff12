"""The 95 % interval of a mean, by Student's t. Knows nobody.

Written out because the evaluator reports seconds after the start of a run, and scipy.special takes
a good part of one to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# 97.5 % quantile of t with 1, 2, ... degrees of freedom.
_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_NORMAL = 1.959964


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, within 0.0002; `freedom` >= 1."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z, n = _NORMAL, freedom  # Cornish-Fisher expansion: Abramowitz and Stegun 26.7.5
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def interval_95(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean of what `values` are drawn from lies with 95 %; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half
