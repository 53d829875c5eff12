"""The figure of bench/scores.py: returns by environment steps and by seconds."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Warm for ours, blue for SB3, violet for SBX: a contestant keeps its colour in every figure.
COLOURS = {
    "fdql": "#d1495b", "serial": "#e8a33d", "fdql-cold": "#8f3b2e",
    "sb3-dqn": "#1f77b4", "sb3-ppo": "#2a9d8f", "sb3-qrdqn": "#7fb3d5", "sb3-sac": "#264f78",
    "sbx-dqn": "#7d4fb3", "sbx-ppo": "#c79be0", "sbx-sac": "#b45fd6", "sbx-tqc": "#4b2a73",
}  # fmt: skip
OTHER = "#777777"
COLUMNS = ((1, 1.0), (0, 0.01))  # steps and seconds of a curve; the least on a log axis
POINTS = 200  # of the common grid
THIN, THICK, FAINT = 1.1, 2.4, 0.55
BELOW = 0.5  # of the way from random to best: what is worse than random by more is cut off


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """What is drawn of one environment.

    line    return drawn dashed; strict: where runs stop, else 85 % of the way to the best
    random  and best bound what the panel shows
    runs    by contestant, of every seed: rows of seconds, steps, updates, mean return; passed
    """

    line: float
    strict: bool
    random: float
    best: float
    runs: dict[str, list[tuple[Array, bool]]]


def mean_curve(x: list[Array], y: list[Array]) -> tuple[Array, Array] | None:
    """Mean over seeds on a grid from the latest beginning to the earliest end; None: no overlap."""
    low, high = max(a[0] for a in x), min(a[-1] for a in x)
    if low >= high:
        return None
    grid = np.geomspace(low, high, POINTS)
    mean = np.mean([np.interp(grid, a, b) for a, b in zip(x, y, strict=True)], axis=0)
    return grid, np.asarray(mean, dtype=np.float64)


def draw(curves: dict[str, Curves], path: Path) -> None:
    """One row per environment. Raises ValueError when matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError(
            '--figure needs matplotlib, the extra plot: pip install -c constraints.txt -e ".[plot]"'
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
    from PIL import Image  # comes with matplotlib

    figure, axes = pyplot.subplots(
        len(curves), 2, figsize=(10, 1.55 * len(curves) + 0.9), sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for pair, (env, panel) in zip(axes, curves.items(), strict=True):
        for axis, (column, least) in zip(pair, COLUMNS, strict=True):
            for who, runs in panel.runs.items():
                colour = COLOURS.get(who, OTHER)
                x = [np.maximum(curve[:, column], least) for curve, _ in runs]
                y = [curve[:, 3] for curve, _ in runs]
                for a, b, (_, passed) in zip(x, y, runs, strict=True):
                    axis.plot(a, b, color=colour, lw=THIN, alpha=FAINT if len(runs) > 1 else 1.0)
                    axis.plot(a[-1:], b[-1:], "o" if passed else "x", color=colour, ms=4)
                if len(runs) > 1 and (mean := mean_curve(x, y)):
                    axis.plot(*mean, color=colour, lw=THICK, solid_capstyle="round")
            axis.axhline(panel.line, color="#333333", lw=1, ls="--", zorder=1)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(short))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.tick_params(labelsize=8)
            axis.grid(axis="both", color="#eeeeee", lw=0.6)
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        span = panel.best - panel.random
        lowest = min(curve[:, 3].min() for runs in panel.runs.values() for curve, _ in runs)
        bottom = max(min(lowest, panel.random), panel.random - BELOW * span)
        pair[0].set_ylim(bottom - 0.06 * span, panel.best + 0.08 * span)
        said = f"{panel.line:,.0f}" if panel.strict else f"85 %: {panel.line:,.0f}"
        pair[0].set_title(env, fontsize=9, loc="left", fontweight="bold", pad=3)
        pair[1].set_title(f"line {said}", fontsize=8, loc="right", color="#333333", pad=3)
    for axis, label in zip(axes[-1], ("environment steps", "seconds"), strict=True):
        axis.set_xlabel(label, fontsize=9)
    figure.supylabel("mean return of an evaluation", fontsize=9)
    found = {n for panel in curves.values() for n in panel.runs}
    names = [n for n in COLOURS if n in found] + sorted(found - set(COLOURS))
    handles = [Line2D([], [], color=COLOURS.get(n, OTHER), lw=THICK, label=n) for n in names]
    grey = "#333333"
    handles += [
        Line2D([], [], color=grey, lw=THIN, alpha=FAINT, label="one seed"),
        Line2D([], [], color=grey, lw=THICK, label="mean of the seeds"),
        Line2D([], [], color=grey, lw=1, ls="--", label="line"),
        Line2D([], [], color=grey, marker="o", ms=4, ls="", label="reached it"),
        Line2D([], [], color=grey, marker="x", ms=4, ls="", label="out of time"),
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=-(-len(handles) // 2), fontsize=8.5,
        frameon=False, columnspacing=1.4, handlelength=1.6,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    pyplot.close(figure)
    with Image.open(drawn) as image:  # a palette is a third of the size
        image.convert("RGB").quantize(128).save(path, format="png", optimize=True)


def short(value: float, _: object) -> str:
    """A tick's number: 10k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
