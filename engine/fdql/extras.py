"""Packages that an extra brings: imported when asked for, named when missing."""

from __future__ import annotations

import importlib
from typing import Any

from fdql.config import ConfigError


def missing(wanted_by: str, extra: str, error: Exception) -> ConfigError:
    """The error that names the extra and the command."""
    from fdql.requirements import install  # of no use to a process that lacks nothing

    return ConfigError(
        f"{wanted_by} needs a package that is not installed ({error}); install the extra "
        f"{extra!r}: {install(extra)}"
    )


def require(module: str, extra: str, wanted_by: str) -> Any:
    """Import `module`. Raises ConfigError naming the extra when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(wanted_by, extra, error) from None
