"""The configuration as a nested dict and as TOML, strictly: unknown keys and wrong types are
errors.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from dataclasses import asdict, fields, is_dataclass
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
    known = {f.name for f in fields(kind)}
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            )
            raise ConfigError(f"{prefix}{key} = {value!r}: there is no such setting; {hint}")
        hint_type = hints[key]
        if is_dataclass(hint_type) and isinstance(hint_type, type):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} = {value!r}: must be a table, [{prefix}{key}]")
            out[key] = from_dict(value, kind=hint_type, prefix=f"{prefix}{key}.")
        else:
            out[key] = _checked(value, hint_type, f"{prefix}{key}")
    return kind(**out)


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` if it fits the annotation (int passes for float, bool never for int)."""
    options = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else (hint,)
    for option in options or (hint,):
        if typing.get_origin(option) is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif isinstance(option, type) and type(value) is option:
            return value
    wanted = " or ".join(
        str(getattr(o, "__name__", o)) for o in (options or (hint,)) if o is not type(None)
    )
    raise ConfigError(f"{key} = {value!r}: must be {wanted}")


def load_toml(path: Path) -> Config:
    """Read a config file. Raises ConfigError naming the file for anything that is not a valid
    config.
    """
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"config = {str(path)!r}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:  # ValueError: no TOML, no text, 10**5000
        raise ConfigError(f"config = {str(path)!r}: cannot be read as TOML ({error})") from None
    try:
        config = from_dict(values)
    except (ConfigError, OverflowError) as error:  # an integer beyond every float
        raise ConfigError(f"{path}: {error}") from None
    assert isinstance(config, Config)
    return config
