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


def check_resources(spark: SparkSession, *, world_size: int, gpus_per_rank: int) -> None:
    """Refuse what Spark would refuse, or get wrong, in every job.

    Raises:
        CapacityError: dynamic allocation with several ranks; GPUs that Spark does not hand out.
    """
    conf = spark.sparkContext.getConf()
    if world_size > 1 and conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise CapacityError(
            f"resources.world_size is {world_size}, but spark.dynamicAllocation.enabled is true, and Spark "
            "starts no barrier job then: set it to false, or use world_size 1"
        )
    amount = conf.get("spark.task.resource.gpu.amount", "0")
    if gpus_per_rank > 0 and float(amount or 0) != gpus_per_rank:
        raise CapacityError(
            f"resources.gpus_per_rank is {gpus_per_rank}, but spark.task.resource.gpu.amount is {amount}: "
            f"set it to {gpus_per_rank}, and give workers a spark.worker.resource.gpu.discoveryScript"
        )
