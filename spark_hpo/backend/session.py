"""The Spark session of a study, for those who bring none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spark_hpo.errors import CapacityError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_DEFAULTS = {
    # Workers are forked from a process that has torch loaded, and each serves one rank only.
    "spark.python.daemon.module": "spark_hpo.daemon",
    "spark.python.worker.reuse": "false",
    # Retries are the study's: Spark would run an assignment again behind its back.
    "spark.task.maxFailures": "1",
    "spark.sql.shuffle.partitions": "8",  # the preparation of small tables; big ones set their own
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}


def start_session(name: str, settings: Mapping[str, str]) -> SparkSession:
    """The running session, or a new one.

    What `spark-submit` was given wins over `settings`, and these over our defaults. Without a master it is
    `local[*]`.
    """
    # Without it Spark runs whatever python3 is first on the path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        return running
    SparkContext._ensure_initialized()  # so that SparkConf sees what spark-submit was given
    conf = SparkConf()
    for key, value in {"spark.master": "local[*]", "spark.app.name": name, **settings}.items():
        conf.setIfMissing(key, value)
    for key, value in _DEFAULTS.items():
        conf.setIfMissing(key, value)
    return SparkSession.builder.config(conf=conf).getOrCreate()


def driver_host(spark: SparkSession) -> str:
    """The address under which executors reach the driver."""
    conf = spark.sparkContext.getConf()
    if conf.get("spark.master", "").startswith("local"):
        return "127.0.0.1"
    host = conf.get("spark.driver.host")
    assert host is not None, "Spark sets it when the context starts"
    return host


def check_barrier(spark: SparkSession, world_size: int) -> None:
    """Refuse several ranks a trial where Spark would refuse them in every job.

    Raises:
        CapacityError: dynamic allocation is on.
    """
    if world_size > 1 and spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise CapacityError(
            f"resources.world_size is {world_size}, but spark.dynamicAllocation.enabled is true, and Spark "
            "starts no barrier job then: set it to false, or use world_size 1"
        )
