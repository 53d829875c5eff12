"""What the control groups of this process allow: CPU time and memory. Linux; elsewhere nothing is
limited.

A limit may stand in the process's own group or in any group around it, in version 2 (one hierarchy)
or version 1 (one per controller); the smallest one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")


def _mounts(proc: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Root within the hierarchy, mount point, type, options of every control group mount."""
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = before.split()[3:5]
            yield root, point, kind, options.split(",")


def folders(controller: str, proc: Path = PROC) -> list[Path]:
    """Folders of this process's group and of those around it, innermost first: version 2, then
    version 1's `controller` (cpu or memory). Empty where there are none.
    """
    try:
        own = [line.split(":", 2)[1:] for line in (proc / "cgroup").read_text().splitlines()]
        mounts = list(_mounts(proc))
    except (OSError, ValueError):
        return []
    found: list[Path] = []
    for names, path in own:
        for root, point, kind, options in mounts:
            v2 = kind == "cgroup2" and names == ""
            v1 = kind == "cgroup" and controller in names.split(",") and controller in options
            if not (v1 or v2):
                continue
            try:
                inside = PurePosixPath(path).relative_to(root)
            except ValueError:  # the process sees only a part of the hierarchy
                inside = PurePosixPath()
            group = Path(point) / inside
            found += [g for g in (group, *group.parents) if g.is_relative_to(point)]
    return found


def _number(file: Path, word: int = 0) -> int | None:
    """A number of a limit's file; None where there is no file or no limit ("max", -1)."""
    try:
        value = int(file.read_text().split()[word])
    except (OSError, ValueError, IndexError):
        return None
    return value if value >= 0 else None


def cpu_limit(proc: Path = PROC) -> float | None:
    """Cores' worth of CPU time that the groups allow, None: no limit."""
    limits = []
    for group in folders("cpu", proc):
        for quota, period in (
            (_number(group / "cpu.max"), _number(group / "cpu.max", 1)),
            (_number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")),
        ):
            if quota and period:
                limits.append(quota / period)
    return min(limits, default=None)


def _reclaimable(group: Path) -> int:
    """Bytes of file cache in use by the group that the kernel gives up when asked."""
    try:
        rows = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def memory_left(proc: Path = PROC) -> int | None:
    """Bytes that the groups still allow, None: no limit."""
    left = []
    for group in folders("memory", proc):
        for limit, used in (
            (_number(group / "memory.max"), _number(group / "memory.current")),
            (_number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")),
        ):
            if limit is not None and used is not None:
                left.append(max(0, limit - used + _reclaimable(group)))
    return min(left, default=None)
