"""The cluster protocol: what classic Spark and Spark Connect do in different ways."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

_CANCEL_RETRY_S = 0.1
_CANCEL_LATE_RETRY_S = 1.0  # of threads that have not reacted for long


class Cluster(Protocol):
    """One Spark application, as seen from its driver."""

    spark: SparkSession

    def setting(self, key: str, default: str = "") -> str:
        """A setting of the application; `default` if it is not set."""
        ...

    @property
    def driver_host(self) -> str | None:
        """The address at which executors reach this process; None: they cannot."""
        ...

    @property
    def driver_bind_address(self) -> str | None:
        """The address on which this process listens for executors; None: they cannot reach it."""
        ...

    def can_grow(self) -> bool:
        """Return whether a waiting task makes Spark ask for another executor."""
        ...

    def num_task_slots(self, profile: ResourceProfile | None) -> int:
        """The number of tasks of a profile that run at once, now. None: the application's own profile.

        Raises:
            BackendError: Spark has stopped.
        """
        ...

    def thread(self, target: Callable[..., None], *args: object) -> Thread:
        """A thread, not started yet, whose job tags and descriptions are its own."""
        ...

    def tag(self, *tags: str, description: str) -> None:
        """Tag the jobs of the calling thread for `cancel`, and describe them for Spark's web page."""
        ...

    def use_pool(self, name: str) -> None:
        """Run the jobs of the calling thread in a pool of the scheduler, where Spark lets clients choose."""
        ...

    def cancel(self, tag: str) -> None:
        """Cancel the jobs with a tag. No error if there are none, or if Spark has stopped."""
        ...

    def running_jobs(self, tag: str) -> Collection[int] | None:
        """The ids of the jobs with a tag that run or wait for slots; None: Spark cannot be asked."""
        ...

    def shutdown_hold(self, notice: Callable[[], None], *, limit_s: float) -> AbstractContextManager[object]:
        """A context in which a JVM that is asked to exit calls `notice`, and exits when the context ends."""
        ...

    def ship(self, file: Path, *, name: str = "") -> None:
        """Add a Python module or a zip file to the path of all later tasks.

        Args:
            name: ship a copy under this name, which lasts as long as the session; "": the file itself.
        """
        ...


def is_dynamic(cluster: Cluster) -> bool:
    """Return whether Spark adds and removes executors on demand."""
    return cluster.setting("spark.dynamicAllocation.enabled").lower() == "true" and not is_local(cluster)


def slots_key(cluster: Cluster) -> str:
    """The key under which the studies of this process share the slots of an application."""
    return f"Spark application {cluster.setting('spark.app.id')}"


def is_local(cluster: Cluster) -> bool:
    """Return whether driver and executors are one process, so the number of slots never changes."""
    master = cluster.setting("spark.master")
    return master == "local" or master.startswith("local[")


def cancel_until_ended(
    cluster: Cluster, tag: str, threads: Sequence[Thread], *, limit_s: float | None
) -> None:
    """Cancel the jobs of a tag again and again, until their threads have ended: they may start new jobs.

    Args:
        threads: that run the jobs.
        limit_s: after which threads are left alone; None: no limit.
    """
    deadline = math.inf if limit_s is None else time.monotonic() + limit_s
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        cluster.cancel(tag)
        retry_at = time.monotonic() + (_CANCEL_RETRY_S if limit_s is not None else _CANCEL_LATE_RETRY_S)
        for thread in threads:
            thread.join(max(0.0, retry_at - time.monotonic()))


def first_line(exc: Exception) -> str:
    """The message of an error, without the Java stack trace that follows it."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
