"""Spark Connect: a client of a remote server, without a JVM and without a SparkContext."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
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

_SPLITS = re.compile(r"splits=(?:Some\()?(\d+)")
_RECOUNT_S = 5.0  # between two requests for the number of slots


class ConnectCluster:
    """A session on a Connect server."""

    driver_host = driver_bind_address = None  # executors know the server, not its clients

    def __init__(self, spark: SparkSession, clock: Callable[[], float] = time.monotonic) -> None:
        self.spark = spark
        self._clock = clock
        self._settings: dict[str, str] = {}  # they do not change while an application runs
        self._slots: int | None = None
        self._counted_at = 0.0

    def setting(self, key: str, default: str = "") -> str:
        if key not in self._settings:
            self._settings[key] = self.spark.conf.get(key, "") or ""
        return self._settings[key] or default

    def can_grow(self) -> bool:
        return is_dynamic(self)

    def num_task_slots(self, profile: ResourceProfile | None) -> int:
        """The number of slots a few seconds ago. `profile` is ignored.

        Connect has no API for it. The plan of a range shows the default number of partitions, which is the
        number of cores in the cluster, and at least two. GPUs are not counted.

        Raises:
            BackendError: the server does not answer, or its plan does not show the number.
        """
        now = self._clock()
        if self._slots is None or now - self._counted_at >= _RECOUNT_S:
            self._slots = self._num_cores() // int(self.setting("spark.task.cpus", "1"))
            self._counted_at = now
        return self._slots

    def _num_cores(self) -> int:
        try:
            plan = str(self.spark.range(1)._explain_string())  # type: ignore[operator] # a column to mypy
        except Exception as exc:  # of gRPC or Spark, each with their own types
            raise BackendError(
                f"the Connect server does not answer ({first_line(exc)}). When it does, rerun the same "
                "command to resume"
            ) from exc
        found = _SPLITS.search(plan)
        if found is None:
            raise BackendError(
                f"the plan of this Connect server (Spark {self.spark.version}) does not show its number of "
                f"cores: {plan.strip()!r}. Use classic Spark, or a version of Spark that was tested "
                "(docs/cluster.md)"
            )
        return int(found.group(1))

    def thread(self, target: Callable[..., None], *args: object) -> Thread:
        return threading.Thread(target=target, args=args, daemon=True)

    def tag(self, *tags: str, description: str) -> None:
        # The server describes jobs by their plan. The tag, which names the trial, is on its web page too.
        for tag in tags:
            self.spark.addTag(tag)

    def use_pool(self, name: str) -> None:
        """Do nothing: a client of a server cannot choose pools."""

    def cancel(self, tag: str) -> None:
        with contextlib.suppress(PySparkException, OSError):
            self.spark.interruptTag(tag)

    def running_jobs(self, tag: str) -> None:
        return None

    def shutdown_hold(self, notice: Callable[[], None], *, limit_s: float) -> AbstractContextManager[object]:
        return contextlib.nullcontext()  # the server does not exit with its clients

    def ship(self, file: Path, *, name: str = "") -> None:
        with tempfile.TemporaryDirectory() as folder:  # the server keeps a copy
            artifact = shutil.copyfile(file, Path(folder, name or file.name))
            self.spark.addArtifacts(str(artifact), pyfile=True)
