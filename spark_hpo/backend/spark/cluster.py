"""The seam between a study and its Spark: what classic Spark and Spark Connect do each in its own way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession


class Cluster(Protocol):
    """One Spark application, as its driver sees it."""

    spark: SparkSession

    def setting(self, key: str, default: str = "") -> str:
        """A setting of the application; `default` where it is not set."""
        ...

    @property
    def driver_host(self) -> str | None:
        """The address under which executors reach this process; None: they do not."""
        ...

    @property
    def driver_bind_address(self) -> str | None:
        """The address on which this process listens for them; None: it does not."""
        ...

    def can_grow(self) -> bool:
        """Whether a task that waits makes Spark ask for another executor."""
        ...

    def num_task_slots(self, profile: ResourceProfile | None) -> int:
        """How many tasks of a profile run at once, now; None: the application's own profile.

        Raises:
            BackendError: Spark is gone.
        """
        ...

    def thread(self, target: Callable[..., None], *args: object) -> Thread:
        """A thread whose jobs are its own. Not started yet."""
        ...

    def tag(self, tag: str, description: str) -> None:
        """Mark the jobs of the calling thread, so that they can be cancelled alone and are told apart."""
        ...

    def cancel(self, tag: str) -> None:
        """Cancel the jobs with a tag. No error where there are none, or where Spark is gone."""
        ...

    def shutdown_hold(self, notice: Callable[[], None], *, limit_s: float) -> AbstractContextManager[object]:
        """While it is entered, a JVM that is told to end calls `notice` and waits until it is left again."""
        ...

    def ship(self, file: Path) -> None:
        """Put a Python module or a zip on the path of every task from now on."""
        ...


def cluster_of(spark: SparkSession) -> Cluster:
    """The application of a session."""
    if is_connect(spark):
        from spark_hpo.backend.spark.connect import ConnectCluster

        return ConnectCluster(spark)
    from spark_hpo.backend.spark.classic import ClassicCluster

    return ClassicCluster(spark)


def is_connect(spark: SparkSession) -> bool:
    """Whether a session speaks to a Connect server: there is no JVM in reach then."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def is_dynamic(cluster: Cluster) -> bool:
    """Whether Spark adds and removes executors as tasks wait."""
    return cluster.setting("spark.dynamicAllocation.enabled").lower() == "true" and not is_local(cluster)


def is_local(cluster: Cluster) -> bool:
    """Whether driver and executors are one process: its slots never change."""
    master = cluster.setting("spark.master")
    return master == "local" or master.startswith("local[")


def first_line(exc: Exception) -> str:
    """What an error says, without the stack traces of Java that follow."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
