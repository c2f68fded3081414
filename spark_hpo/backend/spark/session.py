"""The Spark session of a study: the one that runs, or a new one, with executors that can train."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TYPE_CHECKING

from spark_hpo.backend.spark import package
from spark_hpo.backend.spark.cluster import Cluster, cluster_of, first_line, is_connect, is_dynamic, is_local
from spark_hpo.backend.spark.probe import missing_modules
from spark_hpo.config import databricks
from spark_hpo.errors import BackendError, CapacityError

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_DAEMON = "spark.python.daemon.module"
_OURS, _PLAIN = "spark_hpo.daemon", "pyspark.daemon"
_PYTHON_PATH = "spark.executorEnv.PYTHONPATH"
_REMOTE = "spark.remote"
# What Spark itself fills in when it was told nothing: nobody's wish.
_FILLED_IN = {"spark.master": "local[*]", "spark.ui.showConsoleProgress": "true"}
_NEEDED = ("torch", "pyarrow")  # by every rank
_ANSWER_LIMIT_S = 60.0  # for a Connect server
_WARM_UP_LIMIT_S = 60.0
_JVM_LIMIT_S = 20.0  # to be there, when the driver ends at once

DEFAULTS = {
    # Workers are forked from a process that has torch loaded, and each serves one rank only.
    _DAEMON: _OURS,
    "spark.python.worker.reuse": "false",
    # Retries are the study's: Spark would run an assignment again behind its back.
    "spark.task.maxFailures": "1",
    "spark.sql.shuffle.partitions": "8",  # the preparation of small tables; big ones set their own
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}


def start_session(
    name: str, settings: Mapping[str, str], *, timeout_s: float = 600.0, spark: SparkSession | None = None
) -> SparkSession:
    """The running session, or a new one, on Connect when `spark.remote` or SPARK_REMOTE says so.

    What `spark-submit` was given wins over `settings`, and these over our defaults. Without a master it is
    `local[*]`. Executors that lack the package get it.

    Args:
        timeout_s: for the first executor to come.
        spark: the session to be used; its settings stay as they are.

    Raises:
        BackendError: Python does not start on the executors, or lacks torch or pyarrow.
        CapacityError: no executor came in time.
        ConfigError: there is no Java here.
    """
    from pyspark.sql import SparkSession

    from spark_hpo.backend.spark.java import java_is_needed  # it loads Spark, too

    conf: SparkConf | None = None  # of a session that is ours
    spark = spark or SparkSession.getActiveSession()
    if spark is None and (settings.get(_REMOTE) or os.environ.get("SPARK_REMOTE")):
        spark = _start_remote(name, settings, timeout_s)
    elif spark is None and _has_context():
        spark = SparkSession.builder.getOrCreate()  # active in another thread, and left as it is
    elif spark is None:
        with java_is_needed():
            conf = _configuration(name, settings)
            spark = SparkSession.builder.config(conf=conf).getOrCreate()
        if is_local(cluster_of(spark)):
            _warm_up(cluster_of(spark))
    if is_local(cluster_of(spark)) and not is_connect(spark):
        return spark
    try:
        missing = _missing_on_executors(cluster_of(spark), timeout_s)
    except _NoDaemonError:
        if conf is None:
            raise
        spark = _without_our_daemon(spark, conf)
        missing = _missing_on_executors(cluster_of(spark), timeout_s)
    _equip(cluster_of(spark), missing)
    return spark


def start_jvm(settings: Mapping[str, str]) -> None:
    """Have Spark's JVM start in the background, while the driver imports what takes as long: torch, MLflow.

    Nothing happens where `start_session` would start none. What goes wrong is said there, where it is tried
    again.

    Args:
        settings: as for `start_session`.
    """
    from pyspark import SparkContext

    is_there = "PYSPARK_GATEWAY_PORT" in os.environ or SparkContext._gateway is not None
    is_elsewhere = settings.get(_REMOTE) or os.environ.get("SPARK_REMOTE") or databricks.is_runtime()
    home = os.environ.get("JAVA_HOME")
    has_java = shutil.which(str(Path(home) / "bin/java") if home else "java") is not None
    if is_there or is_elsewhere or not has_java:
        return

    def run() -> None:
        with contextlib.suppress(Exception):
            SparkContext._ensure_initialized()

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the JVM takes it from its environment
    thread = Thread(target=run, name="spark_hpo-jvm", daemon=True)
    thread.start()
    # A process that ends at once must not leave a JVM that has nobody to tell that it is there.
    atexit.register(thread.join, _JVM_LIMIT_S)


def running_session() -> SparkSession | None:
    """The session that a study would take; None: it would have to start one."""
    if "pyspark" not in sys.modules:
        return None
    from pyspark.sql import SparkSession

    spark = SparkSession.getActiveSession()
    if spark is None and _has_context():
        spark = SparkSession.builder.getOrCreate()  # active in another thread
    return spark


def is_on_a_cluster(spark: SparkSession | None) -> bool:
    """Whether the session that a study would use, if one runs, has executors on other machines.

    Args:
        spark: the session to be used; None: any that runs.
    """
    spark = spark or running_session()
    return spark is not None and not is_local(cluster_of(spark))


def _has_context() -> bool:
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def _configuration(name: str, settings: Mapping[str, str]) -> SparkConf:
    from pyspark import SparkConf, SparkContext

    # Without it Spark runs whatever python3 is first on the path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    SparkContext._ensure_initialized()  # so that SparkConf sees what spark-submit was given
    conf = SparkConf()
    wanted = {**DEFAULTS, "spark.app.name": name, **settings}
    for key, value in _FILLED_IN.items():
        if conf.get(key) == value:
            conf.set(key, wanted.get(key, value))
    for key, value in wanted.items():
        conf.setIfMissing(key, value)
    # Files of --py-files lie where executors start Python, but Spark tells their Python only after its
    # daemon has started: too late for ours, which is in one of them.
    shipped = [PurePosixPath(file).name for file in (conf.get("spark.submit.pyFiles") or "").split(",")]
    archives = [file for file in shipped if file.endswith((".zip", ".egg", ".whl"))]
    if archives:
        before = conf.get(_PYTHON_PATH)
        conf.set(_PYTHON_PATH, os.pathsep.join([*archives, *([before] if before else [])]))
    return conf


def _start_remote(name: str, settings: Mapping[str, str], timeout_s: float) -> SparkSession:
    from pyspark.sql import SparkSession

    place = settings.get(_REMOTE) or os.environ["SPARK_REMOTE"]
    sessions: list[SparkSession] = []
    failures: list[Exception] = []

    def start() -> None:
        builder = SparkSession.builder.appName(name)
        for key, value in settings.items():
            builder = builder.config(key, value)
        try:
            spark = builder.getOrCreate()
            spark.version  # noqa: B018 - the first question to the server
            sessions.append(spark)
        except Exception as exc:  # of gRPC, of Spark, or an import of what Connect needs
            failures.append(exc)

    # The client tries for ten minutes, whoever is there.
    thread = Thread(target=start, daemon=True)
    thread.start()
    thread.join(min(timeout_s, _ANSWER_LIMIT_S))
    if sessions:
        return sessions[0]
    reason = first_line(failures[0]) if failures else "it does not answer"
    raise BackendError(
        f"{place}: no session on this Connect server: {reason}. Is it running there, and has this Python "
        "what pip install 'spark_hpo[connect]' brings?"
    )


class _NoDaemonError(BackendError):
    """Executors cannot import the daemon that is to fork their workers."""


def _missing_on_executors(cluster: Cluster, timeout_s: float) -> set[str]:
    """What they cannot import, of the package and what each rank needs.

    Raises:
        BackendError: Python does not start on the executors.
        CapacityError: no executor came in time.
    """
    try:
        return missing_modules(cluster, (package.NAME, *_NEEDED), timeout_s=timeout_s)
    except CapacityError:
        raise
    except Exception as exc:  # of Spark, py4j or gRPC, each with types of its own
        kind = _NoDaemonError if _OURS in str(exc) else BackendError
        raise kind(f"Python does not start on the executors: {_telling_line(exc)}") from exc


def _without_our_daemon(spark: SparkSession, conf: SparkConf) -> SparkSession:
    """Another session in its place: an application's settings are fixed when it starts."""
    from pyspark.sql import SparkSession

    if conf.get("spark.master") == "yarn" and conf.get("spark.submit.deployMode") == "cluster":
        raise BackendError(  # there the application and the driver's process are one
            f"executors cannot import {_OURS}: pass --py-files dist/spark_hpo.zip, or "
            f"--conf {_DAEMON}={_PLAIN}"
        )
    logger.warning(
        "executors cannot import %s: Spark is started again without it, and every rank imports torch anew "
        "(about 2 s). Install spark_hpo there, or pass --py-files dist/spark_hpo.zip",
        _OURS,
    )
    spark.stop()
    conf.set(_DAEMON, _PLAIN)
    return SparkSession.builder.config(conf=conf).getOrCreate()


