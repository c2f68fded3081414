"""The cores of this machine, and the processes that its kernel has killed for lack of memory."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container
_OUT_OF_MEMORY_KILLS = Path("/proc/vmstat")


def num_cores() -> int:
    """Return the cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or "max": no quota
        quota, period = map(int, _CPU_QUOTA.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(cores, 1)


def num_out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it has started."""
    with contextlib.suppress(OSError):
        for line in _OUT_OF_MEMORY_KILLS.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
