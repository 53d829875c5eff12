"""`fdql train`: every setting is a flag, generated from the config's types."""

from __future__ import annotations

from pathlib import Path

from fdql.commands.flags import parse, take, take_config_file
from fdql.config import ConfigError


def run(words: list[str]) -> int:
    """Train, or print the settings. Returns the exit code."""
    shown = "--print-config" in words
    words = [w for w in words if w != "--print-config"]
    about = (
        "Train SAC. --print-config prints the settings as a commented file and trains nothing. "
        "--resume auto goes on with the newest unfinished run of this environment and seed."
    )
    how = take(words, "resume", "auto", "auto")
    if how not in (None, "auto"):
        raise ConfigError(f"resume = {how!r}: must be auto; fdql resume {how} takes that run")
    if how == "auto" and not shown and (code := _go_on(words, about)) is not None:
        return code
    config = parse(words, take_config_file(words), "train", about)
    if shown:
        from fdql.settings import to_toml

        print(to_toml(config), end="")
        return 0
    from fdql.clock import process_start
    from fdql.supervisor import train

    return train(config, began=process_start()).exit_code


def _go_on(words: list[str], about: str) -> int | None:
    """Go on with the run that the words mean, if there is one; None: a new one is to begin."""
    from fdql.clock import process_start
    from fdql.resume import resume, run_config, unfinished

    rest = list(words)
    asked = parse(rest, take_config_file(rest), "train", about)
    path = Path(asked.run_dir) if asked.run_dir else unfinished(asked.env, asked.seed)
    if path is None or not path.exists():
        return None
    rest = list(words)
    take(rest, "config", "a TOML file", "my.toml")  # the run has its own
    config = parse(rest, run_config(path), "train", about)
    return resume(path, config, began=process_start()).exit_code
