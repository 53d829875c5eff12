"""How the kernels of this folder are compiled: no GIL, numpy's arithmetic, kept on disk.

Numba's disk cache looks at the file of a function alone: after a change in another file that it
calls into, it would load the old machine code and say nothing. So every entry is also stamped with
a digest of all files that kernels stand in or take constants from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

from fdql.kernel_cache import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


# Turns that an idle OpenMP thread looks for work before it sleeps, about 12 ns each: it bridges the
# parts of an update that only one thread works on, and leaves the core to others between updates.
SPIN_TURNS = "5000"


def two_threads() -> None:
    """Let this thread's parallel kernels use two threads, or one where NUMBA_NUM_THREADS is 1."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_TURNS)  # read when the first kernel starts them
    with contextlib.suppress(ValueError):  # above NUMBA_NUM_THREADS
        numba.set_num_threads(2)


def _digest() -> str:
    here = Path(__file__)
    digest = hashlib.sha256()
    for name in ("jit.py", "kernels*.py", "learner.py", "nets.py"):
        for source in sorted(here.parent.glob(name)):
            digest.update(source.read_bytes())
    return digest.hexdigest()


SOURCES = _digest()


def kernel(
    *, fastmath: set[str] | None = None, signature: str | None = None, parallel: bool = False
) -> Callable[[_Function], _Function]:
    """Decorator: a Numba function in nopython mode, compiled at its first call.

    fastmath   LLVM's fast-math flags, none if left out
    parallel   its prange loops run on Numba's threads
    signature  argument types, compiled at once and for nothing else; needed where a caller passes
               literal numbers, for each of which Numba would make its own version
    """

    def compiled(function: _Function) -> _Function:
        made: Any = njit(fastmath=fastmath or False, parallel=parallel)(function)
        index = getattr(getattr(made, "_cache", None), "_cache_file", None)
        if index is not None:  # None when Numba is switched off
            index._source_stamp = (index._source_stamp, SOURCES)
        if signature is not None and index is not None:
            made.compile(signature)
            made.disable_compile()
        return made  # type: ignore[no-any-return]

    return compiled
