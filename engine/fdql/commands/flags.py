"""Settings from the words of a command: --config FILE first, then the flags, which beat it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from fdql.config import Config, ConfigError
from fdql.config_file import load_toml

Settings = TypeVar("Settings", bound=Config)
_FILE = " --config FILE reads settings from TOML; flags beat the file."


def take(words: list[str], name: str, what: str, works: str) -> str | None:
    """Remove `--name VALUE` from `words`. Returns the value, None when it does not stand there."""
    for i, word in enumerate(words):
        if word == f"--{name}" or word.startswith(f"--{name}="):
            value = word.partition("=")[2] if "=" in word else "".join(words[i + 1 : i + 2])
            if not value:
                raise ConfigError(f"{name}: {what} must follow; --{name} {works} works")
            del words[i : i + (1 if "=" in word else 2)]
            return value
    return None


def take_config_file(words: list[str]) -> Config:
    """Remove --config FILE from `words` and read it; the flags that stay beat the file.

    Raises ConfigError where the file names an environment whose module would be imported and no
    --env repeats it: a file never decides what code runs.
    """
    name = take(words, "config", "a TOML file", "my.toml")
    if not name:
        return Config()
    config = load_toml(Path(name))
    check_env(config, name, words)
    return config


def check_env(config: Config, file: str, words: list[str]) -> None:
    """Raises ConfigError where the environment of a config file is code of a module and no --env in
    `words` repeats it.
    """
    if ":" in config.env and not any(w == "--env" or w.startswith("--env=") for w in words):
        raise ConfigError(
            f"{file}: env = {config.env!r} is code of that module, which a file alone never "
            f"starts; say so: --env {config.env}"
        )


def parse(words: list[str], default: Settings, verb: str, description: str) -> Settings:
    """The settings: `default`, and over it the flags in `words`."""
    import tyro

    # Here and not in config.py, which processes import that have no use for tyro.
    flag = tyro.conf.arg(name="trace", metavar="SECONDS")
    Config.__annotations__["trace_seconds"] = Annotated[float | None, flag]
    return tyro.cli(
        type(default), args=words, default=default, prog=f"fdql {verb}",
        description=description + ("" if verb.startswith("resume") else _FILE),
    )  # fmt: skip
