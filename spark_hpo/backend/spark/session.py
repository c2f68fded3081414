"""Finds or starts the Spark session of a study, and makes sure that its executors can train."""

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
from spark_hpo.backend.spark.cluster import Cluster, first_line, is_dynamic, is_local
from spark_hpo.backend.spark.probe import missing_modules
from spark_hpo.backend.spark.quiet import LOG_LEVEL, is_quiet
from spark_hpo.errors import BackendError, CapacityError
from spark_hpo.timeout import call_within

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_DAEMON = "spark.python.daemon.module"
_OURS, _PLAIN = "spark_hpo.daemon", "pyspark.daemon"
_PYTHON_PATH = "spark.executorEnv.PYTHONPATH"
_REMOTE = "spark.remote"
# Spark's own values for settings that are not set.
_FILLED_IN = {"spark.master": "local[*]", "spark.ui.showConsoleProgress": "true"}
_NEEDED = ("torch", "pyarrow")  # by every rank
_ANSWER_LIMIT_S = 60.0  # of a Connect server
_WARM_UP_LIMIT_S = 60.0
_JVM_LIMIT_S = 20.0  # for the JVM to start, when the driver ends at once

_QUIET = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "WARN"}
DEFAULTS = {
    # Workers are forked from a process that has loaded torch, and each serves one rank only.
    _DAEMON: _OURS,
    "spark.python.worker.reuse": "false",
    # The study retries; a retry by Spark would run an assignment twice.
    "spark.task.maxFailures": "1",
    "spark.sql.shuffle.partitions": "8",  # for the preparation of small tables; large ones set their own
    **_QUIET,
}
# Of a session whose jobs are those of the trials' own code: Spark's settings, except for these.
DRIVER_DEFAULTS = {
    "spark.scheduler.mode": "FAIR",
    # A barrier job that never fits fails after 30 s, not after 10 minutes.
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "2",
    **_QUIET,
}


def start_session(
    name: str,
    settings: Mapping[str, str],
    *,
    timeout_s: float = 600.0,
    spark: SparkSession | None = None,
    trains_on_executors: bool = True,
) -> SparkSession:
    """Return the running session or start one, on Connect if `spark.remote` or SPARK_REMOTE is set.

    Arguments of `spark-submit` override `settings`, and those override `DEFAULTS` or `DRIVER_DEFAULTS`. The
    default master is `local[*]`. Executors that lack this package receive it.

    Args:
        timeout_s: for the first executor to register.
        spark: the session to use; its settings are not changed.
        trains_on_executors: False: executors run only the jobs of trials that are in the driver, so they need
            neither torch nor this package.

    Raises:
        BackendError: Python does not start on the executors, or lacks torch or pyarrow.
        CapacityError: no executor registered in time.
        ConfigError: Spark does not start on this machine, for example because Java is missing.
    """
    from pyspark.sql import SparkSession

    conf: SparkConf | None = None  # of a session that is started here
    spark = spark or SparkSession.getActiveSession()
    if spark is None and (settings.get(_REMOTE) or os.environ.get("SPARK_REMOTE")):
        spark = _start_remote(name, settings, timeout_s)
    elif spark is None and _has_context():
        spark = SparkSession.builder.getOrCreate()  # active in another thread
    elif spark is None:
        from spark_hpo.backend.spark.start_errors import explained_start  # needs py4j

        with explained_start():
            defaults = DEFAULTS if trains_on_executors else DRIVER_DEFAULTS
            conf = _configuration(name, {**defaults, **settings})
            spark = SparkSession.builder.config(conf=conf).getOrCreate()
        if trains_on_executors and is_local(cluster_of(spark)):
            _warm_up(cluster_of(spark))
    if not trains_on_executors or (is_local(cluster_of(spark)) and not is_connect(spark)):
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


