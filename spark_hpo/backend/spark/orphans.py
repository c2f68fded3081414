"""What trials leave running when they are killed: the parent of Spark's Python workers makes an end of it.

A cancelled rank is killed where it stands, so nothing of its own can clean up. Linux gives what it has
started to the nearest ancestor that asks for it: the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Callable
from typing import Any

import psutil

_MARK = "SPARK_HPO_WORKER"  # in the environment of what a worker starts: whose it is
_PR_SET_CHILD_SUBREAPER = 36
_GENERATIONS = 10  # what an orphan has started becomes one when it ends

_workers: set[int] = set()


def adopt(daemon: Any) -> None:
    """Have PySpark's daemon, in this process, end the orphans of each of its workers that ends."""
    try:
        refused = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):  # no Linux: init gets them
        return
    if refused:
        return
    os.fork = _noting(os.fork)
    # Its loop comes by here once a second, and whenever something happens.
    daemon.select = _Select()


def mark() -> None:
    """In a worker: what it starts is its own."""
    os.environ[_MARK] = str(os.getpid())


def _noting(fork: Callable[[], int]) -> Callable[[], int]:
    def noting() -> int:
        pid = fork()
        if pid:
            _workers.add(pid)
        else:
            os.fork = fork  # the worker's own children are its own affair
        return pid

    return noting


class _Select:
    """The module `select`, whose waits (poll, in newer Sparks) are followed by a look for orphans."""

    def __getattr__(self, name: str) -> Any:
        return getattr(select, name)

    def select(self, *arguments: Any) -> Any:
        ready = select.select(*arguments)
        _sweep()
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
        _sweep()
        return ready


def _sweep() -> None:
    ended = {pid for pid in _workers if not psutil.pid_exists(pid)}
    if ended:
        _workers.difference_update(ended)
        for _ in range(_GENERATIONS):
            if not _end_orphans():
                break


def _end_orphans() -> bool:
    found = False
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ValueError):
            if child.pid in _workers or int(child.environ().get(_MARK, 0)) in _workers:
                continue
            child.kill()
            child.wait(1.0)
            found = True
    return found
