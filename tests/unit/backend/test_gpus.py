"""The GPUs of a rank, and the profile requested from Spark. No GPU is needed."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.backend.spark.gpus import gpu_profile
from spark_hpo.backend.spark.task import claim_gpus
from spark_hpo.config import ResourcesConfig
from spark_hpo.errors import CapacityError
from tests.support.fixed_cluster import FixedCluster


def test_claim_gpus_ignores_a_stale_environment() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0", "OTHER": "stays"}
    assert claim_gpus(["5", "2"], environment) == (5, 2)
    assert environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OTHER": "stays"}


def test_claim_gpus_makes_only_named_gpus_visible() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    assert claim_gpus(["MIG-1a", "MIG-2b"], environment) == (0, 1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "MIG-1a,MIG-2b"


def test_gpu_profile_is_none_if_every_task_has_the_gpus_anyway() -> None:
    cluster = FixedCluster(task_resource_gpu_amount="0.5", executor_resource_gpu_amount="1")
    assert gpu_profile(cluster, 0) is None
    assert gpu_profile(cluster, 0.5) is None


@pytest.mark.parametrize(
    ("settings", "gpus", "present", "needed"),
    [
        ({"master": "yarn"}, 0.25, "spark.executor.resource.gpu.amount, which is 0", "to 1 or more"),
        (
            {"master": "yarn", "executor_resource_gpu_amount": "2"},
            4,
            "spark.executor.resource.gpu.amount, which is 2",
            "to 4 or more",
        ),
    ],
)
def test_gpu_profile_refuses_missing_gpus_with_the_setting(
    settings: dict[str, str], gpus: float, present: str, needed: str
) -> None:
    with pytest.raises(CapacityError) as caught:
        gpu_profile(FixedCluster(**settings), gpus)
    assert (caught.value.key, caught.value.value) == ("resources.gpus_per_rank", gpus)
    assert present in caught.value.rule
    assert needed in caught.value.cure


@pytest.mark.parametrize("gpus", [0, 0.25, 0.5, 1, 2])
def test_gpus_per_rank_may_be_a_fraction_or_a_whole_number(gpus: float) -> None:
    assert ResourcesConfig(gpus_per_rank=gpus).gpus_per_rank == gpus


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus_per_rank": 0.75}, "a whole number, or at most 0.5"),
        ({"gpus_per_rank": 1.5}, "a whole number, or at most 0.5"),
        ({"gpus_per_rank": 0.5, "world_size": 2}, "ranks of one trial cannot share a GPU"),
        ({"gpus_per_rank": -1}, "greater than or equal to 0"),
    ],
)
def test_gpus_per_rank_refuses_other_fractions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResourcesConfig(**settings)
