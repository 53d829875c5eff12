from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest
from fdql.shm.guard import die_with_parent, pidfd_open

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard is Linux's")

SLEEPER = (
    "import os, sys, time; from fdql.shm.guard import die_with_parent;"
    "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
)
# a parent that starts the sleeper, passes its pid on and waits to be killed
PARENT = (
    "import os, subprocess, sys;"
    "c = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]); c.wait()"
)


def test_child_dies_with_its_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, SLEEPER], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    fd = pidfd_open(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert select.select([fd], [], [], 60)[0] == [fd]
    os.close(fd)


def test_orphan_exits_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = subprocess.run([sys.executable, "-c", SLEEPER, str(gone.pid)]).returncode
    assert code == 1


def test_pidfd_of_a_living_process_is_not_readable():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = pidfd_open(child.pid)
    assert select.select([fd], [], [], 0)[0] == []
    child.communicate(b"\n")
    assert select.select([fd], [], [], 60)[0] == [fd]
    os.close(fd)


def test_pidfd_of_nobody():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ProcessLookupError):
        pidfd_open(gone.pid)


def test_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    die_with_parent(1)
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(OSError, match="darwin"):
        pidfd_open(1)
