"""Child processes of a run: start, watch by pidfd, read their events and output, reap, restart.

Started with their own launcher line, not by multiprocessing: exactly the descriptors named here are
inherited, thread caps are in the environment before numpy is imported, no helper process is left
behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import deque
from typing import Any

from fdql.apart import REPORT_BYTES, Lines, signal_name
from fdql.kernel_cache import cache_folder
from fdql.proc.child import EXIT_LINE_LOST
from fdql.profile import Stage
from fdql.shm.guard import pidfd_open
from fdql.shm.segment import nameless

OUTPUT_LINES, SHOWN = 60, 500  # of a child's output kept for when it dies, characters of each
_NATIVE = ", a fault in native code: log.txt says where it was"
_ADVICE = {
    "SIGKILL": "; if nobody killed it, the memory ran out: fewer workers or environments need less",
    **dict.fromkeys(("SIGABRT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL"), _NATIVE),
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def child_environment(kernel_threads: int) -> dict[str, str]:
    """Environment of a child: one thread for BLAS, which torch's learner overrides for itself,
    `kernel_threads` for Numba's parallel kernels, and a Numba cache that can be written.
    """
    env = dict(os.environ) | dict.fromkeys(_THREAD_VARIABLES, "1")
    env["NUMBA_NUM_THREADS"] = str(kernel_threads)
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(_import_path())
    if "NUMBA_CACHE_DIR" not in env and (folder := cache_folder()) is not None:
        env["NUMBA_CACHE_DIR"] = str(folder)
    return env


def _import_path() -> list[str]:
    """Where this process finds modules and a child would not look by itself: beside a script, for
    instance. What comes with Python is left out, for a child may start another Python.
    """
    usual = set(sysconfig.get_paths().values())
    library = sysconfig.get_path("stdlib")
    return [p or os.getcwd() for p in sys.path if p not in usual and not p.startswith(library)]


class Child:
    """One process of one role; `incarnation` counts its restarts from 1.

    It reads its plan from standard input: a plan can be longer than a command line may be.
    """

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
        self.ready_at = 0.0  # time.monotonic of that
        self.output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self.printed = 0  # bytes, of this process
        with open(nameless()[0], "w+b") as plan_file:
            plan_file.write(plan.encode())
            plan_file.seek(0)
            events_r, events_w = os.pipe()
            output_r, output_w = os.pipe()
            try:
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        module,
                        str(fd),
                        str(events_w),
                        str(os.getpid()),
                        *words,
                    ],
                    pass_fds=(fd, events_w),
                    stdin=plan_file,
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
        self.events, self.prints = Lines(events_r, REPORT_BYTES), Lines(output_r)
        self.pidfd: int | None = None
        with contextlib.suppress(OSError):  # a kernel or a container without: `exited` asks then
            self.pidfd = pidfd_open(self.process.pid)

    def descriptors(self) -> list[int]:
        """What becomes readable when the child speaks or dies: wait on these, at most 100 ms."""
        pipes = [lines.fd for lines in (self.events, self.prints) if not lines.ended]
        return pipes if self.pidfd is None else [self.pidfd, *pipes]

    def read_events(self) -> list[dict[str, Any]]:
        """Events sent since the last call. A line that is none is passed over: only our code writes
        here, unless an environment writes into what it did not open.
        """
        events = []
        for line in self.events.read():
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if kind == "ready":
                self.ready, self.ready_at = True, time.monotonic()
            elif kind == "error":
                self.error = event["message"]
            events.append(event)
        return events

    def read_output(self) -> list[str]:
        """Lines printed since the last call; the last OUTPUT_LINES are kept in `output`."""
        lines = self.prints.read()
        self.output.extend(line[:SHOWN] for line in lines)
        self.printed += sum(len(line) for line in lines)
        return lines

    def exited(self) -> bool:
        """True once the process is gone and reaped, and with it whatever it had started. Read its
        pipes after this once more.
        """
        if self.process.returncode is None:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            with contextlib.suppress(ChildProcessError):  # somebody else reaped it
                if os.waitid(os.P_PID, self.process.pid, options) is None:
                    return False
                self._kill_group()
            self.process.wait()
        return True

    def _kill_group(self) -> None:
        """Before it is reaped: until then nobody else can have its number, or its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to it and to what it started, if it still lives."""
        if not self.exited():
            self._kill_group()

    def account(self, stage: int | None = None) -> str:
        """How it ended, in one line: what it said itself, or what the system says, in which `stage`
        of its last sign of life, and what to do.
        """
        code = self.process.returncode
        if self.error:
            return self.error
        where = "" if stage is None else f" in stage {Stage(stage).name.lower()}"
        if code == EXIT_LINE_LOST:
            return f"lost its line to the supervisor{where}: something closed its descriptors"
        if code is not None and code < 0:
            name = signal_name(-code)
            return f"killed by {name}{where}{_ADVICE.get(name, '')}"
        words = f"; it printed last: {self.output[-1]}" if self.output else ""
        return f"exited with code {code} without being told to{where}{words}"

    def close(self) -> None:
        """Close the descriptors of a reaped child; what was printed last without a line's end is
        kept.
        """
        self.output.extend(line[:SHOWN] for line in self.prints.last())
        self.events.last()
        if self.pidfd is not None:
            os.close(self.pidfd)
