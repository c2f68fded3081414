"""The memory overhead of executors, from the settings of Spark."""

from __future__ import annotations

import pytest

from spark_hpo.backend.spark.overhead import overhead_per_rank
from tests.support.fixed_cluster import FixedCluster


@pytest.mark.parametrize(
    ("overhead", "cores", "cpus", "mib"),
    [
        ("4g", "4", "1", 1024),
        ("1536", "4", "2", 768),
        ("1 GB", "1", "1", 1024),
        ("2048b", "1", "1", 2 / 1024),
    ],
)
def test_overhead_is_divided_among_the_tasks(overhead: str, cores: str, cpus: str, mib: float) -> None:
    cluster = FixedCluster(executor_memoryOverhead=overhead, executor_cores=cores, task_cpus=cpus)
    assert overhead_per_rank(cluster) == mib * 2**20  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"executor_memoryOverhead": ""},
        {"executor_memoryOverhead": "4g"},
        {"executor_memoryOverhead": "much", "executor_cores": "4"},
        {"executor_memoryOverhead": "4g", "executor_cores": "4", "executor_pyspark_memory": "2g"},
    ],
)
def test_overhead_is_unknown_where_the_settings_do_not_tell(settings: dict[str, str]) -> None:
    assert overhead_per_rank(FixedCluster(**settings)) is None  # type: ignore[arg-type]
