"""Ctrl-C and SIGTERM as a request that the run looks at between two of its rounds."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

# Seconds after a request in which another is the same one: `timeout` and batch systems signal a
# process and then its whole group.
ECHO = 0.5
MASHED = 3.0  # seconds after the second request in which a further one is no more than that


class StopRequest:
    """Ctrl-C and SIGTERM, counted: the first asks for an orderly end, the second for an immediate
    one. When nobody looked at that for a while, a further one raises KeyboardInterrupt wherever the
    process is: in an environment of serial mode or a callback that waits for ever.
    """

    def __init__(self) -> None:
        self.count = 0
        self._noted = -math.inf  # when the last one came that counts
        self._impatient_since = math.inf
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._noted < ECHO:
            return
        self._noted = now
        self.count += 1
        if self.count == 2:
            self._impatient_since = now
        if now - self._impatient_since > MASHED:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Asked to stop."""
        return self.count > 0

    @property
    def impatient(self) -> bool:
        """Asked twice."""
        return self.count > 1
