"""Kills processes that outlive the rank that started them, such as the workers of a data loader.

A rank that is killed cannot stop its own children. Linux makes them children of the nearest ancestor that is
a subreaper: the process that forks the ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Collection

import psutil

_MARK = "SPARK_HPO_WORKER"  # environment variable of the processes that a rank starts: the rank's pid
_PR_SET_CHILD_SUBREAPER = 36
_GENERATIONS = 10  # the children of a killed stray become strays


def adopt() -> bool:
    """Make this process the parent of the strays of its children. False: this system cannot do so."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):  # not Linux: init adopts them
        return False


def mark() -> None:
    """Mark the processes that this rank starts from now on."""
    os.environ[_MARK] = str(os.getpid())


def kill(ranks: Collection[int]) -> None:
    """Kill the strays that this process has adopted.

    Args:
        ranks: the pids of the ranks that still run; they and their children are spared.
    """
    for _ in range(_GENERATIONS):
        if not _kill_one_generation(ranks):
            break


def _kill_one_generation(ranks: Collection[int]) -> bool:
    found = False
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ValueError):
            if child.pid in ranks or int(child.environ().get(_MARK, 0)) in ranks:
                continue
            child.kill()
            child.wait(1.0)
            found = True
    return found
