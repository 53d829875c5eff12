"""A piece of work in a forked process of its own: whatever it does, it does not do it here.

It may hang, abort, print, end its process, close every descriptor, leave processes behind. What it
reported until then is heard, and how it ended; its process and all of that process's group are gone
afterwards. Knows nobody.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fdql.shm.guard import die_with_parent

KEPT, SHOWN = 12, 500  # first and last lines that are kept of what it printed, characters of each
LOOK_SECONDS = 0.02  # between two looks at the process
LINE_BYTES, MOST_BYTES = 8192, 1 << 20  # of a printed line that are kept; read at a time
REPORT_BYTES = 1 << 24  # of a reported one: its bounds may have 65,536 components
EXIT_UNHEARD = 7  # it could not report: the descriptor is closed

Say = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a piece of work.

    said    everything it reported, in order
    output  first and last lines it printed
    ending  "" when it returned; else how it ended, as the end of a sentence about it
    """

    said: list[Any]
    output: list[str]
    ending: str


class Lines:
    """The reading end of a pipe, line by line; never waits, belongs to this object.

    kept   bytes of a line that are kept, its first
    ended  nobody holds the writing end any more: waiting for more would return at once, for ever
    """

    def __init__(self, fd: int, kept: int = LINE_BYTES) -> None:
        self.fd, self.kept, self.ended, self._rest = fd, kept, False, b""
        os.set_blocking(fd, False)

    def read(self) -> list[str]:
        """Lines that arrived since, at most 1 MiB: whoever writes for ever is heard in turns."""
        pieces, size = [self._rest], 0
        with contextlib.suppress(BlockingIOError):
            while size < MOST_BYTES and not self.ended:
                pieces.append(os.read(self.fd, 65536))
                size += len(pieces[-1])
                self.ended = not pieces[-1]
        *lines, rest = b"".join(pieces).split(b"\n")
        self._rest = rest[: self.kept]  # a line without end must not eat the memory
        return [line[: self.kept].decode("utf-8", "replace") for line in lines]

    def last(self) -> list[str]:
        """What is left once the writer is gone, an unfinished line included; closes the pipe."""
        lines = [*self.read(), self._rest.decode("utf-8", "replace")]
        os.close(self.fd)
        return [line for line in lines if line]


def run_apart(
    work: Callable[[Say], None],
    patience: Callable[[list[Any]], float],
    slow: Callable[[list[Any]], None] = lambda said: None,
    slow_seconds: float = 5.0,
) -> Outcome:
    """Run `work(say)` in a forked process; `say` reports a value that JSON can hold.

    patience  seconds that it may be silent after what it said so far; then it is killed
    slow      called once when it has been at work for `slow_seconds`

    Needs os.fork. Raises OSError when the system cannot fork.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or nobody is told how a child ended
    said_r, said_w = os.pipe()
    out_r, out_w = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()  # or both processes would print what is waiting there
    parent = os.getpid()
    try:
        with warnings.catch_warnings():  # of forking beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        for fd in (said_r, said_w, out_r, out_w):
            os.close(fd)
        raise
    if child == 0:
        _inside(work, said_w, out_w, (said_r, out_r), parent)
    os.close(said_w)
    os.close(out_w)
    with contextlib.suppress(OSError):  # whoever comes first; it may be gone
        os.setpgid(child, child)
    reports, prints = Lines(said_r, REPORT_BYTES), Lines(out_r)
    said: list[Any] = []
    output: list[str] = []
    began = heard = time.monotonic()
    ending = None
    try:
        while ending is None:
            open_ends = [lines.fd for lines in (reports, prints) if not lines.ended]
            select.select(open_ends, [], [], LOOK_SECONDS)
            # Before its pipes are read: nothing it said is missed. Not reaped yet: its number and
            # its group stay its own until both are killed.
            gone = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            _keep(output, prints.read())
            new = _parsed(reports.read())
            said += new
            now = time.monotonic()
            heard = now if new else heard
            if gone is not None:
                ending = _ending(gone.si_code, gone.si_status)
            elif now - heard > patience(said):
                ending = f"did not return within {patience(said):g} s"
            elif slow_seconds < now - began:
                slow(said)
                slow_seconds = float("inf")
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # with what it started
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said += _parsed(reports.last())
        _keep(output, prints.last())
    return Outcome(said, output, ending)


def _parsed(lines: list[str]) -> list[Any]:
    """What was reported; a line that was cut, or that the work wrote itself, is passed over."""
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            values.append(json.loads(line))
    return values


def signal_name(number: int) -> str:
    """SIGKILL, ...; of real-time signals their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _keep(output: list[str], lines: list[str]) -> None:
    """Native code says at first what happened, a traceback at last."""
    for line in lines:
        if len(output) == 2 * KEPT:
            del output[KEPT]
        output.append(line[:SHOWN])


def _ending(code: int, status: int) -> str:
    if code == os.CLD_EXITED:
        if status == EXIT_UNHEARD:
            return "closed the descriptors of its process"
        return "" if status == 0 else f"ended its process with exit code {status}"
    return f"was killed by {signal_name(status)}"


def _inside(
    work: Callable[[Say], None], said: int, out: int, others: tuple[int, int], parent: int
) -> None:
    """The forked process; does not return."""
    code = EXIT_UNHEARD
    try:
        die_with_parent(parent)
        os.setpgid(0, 0)  # a Ctrl-C of the terminal reaches the parent alone
        for fd in others:
            os.close(fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        faulthandler.enable(2)  # where native code gave up, in Python's frames
        sys.breakpointhook = lambda *_, **__: None  # nobody can answer here: it is for the run
        sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115

        def say(value: Any) -> None:
            data = memoryview((json.dumps(value) + "\n").encode())
            while data:
                data = data[os.write(said, data) :]

        work(say)
        code = 0
        sys.stdout.flush()
    except OSError:
        pass  # nobody can be told
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code)
