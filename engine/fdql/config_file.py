"""The configuration as a nested dict and as TOML, strictly: unknown keys and wrong types are
errors.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from fdql.config import Config, ConfigError


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict; a field that is None is left out (TOML has no null)."""

    def clean(value: dict[str, Any]) -> dict[str, Any]:
        out = {k: clean(v) if isinstance(v, dict) else v for k, v in value.items()}
        return {k: v for k, v in out.items() if v is not None}

    return clean(asdict(config))


def from_dict(values: dict[str, Any], *, kind: type[Any] = Config, prefix: str = "") -> Any:
    """The strict inverse of to_dict. Raises ConfigError for an unknown key or a value of another
    type.
    """
    hints = get_type_hints(kind)
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(
                f"{prefix}{key} = {value!r}: there is no such setting; {_nearest(prefix + key)}"
            )
        hint = hints[key]
        if is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} = {value!r}: must be a table, [{prefix}{key}]")
            out[key] = from_dict(value, kind=hint, prefix=f"{prefix}{key}.")
        else:
            out[key] = value  # its type is looked at by the constructor
    return kind(**out)


def _names(kind: type[Any] = Config, prefix: str = "") -> list[str]:
    """Full names of all settings."""
    names = []
    for key, hint in get_type_hints(kind).items():
        nested = is_dataclass(hint) and isinstance(hint, type)
        names += _names(hint, f"{prefix}{key}.") if nested else [prefix + key]
    return names


def _nearest(wrong: str) -> str:
    """The settings that may have been meant, by the whole name, then by its last word."""
    names = _names()
    by_last = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.8)
    near += [by_last[w] for w in difflib.get_close_matches(wrong.rpartition(".")[2], by_last, n=1)]
    return f"did you mean {near[0]}?" if near else "fdql train --help lists all"


def load_toml(path: Path) -> Config:
    """Read a config file. Raises ConfigError naming the file for anything that is not a valid
    config.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config = {str(path)!r}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:  # ValueError: no TOML, no text, 10**5000
        raise ConfigError(f"config = {str(path)!r}: cannot be read as TOML ({error})") from None
    try:
        config = from_dict(values)
    except (ConfigError, ValueError, OverflowError, RecursionError) as error:  # too long, deep
        raise ConfigError(f"{path}: {error}") from None
    assert isinstance(config, Config)
    return config
