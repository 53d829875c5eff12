"""`fdql report`: runs as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Write runs as one HTML page: curves, where the time went, best policies, video, settings."""

    runs: tuple[str, ...]
    """Run folders, or folders of them."""
    out: Path = Path("report.html")
    """Page to write, .html; one that is there is replaced."""


def run(words: list[str]) -> int:
    """Write the page, say where."""
    import tyro

    positional = (tyro.conf.PositionalRequiredArgs,)
    a = tyro.cli(ReportArguments, args=words, prog="fdql report", config=positional)
    from fdql.page import report

    print(report(a.runs, a.out))
    return 0
