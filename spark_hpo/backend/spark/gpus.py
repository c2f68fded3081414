"""GPUs as Spark hands them out: whole ones, several a rank, or a share of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyspark

from spark_hpo.backend.spark.cluster import Cluster, is_local
from spark_hpo.errors import CapacityError

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile

_PER_TASK = "spark.task.resource.gpu.amount"
_PER_EXECUTOR = "spark.executor.resource.gpu.amount"


def gpu_profile(cluster: Cluster, gpus_per_rank: float) -> ResourceProfile | None:
    """What Spark must give to each task; None: what it gives to all tasks of the application is right.

    Raises:
        CapacityError: Spark cannot hand out so many; the message says which setting is missing.
    """
    if gpus_per_rank == 0 or float(cluster.setting(_PER_TASK) or 0) == gpus_per_rank:
        return None
    asked = f"resources.gpus_per_rank is {gpus_per_rank:g}, but"
    if is_local(cluster):
        raise CapacityError(
            f"{asked} Spark hands out no GPUs with {cluster.setting('spark.master')}: take backend: inline "
            "on one machine, or a cluster (docs/cluster.md)"
        )
    present = float(cluster.setting(_PER_EXECUTOR) or 0)
    if present < gpus_per_rank:
        raise CapacityError(
            f"{asked} {_PER_EXECUTOR} is {present:g}: give executors at least {max(1, gpus_per_rank):g}, and "
            "a spark.executor.resource.gpu.discoveryScript (docs/cluster.md)"
        )
    if pyspark.__version__.startswith("3."):
        raise CapacityError(
            f"{asked} {_PER_TASK} is {cluster.setting(_PER_TASK, '0')}, and Spark before 4.0 gives every "
            f"task the same: set it to {gpus_per_rank:g}"
        )
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cpus = int(cluster.setting("spark.task.cpus", "1"))
    # Without a word on executors it holds for those that are there.
    request = TaskResourceRequests().cpus(cpus).resource("gpu", gpus_per_rank)
    profile: ResourceProfile = ResourceProfileBuilder().require(request).build
    return profile
