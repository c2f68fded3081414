"""Classic Spark: the JVM of the driver can be called."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pyspark
from py4j.protocol import Py4JError
from pyspark import InheritableThread, SparkFiles

from spark_hpo.backend.spark.cluster import is_dynamic, is_local
from spark_hpo.backend.spark.shutdown import ShutdownHold
from spark_hpo.errors import BackendError

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession


class ClassicCluster:
    """A session with a SparkContext."""

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark

    def setting(self, key: str, default: str = "") -> str:
        value = self.spark.sparkContext.getConf().get(key, default)
        assert value is not None, "there is a default"
        return value

    @property
    def driver_host(self) -> str:
        return "127.0.0.1" if is_local(self) else self.setting("spark.driver.host")

    @property
    def driver_bind_address(self) -> str:
        # Differs from the host's address where there is address translation in between.
        host = self.driver_host
        return host if is_local(self) else self.setting("spark.driver.bindAddress", host)

    def can_grow(self) -> bool:
        most = self.setting("spark.dynamicAllocation.maxExecutors", "infinity")
        return is_dynamic(self) and self._num_executors() < float(most)

    def num_task_slots(self, profile: ResourceProfile | None) -> int:
        """The number that Spark's own barrier check uses."""
        with _alive():
            context = self.spark.sparkContext._jsc.sc()
            manager = context.resourceProfileManager()
            if profile is None:
                return int(context.maxNumConcurrentTasks(manager.defaultResourceProfile()))
            manager.addResourceProfile(profile._java_resource_profile)  # idempotent
            return int(context.maxNumConcurrentTasks(profile._java_resource_profile))

    def thread(self, target: Callable[..., None], *args: object) -> Thread:
        # Spark 3.5 takes no session: a thread belongs to the one context.
        session = {} if pyspark.__version__.startswith("3.") else {"session": self.spark}
        return InheritableThread(target=target, args=args, daemon=True, **session)

    def tag(self, *tags: str, description: str) -> None:
        for tag in tags:
            self.spark.sparkContext.addJobTag(tag)
        self.spark.sparkContext.setJobDescription(description)

    def use_pool(self, name: str) -> None:
        self.spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)

    def cancel(self, tag: str) -> None:
        # Spark may have stopped already: Ctrl-C ends the JVM of spark-submit too.
        with contextlib.suppress(Py4JError, OSError):
            self.spark.sparkContext.cancelJobsWithTag(tag)

    def running_jobs(self, tag: str) -> list[int] | None:
        with contextlib.suppress(Py4JError, AttributeError, OSError):
            tracker, as_text = self._job_tracker
            running = json.loads(as_text(tracker.getActiveJobIds()))
            tagged = json.loads(as_text(tracker.getJobIdsForTag(tag))) if running else []
            return sorted(set(running) & set(tagged))
        return None

    def shutdown_hold(self, notice: Callable[[], None], *, limit_s: float) -> ShutdownHold:
        return ShutdownHold(self.spark.sparkContext._jvm, notice, limit_s=limit_s)

    def ship(self, file: Path, *, name: str = "") -> None:
        if name:
            # Executors fetch it while the session lasts, and Spark deletes its temporary folder at the end.
            copy = Path(SparkFiles.getRootDirectory()).parent / name
            if not copy.exists():
                shutil.copyfile(file, copy)
            file = copy
        self.spark.sparkContext.addPyFile(str(file))

    @cached_property
    def _job_tracker(self) -> tuple[Any, Callable[[Any], str]]:
        """Spark's status tracker, and a function that reads a whole Java array in one call."""
        context: Any = self.spark.sparkContext
        return context._jsc.sc().statusTracker(), context._jvm.java.util.Arrays.toString

    def _num_executors(self) -> int:
        with _alive():
            managers = self.spark.sparkContext._jsc.sc().getExecutorMemoryStatus()
            return int(managers.size()) - 1  # without the driver's own


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (Py4JError, AttributeError, OSError) as exc:  # PySpark sets _jsc to None when it stops
        raise BackendError(
            "Spark has stopped, or its JVM has died. Rerun the same command to resume"
        ) from exc
