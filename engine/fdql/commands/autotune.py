"""`fdql autotune`: the engine settings that are faster here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from fdql.commands.flags import parse, take_config_file
from fdql.config import Config


@dataclass(frozen=True, kw_only=True)
class AutotuneArguments(Config):
    """Settings of the runs to tune. A flag that you give is kept, and what a file changes from the
    defaults; the others may be changed.
    """

    seconds: float = 60.0
    """Time to spend, seconds."""
    out: Path = Path("tuned.toml")
    """File for the result, read by fdql train --config."""
    force: bool = False
    """Overwrite that file."""


def run(words: list[str]) -> int:
    """Measure, and write the result."""
    given = take_config_file(words)
    flags = {w.partition("=")[0].removeprefix("--").replace("-", "_") for w in words}
    names = [f.name for f in fields(Config)]
    default = AutotuneArguments(**{n: getattr(given, n) for n in names})
    about = "Find the engine settings that are faster here, in short real runs."
    a = parse(words, default, "autotune", about)
    from fdql.autotune import autotune
    from fdql.search import KEYS

    config = Config(**{n: getattr(a, n) for n in names})
    keep = [key for key in KEYS if key in flags]
    autotune(config, seconds=a.seconds, out=a.out, force=a.force, keep=keep)
    return 0
