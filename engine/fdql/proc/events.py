"""A child's line to the supervisor. Written by the child alone, read by its supervisor's crew."""

from __future__ import annotations

import json
import os
import threading
from typing import Any


class LineLostError(RuntimeError):
    """The descriptor of the events is closed, or another file's: an environment's doing."""


class Events:
    """A child's line to the supervisor: one JSON object per line through an inherited pipe.

    Used at most a few times a second, by any thread. When the supervisor is gone the next line
    raises BrokenPipeError.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._pipe = fd, os.fstat(fd)
        self._one_line = threading.Lock()

    def send(self, kind: str, **values: Any) -> None:
        """Send one event. Raises LineLostError; nothing is ever written into another file."""
        data = memoryview((json.dumps({"event": kind, **values}) + "\n").encode())
        try:
            with self._one_line:
                if not os.path.samestat(os.fstat(self._fd), self._pipe):
                    raise LineLostError("its number is another file's now")
                while data:
                    data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise LineLostError(str(error)) from None
