"""Kills processes that outlive the Spark worker that started them. Runs in PySpark's daemon.

Spark kills the Python worker of a cancelled rank, so the rank cannot stop its own children, for instance data
loaders. Linux makes them children of the nearest ancestor that is a subreaper; that is the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Callable
from typing import Any

import psutil

_MARK = "SPARK_HPO_WORKER"  # environment variable of the processes that a worker starts: its pid
_PR_SET_CHILD_SUBREAPER = 36
_GENERATIONS = 10  # the children of a killed orphan become orphans

_workers: set[int] = set()


def adopt(daemon: Any) -> None:
    """Make PySpark's daemon, in this process, kill the orphans of each worker that has ended."""
    try:
        refused = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):  # not Linux: init adopts orphans
        return
    if refused:
        return
    os.fork = _record_pids_of(os.fork)
    # The daemon's loop calls it once a second, and for every event.
    daemon.select = _Select()


def mark() -> None:
    """Mark the processes that this worker starts from now on."""
    os.environ[_MARK] = str(os.getpid())


def _record_pids_of(fork: Callable[[], int]) -> Callable[[], int]:
    def recording() -> int:
        pid = fork()
        if pid:
            _workers.add(pid)
        else:
            os.fork = fork  # only the daemon records its children
        return pid

    return recording


class _Select:
    """Replaces the module `select`. Looks for orphans after each wait (`poll` in newer versions of Spark)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def select(self, *arguments: Any) -> Any:
        ready = select.select(*arguments)
        _kill_orphans()
        return ready

    def poll(self) -> _Poll:
        return _Poll(select.poll())


class _Poll:
    def __init__(self, poll: Any) -> None:
        self._poll = poll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poll, name)

    def poll(self, *arguments: Any) -> Any:
        ready = self._poll.poll(*arguments)
        _kill_orphans()
        return ready


def _kill_orphans() -> None:
    ended = {pid for pid in _workers if not psutil.pid_exists(pid)}
    if ended:
        _workers.difference_update(ended)
        for _ in range(_GENERATIONS):
            if not _kill_one_generation():
                break


def _kill_one_generation() -> bool:
    found = False
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ValueError):
            if child.pid in _workers or int(child.environ().get(_MARK, 0)) in _workers:
                continue
            child.kill()
            child.wait(1.0)
            found = True
    return found
