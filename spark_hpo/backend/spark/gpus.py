"""Requests GPUs from Spark: one per rank, several, or a fraction of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyspark

from spark_hpo.backend.spark.cluster import Cluster
from spark_hpo.errors import CapacityError

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile

_PER_TASK = "spark.task.resource.gpu.amount"
_PER_EXECUTOR = "spark.executor.resource.gpu.amount"


def gpu_profile(cluster: Cluster, gpus_per_rank: float) -> ResourceProfile | None:
    """The profile that tasks must request; None: the application's own profile has the right number of GPUs.

    Raises:
        CapacityError: Spark cannot provide the GPUs; the message names the missing setting.
    """
    if gpus_per_rank == 0 or float(cluster.setting(_PER_TASK) or 0) == gpus_per_rank:
        return None
    present = float(cluster.setting(_PER_EXECUTOR) or 0)
    if present < gpus_per_rank:
        raise _error(
            gpus_per_rank,
            f"must be at most {_PER_EXECUTOR}, which is {present:g}",
            f"Set that to {max(1, gpus_per_rank):g} or more, and set "
            "spark.executor.resource.gpu.discoveryScript (docs/cluster.md)",
        )
    if pyspark.__version__.startswith("3."):
        raise _error(
            gpus_per_rank,
            f"must be equal to {_PER_TASK}, which is {cluster.setting(_PER_TASK, '0')}, before Spark 4.0",
            f"Set that to {gpus_per_rank:g}",
        )
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cpus = int(cluster.setting("spark.task.cpus", "1"))
    # Without a request for executors, the profile uses the existing ones.
    request = TaskResourceRequests().cpus(cpus).resource("gpu", gpus_per_rank)
    profile: ResourceProfile = ResourceProfileBuilder().require(request).build
    return profile


def _error(gpus_per_rank: float, rule: str, cure: str) -> CapacityError:
    return CapacityError(rule, key="resources.gpus_per_rank", value=gpus_per_rank, cure=cure)
