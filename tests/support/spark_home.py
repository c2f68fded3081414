"""A Spark whose processes start fast, because a suite of faults starts hundreds of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.standalone import SPARK

LIMIT_S = 120.0
# Compiled once and plainly: none of these JVMs lives for a minute.
_QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
# A JVM of another class path goes without the archive; it must not say so where its parent reads.
_SHARED = "-XX:SharedArchiveFile={archive} -Xshare:auto -Xlog:disable -Xlog:all=error:stderr"
_ALL_KINDS = """
import sys
from pyspark.sql import SparkSession

option = "-XX:ArchiveClassesAtExit=" + sys.argv[1]
builder = SparkSession.builder.config("spark.driver.extraJavaOptions", option)
builder = builder.config("spark.master", "local-cluster[1,1,1024]").config("spark.executor.memory", "512m")
spark = builder.config("spark.ui.enabled", "false").getOrCreate()
spark.range(0, 2, 1, 2).mapInArrow(lambda batches: batches, "id long").collect()
spark.stop()
"""


class SparkHome:
    """The installed Spark, with a folder of its own for what executors write.

    `local-cluster` puts that beside the jars. The loaded classes of a first session are kept in an archive,
    from which later JVMs take them: a third of a JVM's start is left.
    """

    def __init__(self, folder: Path) -> None:
        home = folder / "spark"
        home.mkdir()
        for path in SPARK.iterdir():
            if path.name != "work":
                (home / path.name).symlink_to(path)
        archive = folder / "classes.jsa"
        self.environment = {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "JDK_JAVA_OPTIONS": _QUICK,
        }
        if _is_made(archive, self.environment):  # without it all is slower, and the same
            self.environment["JDK_JAVA_OPTIONS"] += " " + _SHARED.format(archive=archive)


def _is_made(archive: Path, environment: Mapping[str, str]) -> bool:
    process = subprocess.Popen(
        [sys.executable, "-c", _ALL_KINDS, str(archive)],
        env={**os.environ, **environment, "PYSPARK_PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(LIMIT_S) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
