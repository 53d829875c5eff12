"""The checks of `fdql doctor` that need no process of their own; each yields its findings.

Nothing of fdql that needs the compiled part is imported at the top: it may be what is missing.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fdql.cgroup import cpu_limit, memory_left
from fdql.requirements import CHECKOUT, REBUILD, install, pinned, required

SLOW_GFLOPS = 5.0  # a BLAS for this CPU makes many times as much on one core; NumPy's own loops 1
LEAST_MEMORY = 1 << 30  # bytes; a small run takes half of it

State = Literal["ok", "advice", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    state   ok; advice: runs work without it; wrong: they do not, or not in the default mode
    found   what there is
    mend    what mends it, a command where there is one; empty when nothing is to be mended
    """

    name: str
    state: State
    found: str
    mend: str = ""


def python() -> Iterator[Finding]:
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    good = sys.implementation.name == "cpython" and (3, 11) <= sys.version_info < (3, 14)
    yield Finding(
        "python", "ok" if good else "wrong", found, "" if good else "CPython 3.11 to 3.13"
    )
    linux = sys.platform == "linux"
    yield Finding(
        "system", "ok" if linux else "advice", f"{platform.system()} {platform.release()}",
        "" if linux else "the asynchronous mode needs Linux; fdql train --serial works",
    )  # fmt: skip


def packages() -> Iterator[Finding]:
    tested, missing, shown, other = pinned(), [], [], []
    for name in required():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        shown.append(f"{name} {version}")
        if name in tested and version.partition("+")[0] != tested[name]:
            other.append(f"{name} {version} (tested: {tested[name]})")
    yield Finding("packages", "ok", ", ".join(shown))
    if missing:
        yield Finding("packages", "wrong", f"missing: {', '.join(missing)}", install())
    if other:
        yield Finding("versions", "advice", ", ".join(other), install())


def compiler() -> Iterator[Finding]:
    name = os.environ.get("CXX") or (sysconfig.get_config_var("CXX") or "c++").split()[0]
    path = shutil.which(name) or shutil.which("c++")
    if path is None:
        yield Finding(
            "compiler", "advice", f"none ({name!r} is not on the path); an installation from "
            "source needs one", "apt-get install g++, or dnf install gcc-c++",
        )  # fmt: skip
        return
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout
    yield Finding("compiler", "ok", f"{path}: {(said.splitlines() or ['?'])[0]}")


def extension() -> Iterator[Finding]:
    shm = Path(__file__).parent / "shm"
    names = sorted(p.stem for p in shm.glob("*.pyi"))
    for name in names:
        try:
            importlib.import_module(f"fdql.shm.{name}")
        except ImportError as error:
            yield Finding("extension", "wrong", f"fdql.shm.{name}: {error}", REBUILD)
            return
    from fdql.shm.segment import build_flags

    yield Finding("extension", "ok", f"{', '.join(names)}; built with {build_flags()}")
    built = {p.name.partition(".")[0]: p.stat().st_mtime for p in shm.glob("*.so")}
    for source in sorted((CHECKOUT / "ext").glob("*")):
        shared = source.suffix in (".pxd", ".hpp")  # any module may include it
        then = min(built.values(), default=0.0) if shared else built.get(source.stem)
        if then is not None and source.stat().st_mtime > then:
            yield Finding("extension", "advice", f"older than ext/{source.name}", REBUILD)
            return


def simd() -> Iterator[Finding]:
    model, flags = platform.machine(), set()
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    known = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
    found = [k for k in known if k in flags]
    fast = bool({"avx2", "asimd"} & flags)
    yield Finding(
        "simd", "ok" if fast else "advice", f"{model}: {' '.join(found) or 'none known'}",
        "" if fast else "a CPU with AVX2 trains several times as fast",
    )  # fmt: skip


def cores() -> Iterator[Finding]:
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    quota = "no control group limit" if limit is None else f"control groups allow {limit:g}"
    usable = max(1, mask if limit is None else min(mask, round(limit)))
    machine = f"{os.cpu_count()} in the machine, {mask} in the affinity mask"
    yield Finding(
        "cores", "ok" if usable > 1 else "advice", f"{usable} usable: {machine}, {quota}",
        "" if usable > 1 else "on one core the processes take turns; two train much faster",
    )  # fmt: skip


