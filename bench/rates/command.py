"""A contestant that is a program of its own: run it, read the JSON object on its last line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from peers.runs import ROOT, THREADS

from rates.reading import Reading, Unavailable

SECONDS = 300.0  # a contestant that takes longer is given up

one_thread = dict.fromkeys(THREADS, "1") | {"JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[None]:
    """What is started inside runs on the last `cores` cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-cores:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Running:
    """A program under way. Its output goes to files: a grandchild could hold a pipe open."""

    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    def ended(self, seconds: float) -> tuple[str, str]:
        """What it printed, once it has ended; whatever it has started is ended with it.

        Raises subprocess.TimeoutExpired after `seconds`.
        """
        try:
            self.process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            said = []
            for file in (self.out, self.err):
                file.seek(0)
                said.append(file.read().decode("utf-8", "replace"))
                file.close()
        return said[0], said[1]


def started(words: list[str], cores: int) -> Running:
    """Start a program of this checkout, one thread per library, in a process group of its own."""
    path = os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    with pinned(cores):
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=os.environ | one_thread | {"PYTHONPATH": path.rstrip(os.pathsep)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Running(process, out, err)


def said(running: Running, seconds: float = SECONDS) -> dict[str, Any]:
    """The JSON object that it printed last. Raises Unavailable when it failed or hung."""
    try:
        out, err = running.ended(seconds)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"did not end within {seconds:g} s") from None
    if running.process.returncode:
        lines = [line for line in err.splitlines() if line.strip()] or ["nothing on stderr"]
        raise Unavailable(f"exit code {running.process.returncode}: {lines[-1][:300]}")
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        float(answer["value"])
    except (IndexError, ValueError, KeyError, TypeError):
        raise Unavailable(f"no value on the last line: {out[-300:]!r}") from None
    return answer


def read(words: list[str], *, cores: int) -> Reading:
    """One reading of a program that prints {"value": ..., more facts}."""
    if not Path(words[0]).exists():
        raise Unavailable(f"{words[0]} does not exist: bash bench/peers/build.sh makes it")
    answer = said(started(words, cores))
    return Reading(value=float(answer.pop("value")), facts=answer)


def read_many(words: list[str], n: int) -> Reading:
    """n copies at once, free to use every core: the sum of their values."""
    running = [started(words, os.cpu_count() or 1) for _ in range(n)]
    values, failure = [], None
    for one in running:
        try:
            values.append(float(said(one)["value"]))
        except Unavailable as error:
            failure = failure or error
    if failure:
        raise failure
    return Reading(value=sum(values), facts={"processes": n, "each": [round(v, 1) for v in values]})
