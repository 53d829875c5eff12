"""Every test leaves as many children, descriptors and shared memory objects as it found."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# Tests prove, they do not time; the same examples every time.
settings.register_profile("fdql", deadline=None, derandomize=True)
settings.load_profile("fdql")

HERE = Path(__file__).parent


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own descriptor
    return found


def _memfds() -> list[str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(None, 5)[-1] for line in maps if "memfd:" in line]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Children, descriptors, memfd mappings and /dev/shm are the same before and after."""
    fds, memfds, shm = _descriptors(), _memfds(), set(os.listdir("/dev/shm"))
    children = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    deadline = time.monotonic() + 5.0
    while True:  # a process that was killed takes a moment to leave the kernel's table
        new_fds = {k: v for k, v in _descriptors().items() if fds.get(k) != v}
        left = [p for p in psutil.Process().children(recursive=True) if p.pid not in children]
        new_shm = set(os.listdir("/dev/shm")) - shm
        clean = not left and not new_fds and len(_memfds()) <= len(memfds) and not new_shm
        if clean or time.monotonic() > deadline:
            break
        gc.collect()  # only now: it takes half a second once torch is loaded
        time.sleep(0.02)
    assert not left, f"child processes left: {left}"
    assert not new_fds, f"descriptors left: {new_fds}"
    assert len(_memfds()) <= len(memfds), f"shared memory left: {_memfds()}"
    assert not new_shm, f"/dev/shm entries left: {new_shm}"


@pytest.fixture
def own_environments(monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes `own_envs:Factory` usable here and in children; returns the module's name."""
    monkeypatch.syspath_prepend(str(HERE))
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(HERE) + (os.pathsep + old if old else ""))
    return "own_envs"
