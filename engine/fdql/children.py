"""Child processes of a run: start, watch by pidfd, read their events and output, reap, restart.

Started with their own launcher line, not by multiprocessing: exactly the descriptors named here are
inherited, thread caps are in the environment before numpy is imported, no helper process is left
behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fdql.shm.guard import pidfd_open

OUTPUT_LINES = 60  # of a child's output kept for the message when it dies
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def child_environment(kernel_threads: int) -> dict[str, str]:
    """Environment of a child: one thread for BLAS, which torch's learner overrides for itself,
    `kernel_threads` for Numba's parallel kernels, and a Numba cache that can be written.
    """
    env = dict(os.environ) | dict.fromkeys(_THREAD_VARIABLES, "1")
    env["NUMBA_NUM_THREADS"] = str(kernel_threads)
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(_import_path())
    package = Path(__file__).parent
    if "NUMBA_CACHE_DIR" not in env and not os.access(package, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        for folder in (home / "fdql", Path(tempfile.gettempdir()) / f"fdql-{os.getuid()}"):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
                env["NUMBA_CACHE_DIR"] = str(folder)
                break
    return env


def _import_path() -> list[str]:
    """Where this process finds modules and a child would not look by itself: beside a script, for
    instance. What comes with Python is left out, for a child may start another Python.
    """
    usual = set(sysconfig.get_paths().values())
    library = sysconfig.get_path("stdlib")
    return [p or os.getcwd() for p in sys.path if p not in usual and not p.startswith(library)]


class Child:
    """One process of one role; `incarnation` counts its restarts from 1."""

    def __init__(
        self,
        role: str,
        module: str,
        words: list[str],
        fd: int,
        plan: str,
        kernel_threads: int,
        incarnation: int,
    ) -> None:
        self.role, self.incarnation = role, incarnation
        self.ready = False
        self.error: str | None = None  # its own one-line account, when it sent one
        self.output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._lines: dict[int, bytes] = {}
        events_r, events_w = os.pipe()
        output_r, output_w = os.pipe()
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module,
                    plan,
                    str(fd),
                    str(events_w),
                    str(os.getpid()),
                    *words,
                ],
                pass_fds=(fd, events_w),
                stdin=subprocess.DEVNULL,
                stdout=output_w,
                stderr=output_w,
                env=child_environment(kernel_threads),
                process_group=0,  # Ctrl-C in the terminal reaches the supervisor alone
            )
        except BaseException:
            os.close(events_r)
            os.close(output_r)
            raise
        finally:
            os.close(events_w)
            os.close(output_w)
        self.events_fd, self.output_fd = events_r, output_r
        for pipe in (events_r, output_r):
            os.set_blocking(pipe, False)
        self.pidfd = pidfd_open(self.process.pid)

    def descriptors(self) -> list[int]:
        """What becomes readable when the child speaks or dies."""
        return [self.pidfd, self.events_fd, self.output_fd]

    def _read(self, fd: int) -> Iterator[str]:
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, rest = (self._lines.get(fd, b"") + data).split(b"\n")
            self._lines[fd] = rest[-65536:]  # a line without end must not eat the memory
            for line in lines:
                yield line.decode("utf-8", "replace")

    def read_events(self) -> list[dict[str, Any]]:
        """Events sent since the last call. A line that is none is passed over (only our code writes
        here).
        """
        events = []
        for line in self._read(self.events_fd):
            event = json.loads(line)
            if event["event"] == "ready":
                self.ready = True
            elif event["event"] == "error":
                self.error = event["message"]
            events.append(event)
        return events

    def read_output(self) -> list[str]:
        """Lines printed since the last call; the last OUTPUT_LINES are kept in `output`."""
        lines = list(self._read(self.output_fd))
        self.output.extend(lines)
        return lines

    def exited(self) -> bool:
        """True once the process is gone and reaped. Read its pipes after this once more."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)

    def account(self) -> str:
        """How it ended, in one line."""
        code = self.process.returncode
        if self.error:
            return self.error
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with code {code} without being told to"

    def close(self) -> None:
        """Close the descriptors of a reaped child."""
        for fd in self.descriptors():
            os.close(fd)
