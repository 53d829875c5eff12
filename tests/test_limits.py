"""Little room: descriptors, address space, disk, kernels that cannot be kept, systems without memfd
or pidfd. What needs a superuser is in tests/stress/limits.py.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fdql.children
import fdql.kernel_cache
import fdql.run_folder
import numba
import pytest
from fdql.appended import Appended
from fdql.config import Config, ConfigError
from fdql.run_folder import RunFolder
from fdql.supervisor import train
from plans import small_config

ROOT = Path(__file__).parent.parent


def go(tmp_path: Path, env: str, **changes: Any) -> Any:
    return train(small_config(env, run_dir=str(tmp_path / "run"), **changes), quiet=True)


def limited(
    tmp_path: Path, limit: int, value: int, *words: str
) -> subprocess.CompletedProcess[str]:
    """The command under one limit, soft and hard."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=150,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )  # fmt: skip


def test_a_system_without_memfd_and_pidfd(own_environments, tmp_path, monkeypatch):
    """Containers forbid them: a file in /dev/shm that has no name, and asking every 100 ms."""

    def refused(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(os, "pidfd_open", refused)
    before = set(os.listdir("/dev/shm"))
    result = go(tmp_path, "hostile_envs:Leaves", total_timesteps=1500, envs_per_worker=4)
    assert set(os.listdir("/dev/shm")) == before
    assert result.exit_reason == "total_timesteps", result.problem
    assert result.summary["worker_restarts"] >= 1  # a death was noticed without pidfd


def test_no_shared_memory_at_all_is_refused(own_environments, tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(OSError, match="serial mode works here: --serial"):
        go(tmp_path, "own_envs:Counting")
    assert list(tmp_path.iterdir()) == []


def test_64_descriptors_are_enough_for_a_run(tmp_path):
    words = "--env CartPole-v1 --total-timesteps 300 --stop-at-return never --run-dir run"
    out = limited(tmp_path, resource.RLIMIT_NOFILE, 64, *words.split())
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "run" / "summary.json").is_file()


def test_too_few_descriptors_are_refused(tmp_path):
    out = limited(tmp_path, resource.RLIMIT_NOFILE, 64, "--workers", "10")
    assert out.returncode == 2, out.stderr
    assert "workers = 10: a run with them needs 71 descriptors" in out.stderr
    assert "may open 64 (ulimit -n); workers = 7 works" in out.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_address_space_is_refused(tmp_path):
    words = "--env CartPole-v1 --total-timesteps 300 --stop-at-return never --run-dir run"
    out = limited(tmp_path, resource.RLIMIT_AS, 250 << 20, *words.split())
    assert out.returncode == 2, (out.returncode, out.stdout, out.stderr)
    assert "250 MiB of address space here (ulimit -v 256000)" in out.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_once_and_the_run_goes_on(
    own_environments, tmp_path, monkeypatch, capfd
):
    class Full(Appended):
        def __init__(self, path: Path) -> None:
            full = path.name == "metrics.jsonl"
            super().__init__(Path("/dev/full") if full else path)

    monkeypatch.setattr(fdql.run_folder, "Appended", Full)
    result = go(tmp_path, "own_envs:Counting", total_timesteps=1500, envs_per_worker=4)
    assert (result.exit_reason, result.exit_code) == ("total_timesteps", 1)
    assert result.summary["env_steps"] >= 1500
    assert f"{tmp_path}/run cannot be written (No space left on device)" in result.problem
    assert capfd.readouterr().err.count("No space left on device") == 2  # at once, and at the end
    assert (tmp_path / "run" / "policy.safetensors").is_file()
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_folder_that_cannot_be_filled_is_not_left(tmp_path, monkeypatch):
    class Full(Appended):
        def __init__(self, path: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fdql.run_folder, "Appended", Full)
    with pytest.raises(ConfigError, match=r"cannot be written.*No space left.*--run-dir"):
        RunFolder(Config(run_dir=str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


def test_a_piece_is_whole_or_not_there(tmp_path, monkeypatch):
    file = Appended(tmp_path / "rows")
    file.write("one\n")
    write = os.pwrite
    with monkeypatch.context() as m:
        m.setattr(
            os, "pwrite", lambda fd, data, at: write(fd, data[:2], at)
        )  # the disk's last room
        with pytest.raises(OSError, match="No space left"):
            file.write("two\n")
    assert (tmp_path / "rows").read_text() == "one\n"
    file.write("three\n")
    file.close()
    assert (tmp_path / "rows").read_text() == "one\nthree\n"


def test_the_supervisor_that_cannot_start_a_process_says_so(
    own_environments, tmp_path, monkeypatch
):
    class NoMore(fdql.children.Child):
        def __init__(self, role: str, *words: Any) -> None:
            if role == "inference":
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            super().__init__(role, *words)

    monkeypatch.setattr("fdql.crew.Child", NoMore)
    result = go(tmp_path, "own_envs:Counting")
    assert (result.exit_reason, result.exit_code) == ("crash", 1)
    assert "the supervisor could not go on" in result.problem
    assert "Resource temporarily unavailable" in result.problem
    assert (tmp_path / "run" / "summary.json").is_file()


def test_kernels_are_kept_where_they_can_be(tmp_path, monkeypatch):
    package = Path(fdql.kernel_cache.__file__).parent
    writable = os.access
    assert fdql.kernel_cache.cache_folder() is None  # beside the source
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != package and writable(p, m))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fdql.kernel_cache.cache_folder() == tmp_path / "cache" / "fdql"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a home to which nobody writes
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert fdql.kernel_cache.cache_folder() == tmp_path / f"fdql-{os.getuid()}"
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    there = fdql.children.child_environment(1)["NUMBA_CACHE_DIR"]
    assert there == str(tmp_path / f"fdql-{os.getuid()}")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    assert fdql.kernel_cache.cache_folder() is None


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_kernels_that_cannot_be_kept_still_run(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @fdql.kernel_cache.njit()
    def twice(x: float) -> float:
        return 2 * x

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert twice(21.0) == 42.0

    def nowhere(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", nowhere)

    @fdql.kernel_cache.njit()
    def thrice(x: float) -> float:
        return 3 * x

    assert thrice(14.0) == 42.0


def test_sigchld_ignored_by_who_started_us(tmp_path):
    """Some launchers leave it so: the kernel reaps children and tells nobody how they ended."""
    words = "--env CartPole-v1 --total-timesteps 300 --stop-at-return never --run-dir run"
    out = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=150,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