def start_jvm(settings: Mapping[str, str], *, is_databricks: bool = False) -> None:
    """Start Spark's JVM in the background, while the driver imports torch and MLflow, which takes as long.

    Does nothing where `start_session` would not start a JVM. Errors are ignored, because `start_session`
    meets and reports them.

    Args:
        is_databricks: the process runs on Databricks, which provides a session.
    """
    from pyspark import SparkContext

    has_jvm = "PYSPARK_GATEWAY_PORT" in os.environ or SparkContext._gateway is not None
    is_elsewhere = settings.get(_REMOTE) or os.environ.get("SPARK_REMOTE") or is_databricks
    if has_jvm or is_elsewhere or not has_java():
        return

    def run() -> None:
        with contextlib.suppress(Exception):
            SparkContext._ensure_initialized()

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # the JVM reads it from its environment
    thread = Thread(target=run, name="spark_hpo-jvm", daemon=True)
    thread.start()
    # A process that ends at once must not leave a JVM behind that was about to report to it.
    atexit.register(thread.join, _JVM_LIMIT_S)


def has_java() -> bool:
    """Return True if Spark would find a Java here."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which(str(Path(home) / "bin/java") if home else "java") is not None


def running_session() -> SparkSession | None:
    """The session that a study would use; None: the study would start one."""
    if "pyspark" not in sys.modules:
        return None
    from pyspark.sql import SparkSession

    spark = SparkSession.getActiveSession()
    if spark is None and _has_context():
        spark = SparkSession.builder.getOrCreate()  # active in another thread
    return spark


def is_spark_at_hand(settings: Mapping[str, str]) -> bool:
    """Return True if a Spark session is running or configured for this process.

    Args:
        settings: of Spark, as in a study file.
    """
    named = settings.get("spark.master") or settings.get(_REMOTE) or os.environ.get("SPARK_REMOTE")
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # by spark-submit
    return bool(named or is_submitted or running_session() is not None)


def cluster_of(spark: SparkSession) -> Cluster:
    """The application of a session."""
    if is_connect(spark):
        from spark_hpo.backend.spark.connect import ConnectCluster

        return ConnectCluster(spark)
    from spark_hpo.backend.spark.classic import ClassicCluster  # needs py4j, which Connect clients may lack

    return ClassicCluster(spark)


def is_connect(spark: SparkSession) -> bool:
    """Return whether the session is a client of a Connect server, so there is no JVM to call."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def is_on_a_cluster(spark: SparkSession | None) -> bool:
    """Return whether the session that a study would use is running, with executors on other machines."""
    spark = spark or running_session()
    return spark is not None and not is_local(cluster_of(spark))


def _has_context() -> bool:
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def _configuration(name: str, settings: Mapping[str, str]) -> SparkConf:
    from pyspark import SparkConf, SparkContext

    # Otherwise Spark runs the first python3 on the path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    SparkContext._ensure_initialized()  # so that SparkConf sees what spark-submit was given
    conf = SparkConf()
    wanted = {"spark.app.name": name, **settings}
    for key, value in _FILLED_IN.items():
        if conf.get(key) == value:
            conf.set(key, wanted.get(key, value))
    for key, value in wanted.items():
        if key != LOG_LEVEL or not is_quiet():
            conf.setIfMissing(key, value)
    # Executors receive the files of --py-files, but Spark adds them to the path only after the daemon has
    # started: too late for our daemon, which is in one of them.
    shipped = [PurePosixPath(file).name for file in (conf.get("spark.submit.pyFiles") or "").split(",")]
    archives = [file for file in shipped if file.endswith((".zip", ".egg", ".whl"))]
    if archives:
        before = conf.get(_PYTHON_PATH)
        conf.set(_PYTHON_PATH, os.pathsep.join([*archives, *([before] if before else [])]))
    return conf


def _start_remote(name: str, settings: Mapping[str, str], timeout_s: float) -> SparkSession:
    from pyspark.sql import SparkSession

    place = settings.get(_REMOTE) or os.environ["SPARK_REMOTE"]

    def start() -> SparkSession:
        builder = SparkSession.builder.appName(name)
        for key, value in settings.items():
            builder = builder.config(key, value)
        spark = builder.getOrCreate()
        spark.version  # noqa: B018 - the first request to the server
        return spark

    try:
        # The client itself retries for ten minutes.
        return call_within(min(timeout_s, _ANSWER_LIMIT_S), start)
    except TimeoutError:
        reason = "it does not answer"
    except Exception as exc:  # of gRPC, of Spark, or an import that Connect needs
        reason = first_line(exc)
    raise BackendError(
        f"{place}: cannot open a session on this Connect server: {reason}. Check that it runs there, and "
        "that this Python has the packages of pip install 'pyspark[connect]'"
    )


