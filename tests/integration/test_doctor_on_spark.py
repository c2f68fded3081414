"""The doctor's checks on a real Spark: slots, packages on executors, and the first training step."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.backend.base import SharedSlots
from spark_hpo.backend.sharing import open_share
from spark_hpo.backend.spark.cluster import slots_key
from spark_hpo.backend.spark.session import cluster_of
from spark_hpo.config import load_config
from spark_hpo.config.resources import ResourcesConfig
from spark_hpo.doctor import Status, examine
from spark_hpo.doctor.checks import CHECKS
from spark_hpo.doctor.cluster import allocation, differences, other_ports, slots
from spark_hpo.doctor.context import Context
from spark_hpo.doctor.on_executor import executor_info
from spark_hpo.errors import CapacityError
from tests.support.doctor_study import failed, look, write_study

pytestmark = pytest.mark.spark


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def test_doctor_passes_a_study_of_two_ranks_and_leaves_no_files(spark: Any, study: Path) -> None:
    before = sorted(study.rglob("*"))
    found = look("resources.world_size=2", spark=spark)
    assert failed(found) == []
    assert "local[2], in the running session" in found["spark"].message
    assert found["slots"].message == "2 tasks at once: 1 trial of 2 ranks"
    assert "2 slots on 1 machines" in found["executors"].message
    assert "a way to the driver" in found["executors"].message
    assert "the driver can read what" in found["storage from executors"].message
    assert found["one step"].message.startswith("2 ranks, one batch, accuracy 0.")
    assert sorted(study.rglob("*")) == before
    assert spark.range(3).count() == 3, "the caller's session is the caller's"


def test_doctor_passes_a_study_whose_trials_run_in_the_driver(spark: Any, study: Path) -> None:
    (study / "objective.py").write_text("def objective(ctx):\n    return {'accuracy': 0.5}\n")
    arguments = ("backend=driver", "task=objective.py:objective")
    found = look(*arguments, "resources.slots_per_trial=2", spark=spark)
    assert failed(found) == []
    assert found["slots"].message == "2 tasks at once: 1 trial of 2 slots"
    assert found["executors"].status is Status.SKIP
    found = look(*arguments, "resources.slots_per_trial=3", spark=spark)
    assert failed(found) == ["slots"]
    assert "resources.slots_per_trial is 3" in found["slots"].message


def test_doctor_fails_on_too_many_ranks_and_missing_gpus(
    spark: Any, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = look("resources.world_size=3", "resources.gpus_per_rank=1", spark=spark)
    assert {"slots", "gpus", "one step"} <= set(failed(found))
    assert "0 trials of 3 ranks: resources.world_size is 3" in found["slots"].message
    assert "use fewer ranks" in found["slots"].cure
    assert "resources.gpus_per_rank" in found["gpus"].message
    assert "more GPUs than the 2 of this machine" in found["gpus"].message
    assert found["executors"].status is Status.OK


def test_doctor_warns_of_too_many_concurrent_trials(spark: Any, study: Path) -> None:
    found = look("budget.trials=4", spark=spark)["slots"]
    assert found.status is Status.WARN
    assert "resources.max_concurrent: 1" in found.cure


@pytest.mark.parametrize("source", ["data.table=leaky", "data.query=SELECT * FROM leaky"])
def test_doctor_finds_pitfalls_of_a_catalog_table_and_writes_no_snapshot(
    spark: Any, study: Path, source: str
) -> None:
    rows = [(i % 2, (i % 2) * 3.5, i) for i in range(600)]
    spark.createDataFrame(rows, "side int, after double, x int").createOrReplaceTempView("leaky")
    before = sorted(study.rglob("*"))
    names = ("study file", "code", "table", "pitfalls", "storage", "one step")
    checks = [check for check in CHECKS if check.name in names]
    overrides = ["data.path=null", source, "data.label=side"]
    found = {f.check: f for f in examine("study.yaml", overrides, spark=spark, checks=checks)}
    assert found["pitfalls"].status is Status.WARN
    assert "column 'after' alone predicts the label 'side'" in found["pitfalls"].message
    assert (found["one step"].status, found["one step"].message) == (Status.SKIP, "there is no table yet")
    assert sorted(study.rglob("*")) == before


class Dynamic:
    """A cluster with other settings than the session's, because local mode has no dynamic allocation."""

    def __init__(self, spark: Any, **settings: str) -> None:
        self._cluster = cluster_of(spark)
        self._settings = {f"spark.{key.replace('_', '.')}": value for key, value in settings.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    def setting(self, key: str, default: str = "") -> str:
        return self._settings.get(key, default)


@pytest.mark.parametrize(("idle", "status"), [("60s", Status.OK), ("5s", Status.WARN)])
def test_doctor_reports_dynamic_allocation(spark: Any, study: Path, idle: str, status: Status) -> None:
    context = Context(study_file="study.yaml")
    context.config = load_config("study.yaml")
    context.cluster = Dynamic(
        spark,
        master="yarn",
        dynamicAllocation_enabled="true",
        dynamicAllocation_executorIdleTimeout=idle,
    )
    assert allocation(context).status is status


def test_doctor_counts_the_studies_that_share_the_slots(spark: Any, study: Path) -> None:
    context = Context(study_file="study.yaml")
    context.config = load_config("study.yaml")
    context.cluster = cluster_of(spark)
    shared = SharedSlots(key=slots_key(context.cluster), size=lambda: Fraction(1, 2), wake=lambda: None)
    with open_share(shared, weight=1.0):
        assert "shared with other running studies of this process: 1 " in slots(context).message
    assert "shared" not in slots(context).message


def test_doctor_fails_on_dynamic_allocation_if_ranks_meet_through_spark(spark: Any, study: Path) -> None:
    context = Context(study_file="study.yaml")
    context.cluster = Dynamic(spark, master="yarn", dynamicAllocation_enabled="true")
    context.config = load_config("study.yaml", ["resources.world_size=2"])
    assert allocation(context).status is Status.OK
    context.config = load_config("study.yaml", ["resources.world_size=2", "resources.rendezvous=spark"])
    with pytest.raises(CapacityError) as caught:
        allocation(context)
    assert (caught.value.key, caught.value.value) == ("resources.world_size", 2)


def test_doctor_names_packages_of_other_versions_on_executors() -> None:
    here = executor_info(("torch", "pyarrow", "petastorm", "mlflow"), None, False)
    other = {**here, "host": "node7", "python": "3.9.1", "versions": {**here["versions"], "torch": "1.0"}}
    bare = {**here, "host": "node8", "versions": {**here["versions"], "pyarrow": "", "mlflow": ""}}
    found = list(differences(here, [here, other, bare], reader="arrow"))
    assert [(grave, what) for grave, what, _ in found] == [
        (True, f"node7 has Python 3.9.1, the driver {sys.version.split()[0]}"),
        (False, f"executors have torch 1.0, the driver {here['versions']['torch']}"),
        (True, f"executors lack pyarrow {here['versions']['pyarrow']}"),
    ]


@pytest.mark.parametrize(("ports", "is_other"), [((40000, 44999), True), ((40100, 40200), False)])
def test_doctor_names_ports_of_ranks_that_a_firewall_may_close(
    ports: tuple[int, int], is_other: bool
) -> None:
    answer = executor_info((), None, False)
    assert len(answer["ports"]) == 2, "those of this machine"
    resources = ResourcesConfig(world_size=2, ports="40000-40500")
    found = list(other_ports([{**answer, "ports": list(ports)}], resources))
    assert bool(found) == is_other
    assert not is_other or "40000-44999" in found[0][1]


def test_doctor_reports_a_driver_that_executors_cannot_reach() -> None:
    answer = executor_info((), ("127.0.0.1", 9), False)
    assert answer["driver"] == "Connection refused"
