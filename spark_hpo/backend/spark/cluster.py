"""The cluster protocol: what classic Spark and Spark Connect do in different ways."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession


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


def is_local(cluster: Cluster) -> bool:
    """Return whether driver and executors are one process, so the number of slots never changes."""
    master = cluster.setting("spark.master")
    return master == "local" or master.startswith("local[")


def first_line(exc: Exception) -> str:
    """The message of an error, without the Java stack trace that follows it."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
