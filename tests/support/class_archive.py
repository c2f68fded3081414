"""An archive of the classes that Spark loads, which halves the start-up time of a JVM.

`make test` writes one with `python -m tests.support.class_archive build/spark-classes.jsa`. Without it, or
with the archive of another JVM or class path, JVMs only start more slowly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ARCHIVE = Path(__file__).parents[2] / "build/spark-classes.jsa"
LIMIT_S = 120.0
# The JVMs of tests end before an optimizing compiler or a parallel collector pays off.
_BASE = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
# Without warnings about an archive that does not fit: they would be in the output of the program.
_SHARED = "-XX:SharedArchiveFile={archive} -Xshare:auto -Xlog:disable -Xlog:all=error:stderr"
_LOAD = """
import sys
from pyspark.sql import SparkSession

builder = SparkSession.builder.master(sys.argv[2]).config("spark.ui.enabled", "false")
builder = builder.config("spark.executor.memory", "512m").config("spark.log.level", "OFF")
option = "-XX:ArchiveClassesAtExit=" + sys.argv[1]
spark = builder.config("spark.driver.extraJavaOptions", option).getOrCreate()
spark.range(0, 8, 1, 2).mapInArrow(lambda batches: batches, "id long").collect()
spark.stop()
"""


def java_options(archive: Path = ARCHIVE) -> str:
    """Return options for short-lived JVMs, with the archive if it exists."""
    return f"{_BASE} {_SHARED.format(archive=archive)}" if archive.exists() else _BASE


def write(archive: Path, *, master: str = "local[2]", environment: Mapping[str, str] | None = None) -> None:
    """Write the archive with a short Spark application. A failure leaves no archive."""
    ours = {"PYSPARK_PYTHON": sys.executable, "SPARK_SUBMIT_OPTS": _BASE}
    process = subprocess.Popen(
        [sys.executable, "-c", _LOAD, str(archive), master],
        env={**os.environ, **ours, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        # The output ends with the JVM, which writes the archive when it exits.
        process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    write(Path(sys.argv[1]))
