"""`fdql train`: every setting is a flag, generated from the config's types."""

from __future__ import annotations

from fdql.commands.flags import parse, take_config_file


def run(words: list[str]) -> int:
    """Train, or print the settings. Returns the exit code."""
    shown = "--print-config" in words
    words = [w for w in words if w != "--print-config"]
    about = "Train SAC. --print-config prints the settings as a commented file and trains nothing."
    config = parse(words, take_config_file(words), "train", about)
    if shown:
        from fdql.settings import to_toml

        print(to_toml(config), end="")
        return 0
    from fdql.supervisor import train

    return train(config).exit_code
