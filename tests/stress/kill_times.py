"""How long a death takes to be noticed and made good, on CartPole-v1.

    python kill_times.py FOLDER TIMES

The supervisor is killed TIMES times: until its last child is gone, and its memory with it. A worker
is killed TIMES times in one run: until the supervisor says so, until its successor's first chunk.
Prints median, least and most of each; fails above 2 s, 1 s, and 10 s (a machine may be busy).
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from fdql.config import Config, EngineConfig
from fdql.crew import Crew
from fdql.shm.layout import KIND_RING, OFFSETS
from fdql.supervisor import train
from kill_case import left_running

RING, SLOT = OFFSETS["RingHeader"], OFFSETS["SlotHeader"]
GIVE_UP = 120.0  # seconds for anything


def until(condition: Callable[[], Any]) -> Any:
    """What the condition says once that is true."""
    deadline = time.monotonic() + GIVE_UP
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("the run does not get there")
        time.sleep(0.01)
    return value


def begin(folder: Path) -> int:
    """Fork a supervisor of an endless run; returns once all its children work."""
    pid = os.fork()
    if pid == 0:
        endless = Config(
            env="CartPole-v1", workers=1, stop_at_return="never", total_timesteps=10**9,
            engine=EngineConfig(restarts=1000, ring_chunks=256), run_dir=str(folder / "run"),
        )  # fmt: skip
        try:
            train(endless, quiet=True)
        finally:
            os._exit(1)
    until(lambda: (folder / "run" / "best" / "leaderboard.json").exists())  # it was evaluated
    return pid


def memfds(pid: int) -> set[str]:
    """Inodes of the anonymous memory that a process maps."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[4] for line in lines if "memfd:" in line}


def supervisor_dies(folder: Path) -> float:
    """Seconds from its SIGKILL until its last child is gone."""
    pid = begin(folder)
    children = [p.pid for p in psutil.Process(pid).children()]
    ours = memfds(pid)
    assert len(children) == 4
    assert ours
    poll, waiting = select.poll(), {os.pidfd_open(child) for child in children}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while waiting:
        for fd, _ in poll.poll(1000):
            poll.unregister(fd)
            waiting.remove(fd)
            os.close(fd)
        if time.monotonic() - began > GIVE_UP:
            raise TimeoutError("a child outlives the supervisor")
    seconds = time.monotonic() - began
    os.waitpid(pid, 0)
    assert not left_running(folder / "run")
    assert not any(ours & memfds(int(p.name)) for p in Path("/proc").glob("[0-9]*"))
    return seconds


def first_commit(ring: memoryview, incarnation: int) -> int:
    """When the first chunk of a life of the ring's writer was handed over, ns; 0: not yet."""
    (capacity,) = struct.unpack_from("=I", ring, RING["capacity"][0])
    stride, offset = struct.unpack_from("=QQ", ring, RING["slot_stride"][0])
    times = []
    for at in range(offset, offset + capacity * stride, stride):
        (life,) = struct.unpack_from("=I", ring, at + SLOT["incarnation"][0])
        if life == incarnation:
            times += struct.unpack_from("=Q", ring, at + SLOT["t_commit_ns"][0])
    return min(times, default=0)


def told(file: Path) -> None:
    """Make the supervisor, forked from here, write when it noticed a death, and the first chunk of
    the successor: two lines for each.
    """
    died, pump = Crew._died, Crew.pump
    wanted: list[int] = []

    def write(ns: int) -> None:
        with file.open("a") as lines:
            lines.write(f"{ns}\n")

    def dying(crew: Crew, role: str, child: Any) -> None:
        write(time.monotonic_ns())
        wanted.append(child.incarnation + 1)
        died(crew, role, child)

    def pumping(crew: Crew) -> None:
        pump(crew)
        ring = crew.memory.segment.section(KIND_RING, 0)
        if wanted and (ns := first_commit(ring, wanted[0])):
            wanted.clear()
            write(ns)

    Crew._died, Crew.pump = dying, pumping  # type: ignore[method-assign]


def worker_dies(folder: Path, times: int) -> tuple[list[float], list[float]]:
    """Seconds until noticed, and until the successor's first chunk, of each death."""
    file = folder / "told"
    file.touch()
    told(file)
    pid = begin(folder)
    noticed, replaced = [], []
    for i in range(times):

        def workers() -> list[psutil.Process]:
            found = psutil.Process(pid).children()
            return [p for p in found if "fdql.proc.env_worker" in p.cmdline()]

        (worker,) = until(workers)
        began = time.monotonic_ns()
        worker.kill()
        until(lambda n=2 * i + 2: len(file.read_text().splitlines()) >= n)
        death, chunk = map(int, file.read_text().splitlines()[2 * i :])
        noticed.append((death - began) / 1e9)
        replaced.append((chunk - began) / 1e9)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return noticed, replaced


def main() -> int:
    folder, times = Path(sys.argv[1]), int(sys.argv[2])
    places = [folder / f"timed-{i}" for i in range(times + 1)]
    for place in places:
        place.mkdir()
    gone = [supervisor_dies(place) for place in places[1:]]
    noticed, replaced = worker_dies(places[0], times)
    slow = 0
    for what, seconds, most in (
        ("supervisor killed: last child and memory gone", gone, 2.0),
        ("worker killed: noticed", noticed, 1.0),
        ("worker killed: first chunk of its successor", replaced, 10.0),
    ):
        slow += max(seconds) > most
        middle, least, longest = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{what:46} {1e3 * middle:.1f} ms ({1e3 * least:.1f} to {1e3 * longest:.1f}), "
              f"{len(seconds)} times")  # fmt: skip
    return slow


if __name__ == "__main__":
    sys.exit(main())
