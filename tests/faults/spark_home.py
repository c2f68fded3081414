"""A Spark whose processes start fast, because a suite of faults starts hundreds of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from standalone import SPARK

LIMIT_S = 240.0
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
        subprocess.run(
            [sys.executable, "-c", _ALL_KINDS, str(archive)],
            env={**os.environ, **self.environment, "PYSPARK_PYTHON": sys.executable},
            check=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        if archive.exists():
            self.environment["JDK_JAVA_OPTIONS"] += " " + _SHARED.format(archive=archive)
