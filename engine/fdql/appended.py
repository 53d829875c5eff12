"""A text file that is only appended to: a piece is in it whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class Appended:
    """The file at `path`, made where there is none. Nothing is buffered.

    Raises OSError, also for a link: in a folder from elsewhere it may lead anywhere.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(path, flags, 0o644)
        self._size = os.fstat(self._fd).st_size

    def fileno(self) -> int:
        """Its descriptor."""
        return self._fd

    def write(self, text: str) -> None:
        """Append `text`. Raises OSError (a full disk), and then nothing was appended."""
        data = text.encode("utf-8", "replace")
        written = os.pwrite(self._fd, data, self._size)
        if written < len(data):  # the next piece takes its place, or nothing does
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
