"""`fdql plot`: curves of runs, mean and interval over seeds, groups side by side. Extra `plot`.

Reads run folders (history.py); draws with matplotlib's objects, so no window and no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import write_bytes
from fdql.config import ConfigError
from fdql.extras import require
from fdql.history import Curve, Group, find_runs, groups, unknown_key
from fdql.interval import t_quantile

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
GRID = 200  # points of a mean
COLUMNS = 3  # of panels

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over `runs` runs where all have values, and its 95 % interval; arrays (GRID,)."""

    runs: int
    x: F64
    mean: F64
    low: F64
    high: F64


def mean_over(curves: Sequence[Curve], x: str) -> Mean | None:
    """Mean of several curves, each read off along straight lines; None where fewer than two share
    a stretch.
    """
    usable = [c for c in curves if len(c.values) > 1]
    if len(usable) < 2:
        return None
    begin, end = max(c.over(x)[0] for c in usable), min(c.over(x)[-1] for c in usable)
    if not begin < end:
        return None
    grid = np.linspace(begin, end, GRID)
    values = np.stack([np.interp(grid, c.over(x), c.values) for c in usable])
    n = len(usable)
    half = t_quantile(n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    mean = values.mean(axis=0)
    return Mean(n, grid, mean, mean - half, mean + half)


Read = list[list[tuple[dict[str, Curve], set[str]]]]


def read_curves(found: Sequence[Group], keys: Sequence[str]) -> Read:
    """Of every group and run in it the curves of `keys`, and every key that has numbers: one pass
    over each run's metrics.
    """
    return [[run.curves(keys) for run in group.runs] for group in found]


def draw(
    found: Sequence[Group], curves: Read, key: str, x: Literal["steps", "seconds"], kind: str
) -> bytes:
    """A figure of `key`: a panel for each environment, a colour for each group, a thin line for
    each run; where there are several seeds a thick one for their mean, and its 95 % interval.

    curves  of the groups, `key` among them: read_curves
    kind    png or svg

    Raises ConfigError for a key that no run has, or when matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "plot", "fdql plot")
    from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]

    if not any(len(c[key].values) for of_group in curves for c, _ in of_group):
        raise unknown_key(key, {k for of_group in curves for _, known in of_group for k in known})
    envs = list(dict.fromkeys(group.env for group in found))
    columns = min(COLUMNS, len(envs))
    lines = math.ceil(len(envs) / columns)
    # Text from files is text: not mathematics, not the name of a font's glyphs drawn as paths.
    style: dict[str, Any] = {
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "fdql",
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
    }  # fmt: skip
    # Ticks of numbers at the end of float64 overflow, which spoils no other figure.
    with matplotlib.rc_context(style), np.errstate(over="ignore", invalid="ignore"):
        figure = Figure(figsize=(max(6.0, 4.2 * columns), 3.4 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel in panels[len(envs) :]:
            panel.set_axis_off()
        for env, panel in zip(envs, panels, strict=False):
            here = [(g, c) for g, c in zip(found, curves, strict=True) if g.env == env]
            for i, (group, of_group) in enumerate(here):
                of_key = [c[key] for c, _ in of_group]
                _draw_group(panel, group, of_key, x, COLOURS[i % len(COLOURS)])
            panel.set_title(env[:60])
            panel.set_xlabel("environment steps" if x == "steps" else "seconds")
            panel.set_ylabel(key)
            panel.grid(alpha=0.25, linewidth=0.5)
            handles, labels = panel.get_legend_handles_labels()
            if handles:
                panel.legend(handles, labels, fontsize=8, frameon=False)
        out = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=120, metadata=metadata)
    return out.getvalue()


def _draw_group(panel: Any, group: Group, curves: Sequence[Curve], x: str, colour: str) -> None:
    mean = mean_over(curves, x)
    label = group.label(len(curves) if mean is None else mean.runs)[:120]
    for curve in curves:
        width = 1.6 if mean is None else 0.7
        marker = "o" if len(curve.values) == 1 else None  # a single point is no line
        alpha = 1.0 if mean is None else 0.45
        panel.plot(
            curve.over(x), curve.values, color=colour, linewidth=width, alpha=alpha, marker=marker,
            markersize=4, label=label if curve is curves[0] and mean is None else "_",
        )  # fmt: skip
    if mean is not None:
        panel.fill_between(mean.x, mean.low, mean.high, color=colour, alpha=0.18, linewidth=0)
        panel.plot(mean.x, mean.mean, color=colour, linewidth=1.8, label=label)


def plot(runs: Sequence[str], key: str, x: Literal["steps", "seconds"], out: Path) -> str:
    """Draw `key` of the runs in these folders, and write the picture. Returns what to say of it.

    Raises ConfigError for folders without runs, an unknown key, another kind of file.
    """
    kind = out.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ConfigError(
            f"out = {str(out)!r}: must end in .png or .svg; {out.stem or 'plot'}.png works"
        )
    found = find_runs(runs)
    grouped = groups(found)
    picture = draw(grouped, read_curves(grouped, [key]), key, x, kind)
    try:
        write_bytes(out, picture)
    except OSError as error:
        raise ConfigError(
            f"out = {str(out)!r}: cannot be written ({error.strerror}); plot.png works"
        ) from None
    return f"{key} of {len(found)} run(s): {out}"
