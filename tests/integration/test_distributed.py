"""Two real ranks on Spark train and fail as one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark import cloudpickle

from spark_hpo.backend.base import Backend, BarrierContext
from spark_hpo.backend.spark.backend import SparkBackend
from spark_hpo.backend.spark.session import cluster_of
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import Rendezvous, RendezvousServer, init_group
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.tables import write_clusters

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 121  # one rank gets one row more than the other


@pytest.fixture(scope="module")
def server() -> RendezvousServer:
    return RendezvousServer("127.0.0.1", timeout_s=30.0)


@pytest.fixture
def spec(tmp_path: Path, server: RendezvousServer) -> RankSpec:
    return RankSpec(
        study_id=tmp_path.name,
        storage=Storage(tmp_path / "study"),
        trainable=TabularTask,
        table=open_table(str(write_clusters(tmp_path / "table", rows=ROWS))),
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=ROWS),
        max_resource=9,
        seed=0,
        reader="auto",
        shuffle_window=1000,
        rendezvous=server.address,
    )


def assignment(start: int = 0, stop: int = 4, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=1,
        attempt=1,
        params={"learning_rate": 0.02, "hidden_units": 8, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=5,
    )


class KilledOnce(TabularTask):
    """Rank 1 is killed in a training step, once."""

    steps = 0

    def loss(self, outputs: Any, batch: Any) -> Any:
        self.steps += torch.is_grad_enabled()
        mark = Path(self.params["mark"])
        if torch.distributed.get_rank() == 1 and self.steps == self.params["at"] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(outputs, batch)


@pytest.fixture
def run(spark: Any) -> Iterator[Any]:
    backends: list[Backend] = []

    def run(spec: RankSpec, assignment: Assignment, *, ranks: int = 2) -> Report:
        backend = SparkBackend(cluster_of(spark), partial(run_rank, spec), world_size=ranks)
        backends.append(backend)
        backend.submit(assignment)
        report = backend.wait(120)
        assert report is not None
        return report

    yield run
    for backend in backends:
        backend.close()


def test_two_ranks_equal_one(spec: RankSpec, run: Any) -> None:
    """A step has the same gradient, though the two ranks have different numbers of rows."""
    two = run(spec, assignment())
    one = run(replace(spec, storage=Storage(spec.storage.url + "-1")), assignment(), ranks=1)
    assert two.failure is None
    for ours, theirs in zip(two.curve, one.curve, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-5)
        assert ours.rows == theirs.rows == ROWS
    weights = [
        checkpoint.load(Storage(url), report.checkpoint)["model"]
        for url, report in ((spec.storage.url, two), (spec.storage.url + "-1", one))
    ]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_two_ranks_resume_a_checkpoint_bit_for_bit(spec: RankSpec, run: Any) -> None:
    spec = replace(spec, settings=replace(spec.settings, batch_size=16))
    first = run(spec, assignment(0, 1, dropout=0.4))
    second = run(spec, assignment(1, 4, first.checkpoint, dropout=0.4))
    other = replace(spec, storage=Storage(spec.storage.url + "-1"), study_id=f"{spec.study_id}-1")
    at_once = run(other, assignment(0, 4, dropout=0.4))
    assert at_once.failure is None
    assert second.metrics == at_once.metrics


@pytest.mark.parametrize(("every", "at"), [({"checkpoint_seconds": 1e-9}, 5), ({"checkpoint_epochs": 1}, 20)])
def test_two_ranks_resume_after_one_was_killed_bit_for_bit(
    spec: RankSpec, run: Any, tmp_path: Path, every: dict[str, Any], at: int
) -> None:
    settings = replace(spec.settings, batch_size=16, **every)  # 8 steps per epoch
    spec = replace(spec, settings=settings, trainable=KilledOnce)
    first = assignment(dropout=0.4, mark=str(tmp_path / "mark"), at=at)
    lost = run(spec, first)
    assert lost.failure is not None
    assert lost.failure.kind is FailureKind.INFRASTRUCTURE
    assert spec.storage.read(layout.partial(1, 1)) is not None
    again = run(spec, replace(first, attempt=2))
    other = replace(spec, storage=Storage(spec.storage.url + "-1"), study_id=f"{spec.study_id}-1")
    undisturbed = run(other, first)
    assert again.failure is None
    assert [m.metrics for m in again.curve] == [m.metrics for m in undisturbed.curve]


class FailsOnOneRank(TabularTask):
    def build_model(self) -> Any:
        if torch.distributed.get_rank() == 1:
            raise ValueError("only here")
        return super().build_model()


class FailsInAStep(TabularTask):
    def loss(self, outputs: Any, batch: Any) -> Any:
        if torch.distributed.get_rank() == 1:
            raise ValueError("in a step")
        return super().loss(outputs, batch)


@pytest.mark.parametrize(("task", "message"), [(FailsOnOneRank, "only here"), (FailsInAStep, "in a step")])
def test_rank_that_raises_ends_its_peer_and_is_the_cause(
    spec: RankSpec, run: Any, task: Any, message: str
) -> None:
    began = time.monotonic()
    report = run(replace(spec, trainable=task), assignment())
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert report.failure.message == f"ValueError: {message}"
    assert "Traceback" in report.failure.traceback
    assert time.monotonic() - began < 30, "the peer did not wait for its timeout"


def weigh_by_rows(ctx: Any) -> None:
    rows = sum(len(batch["side"]) for batch in ctx.batches("train"))
    ctx.report({"accuracy": float(ctx.rank)}, resource=ctx.resource.stop, rows=rows)


def test_function_metrics_are_means_weighted_by_rows(spec: RankSpec, run: Any) -> None:
    report = run(replace(spec, trainable=weigh_by_rows), assignment())
    assert report.failure is None, report.failure
    assert report.metrics["accuracy"] in (pytest.approx(60 / 121), pytest.approx(61 / 121))


@pytest.fixture
def by_spark(spec: RankSpec) -> RankSpec:
    """For executors that cannot reach the driver: rank 0 serves the store."""
    return replace(spec, rendezvous=Rendezvous(host=None, timeout_s=30.0))


def test_rendezvous_through_spark_equals_that_on_the_driver(
    spec: RankSpec, by_spark: RankSpec, run: Any
) -> None:
    on_driver = run(replace(spec, storage=Storage(spec.storage.url + "-1")), assignment())
    through_spark = run(by_spark, assignment())
    assert through_spark.failure is None, through_spark.failure
    assert through_spark.metrics == on_driver.metrics


def test_rank_that_raises_is_the_cause_with_spark_rendezvous(by_spark: RankSpec, run: Any) -> None:
    report = run(replace(by_spark, trainable=FailsInAStep), assignment())
    assert report.failure is not None
    assert report.failure.message == "ValueError: in a step"


def test_rank_0_without_a_store_does_not_keep_peers_waiting() -> None:
    gathered: list[str] = []

    def gather(text: str) -> list[str]:
        gathered.append(text)
        return [text, ""]

    barrier = BarrierContext(host="no.such.host.invalid", gather=gather)
    rendezvous = Rendezvous(host=None, timeout_s=1.0)
    with (
        pytest.raises(torch.distributed.DistError, match="rank 0 cannot open a rendezvous store"),
        init_group(rendezvous, barrier, key="k", rank=0, size=2, device=torch.device("cpu")),
    ):
        pass
    [text] = gathered  # the peers learn the host and the reason, instead of a port
    assert text.startswith("no.such.host.invalid ")
    assert not text.rpartition(" ")[2].isdecimal()
