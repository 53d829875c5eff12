"""`fdql train`: every setting is a flag, generated from the config's types."""

from __future__ import annotations

import os
from pathlib import Path

from fdql.commands.flags import check_env, parse, take, take_config_file
from fdql.config import ConfigError
from fdql.outlet import told


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
    from fdql.checkpoint_folder import CannotGoOn
    from fdql.clock import process_start
    from fdql.going_on import (
        Finished,
        NeverSaved,
        is_stub,
        resume,
        run_config,
        set_aside,
        unfinished,
    )

    rest = list(words)
    asked = parse(rest, take_config_file(rest), "train", about)
    rest = list(words)
    file = take(rest, "config", "a TOML file", "my.toml")  # a run that goes on has its own
    named = asked.run_dir is not None
    paths = [Path(asked.run_dir)] if asked.run_dir else unfinished(asked.env, asked.seed)
    for path in paths:
        if named and not os.path.lexists(path):
            return None
        if named and is_stub(path):
            _say(f"{path} holds no settings yet: it is {set_aside(path)} now, a new run begins")
            return None
        kept = run_config(path)
        check_env(kept, str(path), words)
        config = parse(rest, kept, "train", about)
        try:
            if file:
                _say(f"going on with the settings of {path / 'config.toml'}, not those of {file}")
            return resume(path, config, began=process_start()).exit_code
        except NeverSaved:
            if named:
                _say(f"{path} has no checkpoint: it is {set_aside(path)} now, a new run begins")
                return None
        except Finished as error:
            if named:
                _say(str(error))
                return 0
        except CannotGoOn as error:
            if named:
                raise
            _say(f"passed over: {path}: {error}")
    return None


def _say(line: str) -> None:
    told(f"fdql: {line}")