class _NoDaemonError(BackendError):
    """Executors cannot import the daemon that forks their workers."""


def _missing_on_executors(cluster: Cluster, timeout_s: float) -> set[str]:
    """Find which of this package and the packages of `_NEEDED` executors cannot import."""
    try:
        return missing_modules(cluster, (package.NAME, *_NEEDED), timeout_s=timeout_s)
    except CapacityError:
        raise
    except Exception as exc:  # of Spark, py4j or gRPC, each with their own types
        kind = _NoDaemonError if _OURS in str(exc) else BackendError
        raise kind(f"Python does not start on the executors: {_telling_line(exc)}") from exc


def _without_our_daemon(spark: SparkSession, conf: SparkConf) -> SparkSession:
    """Restart the session with Spark's own daemon: an application's settings are fixed when it starts."""
    from pyspark.sql import SparkSession

    if conf.get("spark.master") == "yarn" and conf.get("spark.submit.deployMode") == "cluster":
        raise BackendError(  # the application cannot be restarted, because the driver runs inside it
            f"executors cannot import {_OURS}: pass --py-files dist/spark_hpo.zip, or "
            f"--conf {_DAEMON}={_PLAIN}"
        )
    logger.warning(
        "executors cannot import %s: restarting Spark without it, so every rank imports torch itself (about "
        "2 s). Install spark_hpo there, or pass --py-files dist/spark_hpo.zip",
        _OURS,
    )
    spark.stop()
    conf.set(_DAEMON, _PLAIN)
    return SparkSession.builder.config(conf=conf).getOrCreate()


def _warm_up(cluster: Cluster) -> None:
    """Run a small job in the background, so that the JVM loads its classes and the daemon imports torch.

    On a cluster the probe of the executors has this effect.
    """

    def run() -> None:
        # The first trial meets the same error, and reports it.
        with contextlib.suppress(Exception):
            missing_modules(cluster, (), timeout_s=_WARM_UP_LIMIT_S)

    Thread(target=run, name="spark_hpo-warm-up", daemon=True).start()


def _equip(cluster: Cluster, missing: Container[str]) -> None:
    """Send this package to executors that lack it; other packages cannot be sent."""
    lacking = [name for name in _NEEDED if name in missing]
    if lacking:
        raise BackendError(
            f"executors cannot import {' and '.join(lacking)}. Install it there, or set PYSPARK_PYTHON (on "
            "YARN and Kubernetes spark.pyspark.python) to a Python that has it"
        )
    if package.NAME in missing:
        with tempfile.TemporaryDirectory() as folder:
            archive = package.write_zip(Path(folder, f"{package.NAME}.zip"))
            cluster.ship(archive, name=archive.name)
        logger.info("executors do not have %s; sending it to them", package.NAME)


def needs_gathering(cluster: Cluster, *, world_size: int | Mapping[int, int], rendezvous: str) -> bool:
    """Return whether trials have several ranks that Spark cannot start together.

    Args:
        rendezvous: `resources.rendezvous`.

    Raises:
        CapacityError: ranks would have to meet in a store on the driver, and there is none, or their number
            grows with the rung.
    """
    if world_size == 1 or not is_dynamic(cluster):
        return False
    if not isinstance(world_size, int):
        raise CapacityError(
            "must be one number while spark.dynamicAllocation.enabled is true, because Spark starts no "
            "executors for slots that are kept for a wider trial",
            key="resources.world_size",
            value=dict(world_size),
            cure="Set spark.dynamicAllocation.enabled to false, or use one number of ranks",
        )
    if cluster.driver_host is None or rendezvous == "spark":
        raise CapacityError(
            "must be 1 while spark.dynamicAllocation.enabled is true and ranks cannot meet on the driver "
            "(Spark Connect, or resources.rendezvous: spark), because Spark runs no barrier jobs then",
            key="resources.world_size",
            value=world_size,
            cure="Set spark.dynamicAllocation.enabled to false, or use world_size 1",
        )
    return True


def _telling_line(exc: Exception) -> str:
    """The line of a Python worker's error that names the cause."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    telling = [line for line in lines if "No module named" in line or "Cannot run program" in line]
    return [*telling, *lines, type(exc).__name__][0]
