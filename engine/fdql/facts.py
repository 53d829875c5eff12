"""Facts from a file into a frozen dataclass: every declared type is checked before anything is made
of them, for a file may come from anybody.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
MOST = sys.float_info.max


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def from_facts(kind: type[Kind], values: Any) -> Kind:
    """`kind(**values)`; every value has the type that its field declares, lists become tuples.

    Raises ValueError for an unknown or a missing key, another type, a NaN or an infinity.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is {type(values).__name__}, not a table")
    hints = _hints(kind)  # type: ignore[arg-type]
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"{kind.__name__} has no {str(key)[:40]!r}")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise ValueError(f"{kind.__name__} lacks {name!r}")
    return kind(**{k: _fitted(v, hints[k], k) for k, v in values.items()})


def _fitted(value: Any, hint: Any, name: str) -> Any:
    if get_origin(hint) in (types.UnionType, typing.Union):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = (o for o in options if o is not type(None))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if isinstance(value, list | tuple) and (kinds[-1] is ... or len(kinds) == len(value)):
            return tuple(_fitted(v, kinds[0], name) for v in value)
    elif hint is float and type(value) in (int, float) and -MOST <= value <= MOST:
        return float(value)
    elif type(value) is hint and hint is not float:
        return value
    raise ValueError(f"{name} is {str(value)[:40]!r}, not {hint}")
