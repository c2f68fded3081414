"""Samples what the process of a rank and its child processes use."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple

import psutil

_KIB = 1024
# Times of creation are exact to a second, because that is how exactly the kernel knows when it has started.
_TOLERANCE_S = 1.1


class _Totals(NamedTuple):
    """What processes have used since they began, with the children that they have waited for."""

    cpu_s: float = 0.0
    read_bytes: int = 0  # through calls of read
    disk_bytes: int = 0

    def plus(self, other: _Totals, sign: int = 1) -> _Totals:
        return _Totals(
            self.cpu_s + sign * other.cpu_s,
            self.read_bytes + sign * other.read_bytes,
            self.disk_bytes + sign * other.disk_bytes,
        )


class ProcessMeter:
    """Samples this process, and the child processes that begin after the meter.

    Memory that a child process shares with its parent counts once.

    A trace: the process has used 10 s; a child begins and uses 3 s -> values() with cpu_s 3
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = time.time()
        self._before = _totals(self._process)
        self._peak_before = _peak_bytes()
        self._most = self._process.memory_info().rss
        self._children: list[psutil.Process] = []
        self._now = self._most

    def sample(self) -> None:
        """Find the child processes, and note the memory. Lists all processes of the machine."""
        children = self._process.children(recursive=True)
        self._children = [child for child in children if self._is_ours(child)]
        self._note_memory()

    def values(self) -> dict[str, Any]:
        """Return the fields of `RankUse` about processes. Does not look for further child processes."""
        self._note_memory()
        used = self._used()
        # In a process that has run other trials before, the peak may be of one of those.
        peak = _peak_bytes()
        return {
            "cpu_s": round(used.cpu_s, 3),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": max(self._most, peak) if peak > self._peak_before else self._most,
            "read_bytes": used.read_bytes,
            "disk_bytes": used.disk_bytes,
        }

    def now(self) -> tuple[float, int]:
        """Return the processor time so far, and the memory at the last sample."""
        return self._used().cpu_s, self._now

    def _used(self) -> _Totals:
        used = _totals(self._process).plus(self._before, -1)
        for child in self._children:
            with contextlib.suppress(psutil.Error):
                if child.is_running():  # what it has used is else part of this process's totals
                    used = used.plus(_totals(child))
        return used

    def _note_memory(self) -> None:
        used = self._process.memory_info().rss
        for child in self._children:
            with contextlib.suppress(psutil.Error):
                used += child.memory_full_info().uss  # without what it shares, such as its parent's pages
        self._now, self._most = used, max(self._most, used)

    def _is_ours(self, child: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return bool(child.create_time() > self._began - _TOLERANCE_S)
        return False


def _totals(process: psutil.Process) -> _Totals:
    times = process.cpu_times()
    cpu_s = times.user + times.system + times.children_user + times.children_system
    try:
        files = process.io_counters()
    except (psutil.Error, OSError):  # a container may forbid it
        return _Totals(cpu_s)
    return _Totals(cpu_s, files.read_chars, files.read_bytes)


def _peak_bytes() -> int:
    """Return the most resident memory of this process so far; 0: the system does not tell."""
    # Not ru_maxrss, which a process inherits from the one that has started it.
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIB
    return 0