def _warm_up(cluster: Cluster) -> None:
    """Have the JVM load what a first job needs, and Python's daemon import torch, while the study gets ready.

    On a cluster the looks at the executors do the same.
    """

    def run() -> None:
        # What is wrong here is wrong for the first trial too, and is told there.
        with contextlib.suppress(Exception):
            missing_modules(cluster, (), timeout_s=_WARM_UP_LIMIT_S)

    Thread(target=run, name="spark_hpo-warm-up", daemon=True).start()


def _equip(cluster: Cluster, missing: Container[str]) -> None:
    """Give executors the package where it is not installed; what a rank needs beside it, they must have."""
    lacking = [name for name in _NEEDED if name in missing]
    if lacking:
        raise BackendError(
            f"executors cannot import {' and '.join(lacking)}: install it there, or point PYSPARK_PYTHON (on "
            "YARN and Kubernetes spark.pyspark.python) to a Python that has it"
        )
    if package.NAME in missing:
        archive = package.write_zip(Path(tempfile.mkdtemp(prefix="spark_hpo-")) / f"{package.NAME}.zip")
        cluster.ship(archive)
        logger.info("executors do not have %s: it is sent to them", package.NAME)


def check_resources(cluster: Cluster, *, world_size: int) -> None:
    """Refuse what Spark would refuse in every job.

    Raises:
        CapacityError: dynamic allocation with several ranks.
    """
    if world_size > 1 and is_dynamic(cluster):
        raise CapacityError(
            f"resources.world_size is {world_size}, but spark.dynamicAllocation.enabled is true, and Spark "
            "starts no barrier job then: set it to false, or use world_size 1"
        )


def _telling_line(exc: Exception) -> str:
    """The line of a Python worker's error that says what is wrong."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    telling = [line for line in lines if "No module named" in line or "Cannot run program" in line]
    return [*telling, *lines, type(exc).__name__][0]
