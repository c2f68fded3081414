"""Makes PySpark's daemon kill the strays of cancelled ranks. Runs in that daemon."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

import psutil

from spark_hpo.backend import strays

_workers: set[int] = set()


def adopt(daemon: Any) -> None:
    """Make PySpark's daemon, in this process, kill the strays of each worker that has ended."""
    if strays.adopt():
        os.fork = _record_pids_of(os.fork)
        # The daemon's loop calls it once a second, and for every event.
        daemon.select = _Select()


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
    """Replaces the module `select`. Looks for strays after each wait (`poll` in newer versions of Spark)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def select(self, *arguments: Any) -> Any:
        ready = select.select(*arguments)
        _kill_strays()
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
        _kill_strays()
        return ready


def _kill_strays() -> None:
    ended = {pid for pid in _workers if not psutil.pid_exists(pid)}
    if ended:
        _workers.difference_update(ended)
        strays.kill(_workers)
