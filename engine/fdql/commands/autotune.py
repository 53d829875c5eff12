"""`fdql autotune`: the engine settings that are faster here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from fdql.commands.flags import parse, take_config_file
from fdql.config import Config


@dataclass(frozen=True, kw_only=True)
class AutotuneArguments(Config):
    """Settings of the runs to tune: one that you give is kept, the others may be changed."""

    seconds: float = 60.0
    """Time to spend, seconds."""
    out: Path = Path("tuned.toml")
    """File for the result, read by fdql train --config."""
    force: bool = False
    """Overwrite that file."""


def run(words: list[str]) -> int:
    """Measure, and write the result."""
    given = take_config_file(words)
    names = [f.name for f in fields(Config)]
    default = AutotuneArguments(**{n: getattr(given, n) for n in names})
    about = "Find the engine settings that are faster here, in short real runs."
    a = parse(words, default, "autotune", about)
    from fdql.autotune import autotune

    config = Config(**{n: getattr(a, n) for n in names})
    autotune(config, seconds=a.seconds, out=a.out, force=a.force)
    return 0
