"""`fdql resume RUN`: a run goes on in its folder."""

from __future__ import annotations

from pathlib import Path

from fdql.commands.flags import check_env, parse
from fdql.config import Config, ConfigError


def run(words: list[str]) -> int:
    """Go on from the run's newest sound checkpoint. Returns the exit code."""
    asks = words[:1] in (["--help"], ["-h"])
    if not asks and (not words or words[0].startswith("-")):
        raise ConfigError("run: its folder must follow; fdql resume runs/CartPole-v1/<run> works")
    from fdql.clock import process_start
    from fdql.going_on import resume, run_config

    path = Path("." if asks else words.pop(0))
    about = "Go on with a run in its folder, from its newest checkpoint; flags change its settings."
    kept = Config() if asks else run_config(path)
    check_env(kept, str(path), words)
    config = parse(words, kept, "resume RUN", about)
    return resume(path, config, began=process_start()).exit_code
