"""Spark Connect: a client of a server, without a JVM and without a SparkContext."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from pyspark.errors import PySparkException

from spark_hpo.backend.spark.cluster import first_line, is_dynamic
from spark_hpo.errors import BackendError

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession


class ConnectCluster:
    """A session on a Connect server."""

    driver_host = driver_bind_address = None  # executors know the server, not its clients

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark
        self._settings: dict[str, str] = {}  # each asked for once: an application's do not change

    def setting(self, key: str, default: str = "") -> str:
        if key not in self._settings:
            self._settings[key] = self.spark.conf.get(key, "") or ""
        return self._settings[key] or default

    def can_grow(self) -> bool:
        return is_dynamic(self)

    def num_task_slots(self, profile: ResourceProfile | None) -> int:
        """As many as the server would cut a range into: it has no other word for its cores.

        Never less than two, which is the least that Spark counts. `profile` is not asked: GPUs are counted
        by `spark.executor.cores`, or not at all.
        """
        try:
            plan = self.spark.range(1)._explain_string()  # type: ignore[operator] # a DataFrame has columns, too
        except Exception as exc:  # of gRPC or of Spark: whatever the client raises
            raise BackendError(
                f"the Connect server does not answer ({first_line(exc)}): the same command goes on with the "
                "study when it does"
            ) from exc
        found = re.search(r"splits=(?:Some\()?(\d+)", plan)
        assert found is not None, plan
        return int(found.group(1)) // int(self.setting("spark.task.cpus", "1"))

    def thread(self, target: Callable[..., None], *args: object) -> Thread:
        return threading.Thread(target=target, args=args, daemon=True)

    def tag(self, tag: str, description: str) -> None:
        # The server describes jobs by their plan; the tag, which names the trial, is in its page too.
        self.spark.addTag(tag)

    def cancel(self, tag: str) -> None:
        with contextlib.suppress(PySparkException, OSError):
            self.spark.interruptTag(tag)

    def shutdown_hold(self, notice: Callable[[], None], *, limit_s: float) -> AbstractContextManager[object]:
        return contextlib.nullcontext()  # the server's end is not ours

    def ship(self, file: Path) -> None:
        self.spark.addArtifacts(str(file), pyfile=True)
