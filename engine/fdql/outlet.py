"""Standard output of a run: a reader that is gone or a disk that is full costs what is shown, never
the run. Written by the board; the command line looks at its end whether everything arrived.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console


_refused: list[OSError] = []  # what standard output said last when it did not take something


class Outlet:
    """A file that takes everything and hands on what the real one takes."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file  # None: there is no standard output
        self.encoding: str = getattr(file, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Characters of `text`, whatever became of them."""
        if self._file is not None:
            try:
                self._file.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except OSError as error:
                _refused[:] = [error]
        return len(text)

    def flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                _refused[:] = [error]

    def isatty(self) -> bool:
        return self._file is not None and self._file.isatty()

    def fileno(self) -> int:
        if self._file is None:
            raise OSError("there is no standard output")
        return self._file.fileno()


def standard_output(*, quiet: bool = False, width: int | None = None) -> Console:
    """What prints text as it is, without colour or pictures where no terminal shows them.

    width  columns, where not the terminal's
    """
    from rich.console import Console  # here, for every command looks at its output's end

    outlet = Outlet(sys.stdout)
    return Console(
        file=cast(IO[str], outlet), force_terminal=outlet.isatty(), quiet=quiet, width=width,
        highlight=False, markup=False, emoji=False,
    )  # fmt: skip


def told(line: Any) -> None:
    """A line on standard error, if it can be written."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def reader_is_gone() -> bool:
    """True when standard output is a pipe that nobody reads any more."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    look = select.poll()
    look.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in look.poll(0))


def all_written() -> bool:
    """Flush standard output before the process ends, or Python ends it with code 120. False, and
    said, when something was not written; a reader that is gone wanted no more.
    """
    if sys.stdout is None:
        return True
    try:
        sys.stdout.flush()
    except OSError as error:
        _refused[:] = [error]
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    missing = [e for e in _refused if not isinstance(e, BrokenPipeError)]
    _refused.clear()
    for e in missing:
        told(f"fdql: standard output cannot be written ({e.strerror}); lines are missing")
    return not missing
