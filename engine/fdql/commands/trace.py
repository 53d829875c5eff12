"""`fdql trace`: a run just long enough for a timeline."""

from __future__ import annotations

from dataclasses import replace

from fdql.commands.flags import parse, take, take_config_file
from fdql.config import ConfigError


def run(words: list[str]) -> int:
    """Train until the timeline is recorded. Returns the exit code, 1 without a timeline."""
    seconds = take(words, "seconds", "a number", "5") or "5"
    try:
        length = float(seconds)
    except ValueError:
        raise ConfigError(f"seconds = {seconds!r}: must be a number; --seconds 5 works") from None
    default = replace(take_config_file(words), trace_seconds=length, stop_at_return="never")
    about = "Train just long enough to record --seconds N (5) of a timeline of all processes."
    config = parse(words, default, "trace", about)
    from fdql.supervisor import train

    result = train(config, until_traced=True)
    return result.exit_code or int(not (result.run_dir / "trace.json").is_file())
