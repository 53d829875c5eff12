"""The clock of a run: seconds since boot, the one that process start times are on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil


def monotonic() -> float:
    """Seconds on the clock that process start times are on: since boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


def process_start() -> float:
    """When this process was started, on the clock of `monotonic`, within 10 ms."""
    if sys.platform == "linux":  # psutil's create_time adds the boot time rounded to a second
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime, field 22 of the line
    return float(psutil.Process().create_time())
