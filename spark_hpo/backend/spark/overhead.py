"""The memory of an executor that its Python processes may use: the memory overhead."""

from __future__ import annotations

import re

from spark_hpo.backend.spark.cluster import Cluster

_SIZE = re.compile(r"(\d+) *(?:([kmgt])b?|b)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def overhead_per_rank(cluster: Cluster) -> int | None:
    """Return the bytes of memory overhead for each task that an executor runs at once.

    None: Spark's settings do not tell, or the overhead is not what limits Python. Spark Connect, for example,
    may hide them.
    """
    overhead = _bytes(cluster.setting("spark.executor.memoryOverhead"))
    cores = cluster.setting("spark.executor.cores")
    if overhead is None or not cores.isdecimal() or cluster.setting("spark.executor.pyspark.memory"):
        return None
    per_task = cluster.setting("spark.task.cpus", "1")
    tasks = int(cores) // int(per_task) if per_task.isdecimal() else 1
    return overhead // max(1, tasks)


def _bytes(text: str) -> int | None:
    """Return a size as Spark reads it, in MiB if it has no unit: `512`, `2g`, `1024 mb`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit = match.groups()
    if unit is None:
        return int(number) * (1 if text.strip()[-1] in "bB" else 2**20)
    return int(number) << 10 * _POWERS[unit.lower()]
