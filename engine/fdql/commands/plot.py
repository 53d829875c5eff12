"""`fdql plot`: curves of runs as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PlotArguments:
    """Draw curves of runs: mean and 95 % interval over seeds, other settings side by side."""

    runs: tuple[str, ...]
    """Run folders, or folders of them."""
    key: str = "eval/mean_reward"
    """What to draw: a key of metrics.jsonl."""
    x: Literal["steps", "seconds"] = "steps"
    """Against environment steps or seconds since the command was started."""
    out: Path = Path("plot.png")
    """Picture to write, .png or .svg; one that is there is replaced."""


def run(words: list[str]) -> int:
    """Draw and write the picture, say where."""
    import tyro

    positional = (tyro.conf.PositionalRequiredArgs,)
    a = tyro.cli(PlotArguments, args=words, prog="fdql plot", config=positional)
    from fdql.plot import plot

    print(plot(a.runs, a.key, a.x, a.out))
    return 0
