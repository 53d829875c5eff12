"""Limits of control groups, in folders written by hand: both versions, nested, and none."""

from __future__ import annotations

from pathlib import Path

import pytest
from fdql.cgroup import cpu_limit, folders, memory_left

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        controller, _, rest = name.partition("_")
        (folder / f"{controller}.{rest}").write_text(text + "\n")


def describe(proc: Path, groups: str, mounts: list[str]) -> None:
    (proc / "cgroup").write_text(groups)
    lines = [f"{30 + i} 20 0:{i} {mount}\n" for i, mount in enumerate(mounts)]
    (proc / "mountinfo").write_text("".join(lines))


def test_version_2_takes_the_smallest_limit_of_all_groups_around(proc: Path, tmp_path: Path):
    top = tmp_path / "cg"
    describe(proc, "0::/a/b\n", [f"/ {top} rw shared:9 - cgroup2 cgroup2 rw,nsdelegate"])
    write(top / "a" / "b", cpu_max="max 100000", memory_max="max", memory_current="5")
    write(top / "a", cpu_max="150000 100000", memory_max=str(4 * GIB), memory_current=str(3 * GIB))
    (top / "a" / "memory.stat").write_text(f"anon 7\ninactive_file {GIB // 2}\n")
    write(top, cpu_max="800000 100000")
    assert folders("cpu", proc) == [top / "a" / "b", top / "a", top]
    assert cpu_limit(proc) == 1.5  # 150 ms of CPU time in 100 ms
    assert memory_left(proc) == GIB + GIB // 2  # 4 - 3, and half a GiB of file cache


def test_version_1_reads_each_controllers_own_hierarchy(proc: Path, tmp_path: Path):
    cpu, memory = tmp_path / "cpu", tmp_path / "memory"
    # A container: the process is in /docker/x, and the mount shows that group as its top.
    describe(
        proc,
        "5:memory:/docker/x\n4:cpuacct,cpu:/docker/x\n1:name=systemd:/docker/x\n",
        [
            f"/docker/x {cpu} rw - cgroup cgroup rw,cpuacct,cpu",
            f"/docker/x {memory} rw - cgroup cgroup rw,memory",
        ],
    )
    write(cpu, cpu_cfs_quota_us="300000", cpu_cfs_period_us="100000")
    write(memory, memory_limit_in_bytes=str(2 * GIB), memory_usage_in_bytes=str(3 * GIB))
    assert cpu_limit(proc) == 3.0
    assert memory_left(proc) == 0


def test_no_quota_is_no_limit(proc: Path, tmp_path: Path):
    cpu = tmp_path / "cpu"
    describe(proc, "4:cpu:/\n", [f"/ {cpu} rw - cgroup cgroup rw,cpu"])
    write(cpu, cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    assert cpu_limit(proc) is None
    assert cpu_limit(tmp_path / "missing") is None
    assert memory_left(tmp_path / "missing") is None