def memory() -> Iterator[Finding]:
    import psutil

    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    left = memory_left()
    usable = free if left is None else min(free, left)
    bound = left is not None and left < total
    limit = f"control groups leave {_size(usable)}" if bound else "no control group limit"
    enough = usable >= LEAST_MEMORY
    yield Finding(
        "memory", "ok" if enough else "wrong",
        f"{_size(usable)} usable: {_size(free)} of {_size(total)} available, {limit}",
        "" if enough else "close other programs, or raise the limit; --replay.capacity 100000 "
        "keeps the replay small",
    )  # fmt: skip
    if Path("/dev/shm").is_dir():
        room = shutil.disk_usage("/dev/shm")
        yield Finding("/dev/shm", "ok", f"{_size(room.free)} of {_size(room.total)}; not needed")


def kernel() -> Iterator[Finding]:
    """Anonymous memory with a sealed size, and process descriptors: the asynchronous mode's."""
    serial = "the asynchronous mode needs it; fdql train --serial works without"
    try:
        fd = os.memfd_create("fdql-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, 4096)
        finally:
            os.close(fd)
        yield Finding("memfd", "ok", "anonymous shared memory works")
    except (OSError, AttributeError) as error:
        there = os.access("/dev/shm", os.W_OK)
        yield Finding(
            "memfd", "advice" if there else "wrong", f"refused: {error}",
            "a file without a name in /dev/shm takes its place" if there else serial,
        )  # fmt: skip
    try:
        os.close(os.pidfd_open(os.getpid()))
        yield Finding("pidfd", "ok", "the kernel reports the death of processes")
    except (OSError, AttributeError) as error:
        instead = "Linux 5.3 or later; without it a death is noticed within 100 ms"
        yield Finding("pidfd", "advice", f"refused: {error}", instead)


def files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= 256 or soft == resource.RLIM_INFINITY
    yield Finding(
        "open files", "ok" if enough else "advice", f"{soft} allowed, {hard} at most",
        "" if enough else "ulimit -n 1024",
    )  # fmt: skip
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield Finding(
            "address space", "advice", f"limited to {_size(space)} a process", "ulimit -v unlimited"
        )


def cache() -> Iterator[Finding]:
    """Where the compiled kernels are kept: without it every start takes most of a minute."""
    from fdql.children import child_environment

    folder = Path(child_environment(1).get("NUMBA_CACHE_DIR", Path(__file__).parent))
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    good = os.access(nearest, os.W_OK)
    yield Finding(
        "kernel cache", "ok" if good else "wrong", str(folder),
        "" if good else "every run compiles for most of a minute: export NUMBA_CACHE_DIR=~/.cache/"
        "fdql, or another folder that you may write to",
    )  # fmt: skip


def blas() -> Iterator[Finding]:
    """The BLAS that Numba's kernels call (scipy's), and what it makes of one core."""
    import numpy as np
    from scipy.linalg.blas import sgemm
    from threadpoolctl import threadpool_info, threadpool_limits

    pools = [p for p in threadpool_info() if p["user_api"] == "blas"]
    kinds = {f"{p['internal_api']} {p['version']} {p.get('architecture') or ''}" for p in pools}
    a = np.asfortranarray(np.random.default_rng(0).random((512, 512), dtype=np.float32))
    best = float("inf")
    with threadpool_limits(1):
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            t0 = time.perf_counter()
            sgemm(1.0, a, a)
            best = min(best, time.perf_counter() - t0)
    rate = 2 * 512**3 / best / 1e9
    found = f"{'; '.join(sorted(k.strip() for k in kinds)) or 'unknown'}: {rate:.0f} GFLOP/s"
    fast = rate > SLOW_GFLOPS
    yield Finding(
        "blas", "ok" if fast else "wrong", f"{found} float32 on one core (512 x 512)",
        "" if fast else f"it does not use this CPU; the one in scipy's wheel does: {install()}",
    )  # fmt: skip


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
