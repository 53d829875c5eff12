"""Where compiled kernels are kept, and that training goes on where they cannot be kept.

Numba keeps them beside the source. Where that is read-only a folder of the user takes its place, or
one in the system's temporary folder; where nothing can be written, or the disk is full, they are
compiled at every start.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def cache_folder() -> Path | None:
    """Folder for compiled kernels, made if need be; None: beside the source, or none can be had."""
    if os.access(Path(__file__).parent, os.W_OK):
        return None
    places = []
    with contextlib.suppress(RuntimeError):  # no home
        places.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fdql")
    with contextlib.suppress(OSError):  # nowhere to write
        places.append(Path(tempfile.gettempdir()) / f"fdql-{os.getuid()}")
    for folder in places:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What lies there is run: a folder of ours, no link to one, nobody else writes to it.
            found = folder.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if ours and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
                return folder
    return None


def njit(**options: Any) -> Callable[[_Function], _Function]:
    """Decorator: numba.njit without the GIL, with NumPy's arithmetic, kept on disk if possible."""
    import numba as untyped

    numba: Any = untyped
    options = {"nogil": True, "error_model": "numpy"} | options
    if not numba.config.CACHE_DIR and (folder := cache_folder()) is not None:
        numba.config.CACHE_DIR = str(folder)

    def compiled(function: _Function) -> _Function:
        try:
            made: Any = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "no locator available": it can be kept nowhere
            return numba.njit(**options)(function)  # type: ignore[no-any-return]
        cache = getattr(made, "_cache", None)  # None when Numba is switched off
        if cache is not None:
            save = cache.save_overload

            def save_if_possible(*words: Any) -> None:
                with contextlib.suppress(OSError):  # a full disk: compiled again next time
                    save(*words)

            cache.save_overload = save_if_possible
        return made  # type: ignore[no-any-return]

    return compiled
