"""`fdql train`: every setting is a flag, generated from the config's types."""

from __future__ import annotations

from fdql.commands.flags import parse, take_config_file


def run(words: list[str]) -> int:
    """Train. Returns the exit code."""
    config = parse(words, take_config_file(words), "train", "Train SAC.")
    from fdql.supervisor import train

    return train(config).exit_code
