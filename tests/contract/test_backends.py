"""All backends pass the contract suite: inline, simulated, and Spark, classic and Connect."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark import cloudpickle

from spark_hpo.backend.base import Backend, merge_reports
from spark_hpo.backend.inline import InlineBackend
from spark_hpo.backend.spark.backend import SparkBackend
from spark_hpo.backend.spark.session import cluster_of
from spark_hpo.errors import CapacityError
from spark_hpo.testing import BackendContract, stub_training
from spark_hpo.trial import Assignment, Failure, FailureKind, Params, Report
from tests.support.ranks import LIMIT_S, meet
from tests.support.simulated import Curve, SimulatedBackend

# Executors cannot import a test module: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def train(assignment: Assignment, *, rank: int, world_size: int, **_: Any) -> Report:
    """A stub of training that may kill its process, or wait for another trial."""
    if assignment.params.get("die") == rank:
        os._exit(7)
    report = stub_training(assignment, rank=rank, world_size=world_size)
    if "meet" in assignment.params and not meet(Path(assignment.params["meet"]), assignment.trial_id):
        report = replace(report, failure=Failure(kind=FailureKind.TRIAL, message="the other trial never ran"))
    return report


class TestInlineBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = InlineBackend(train)
        yield backend
        backend.close()

    def test_inline_backend_refuses_several_ranks(self) -> None:
        with pytest.raises(CapacityError) as caught:
            InlineBackend(train, world_size=2)
        assert (caught.value.key, caught.value.value) == ("resources.world_size", 2)


class Trained:
    """`stub_training` as curves."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        rank = np.nan if "fail" in params else 0.0
        return Curve(metrics={"rank": np.array([rank])}, elapsed_s=np.array([params.get("seconds", 0.1)]))


class TestSimulatedBackend(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = SimulatedBackend(Trained(), num_slots=2)
        yield backend
        backend.close()


class TestSparkBackend(BackendContract):
    @pytest.fixture
    def backend(self, spark: Any) -> Iterator[Backend]:
        backend = SparkBackend(cluster_of(spark), train)
        yield backend
        backend.close()

    def test_num_slots_is_that_of_the_cluster(self, backend: Backend) -> None:
        assert backend.num_slots == 2

    def test_assignments_run_at_the_same_time(self, backend: Backend, tmp_path: Path) -> None:
        for trial_id in (1, 2):
            backend.submit(self.assignment(trial_id, meet=str(tmp_path)))
        reports = [self.next_report(backend), self.next_report(backend)]
        assert {report.trial_id for report in reports} == {1, 2}
        assert [report.failure for report in reports] == [None, None]

    def test_every_assignment_has_its_own_process(self, backend: Backend) -> None:
        pids = set()
        for trial_id in range(3):
            backend.submit(self.assignment(trial_id))
            pids.add(self.next_report(backend).metrics["pid"])
        assert len(pids) == 3

    def test_assignment_whose_process_dies_is_lost(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, die=0))
        report = self.next_report(backend)
        assert report.failure is not None
        assert report.failure.kind is FailureKind.INFRASTRUCTURE

    def test_job_is_described_in_the_spark_ui(self, spark: Any, backend: Backend) -> None:
        backend.submit(self.assignment(17, seconds=2))
        tracker = spark.sparkContext._jsc.sc().statusStore()
        deadline = time.monotonic() + LIMIT_S
        descriptions: list[str] = []
        while not any("trial 17, rung 0" in text for text in descriptions):
            assert time.monotonic() < deadline, descriptions
            jobs = tracker.jobsList(None)
            found = [jobs.apply(i).description() for i in range(jobs.length())]
            descriptions = [text.get() for text in found if text.isDefined()]
        self.next_report(backend)

    def test_close_cancels_all_jobs_together(self, spark: Any) -> None:
        def seconds_to_close(num_jobs: int) -> float:
            backend = SparkBackend(cluster_of(spark), train)
            for trial_id in range(num_jobs):
                backend.submit(self.assignment(trial_id, seconds=LIMIT_S))
            deadline = time.monotonic() + LIMIT_S
            while len(spark.sparkContext.statusTracker().getActiveJobsIds()) < num_jobs:
                assert time.monotonic() < deadline
            began = time.monotonic()
            backend.close()
            seconds = time.monotonic() - began
            assert not spark.sparkContext.statusTracker().getActiveJobsIds()
            return seconds

        # Cancelled one after another, they take 20 s; with a wait for PySpark's 200 exceptions, 3 s.
        one = max(0.1, *(seconds_to_close(1) for _ in range(3)))
        assert seconds_to_close(200) < 20 * one


def train_on_gpus(assignment: Assignment, *, gpus: Sequence[int] = (), **others: Any) -> Report:
    report = train(assignment, **others)
    return replace(report, metrics={**report.metrics, "gpu": gpus[0]})


class TestSparkBackendThatDealsGpus(BackendContract):
    """With local[N], Spark itself assigns no GPUs."""

    @pytest.fixture
    def backend(self, spark: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        backend = SparkBackend(cluster_of(spark), train_on_gpus, gpus_per_rank=1)
        yield backend
        backend.close()

    def test_each_of_two_trials_has_a_gpu(self, backend: Backend, tmp_path: Path) -> None:
        for trial_id in (1, 2):
            backend.submit(self.assignment(trial_id, meet=str(tmp_path)))
        reports = [self.next_report(backend), self.next_report(backend)]
        assert {report.metrics["gpu"] for report in reports} == {0, 1}

    def test_gpu_of_a_cancelled_trial_is_dealt_again(self, backend: Backend) -> None:
        for trial_id in (1, 2):
            backend.submit(self.assignment(trial_id, seconds=LIMIT_S))
        for trial_id in (1, 2):
            backend.cancel(trial_id)
        backend.submit(self.assignment(3))
        assert self.next_report(backend).trial_id == 3


def test_more_gpus_than_the_machine_has_are_refused(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(CapacityError, match="more GPUs than the 1 of this machine"):
        SparkBackend(cluster_of(spark), train, world_size=2, gpus_per_rank=1)


class TestSparkBackendOfTwoRanks(BackendContract):
    @pytest.fixture
    def backend(self, spark: Any) -> Iterator[Backend]:
        backend = SparkBackend(cluster_of(spark), train, world_size=2)
        yield backend
        backend.close()

    def test_report_of_two_ranks_is_that_of_rank_0(self, backend: Backend) -> None:
        backend.submit(self.assignment(1))
        metrics = self.next_report(backend).metrics
        assert (metrics["rank"], metrics["world_size"]) == (0, 2)

    def test_report_of_two_ranks_names_the_cause_not_the_lost_peer(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, fail=1))
        report = self.next_report(backend)
        assert report.failure is not None
        assert report.failure.message == "rank 1 failed"

    def test_assignment_with_a_rank_that_dies_is_lost(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, die=1))
        report = self.next_report(backend)
        assert report.failure is not None
        assert report.failure.kind is FailureKind.INFRASTRUCTURE
        backend.submit(self.assignment(2))
        assert self.next_report(backend).failure is None

    def test_backend_refuses_more_ranks_than_slots_at_once(self, spark: Any) -> None:
        with pytest.raises(CapacityError) as caught:
            SparkBackend(cluster_of(spark), train, world_size=3)
        assert (caught.value.key, caught.value.value) == ("resources.world_size", 3)


class TestSparkBackendOfGrowingRanks(BackendContract):
    @pytest.fixture
    def backend(self, spark: Any) -> Iterator[Backend]:
        backend = SparkBackend(cluster_of(spark), train, world_size={0: 1, 1: 2})
        yield backend
        backend.close()

    def test_ranks_of_an_assignment_are_those_of_its_rung(self, backend: Backend) -> None:
        assert backend.num_slots == 2
        for trial_id, rung, ranks in ((1, 0, 1), (2, 1, 2), (3, 4, 2), (4, 0, 1)):
            backend.submit(replace(self.assignment(trial_id), rung=rung))
            assert self.next_report(backend).metrics["world_size"] == ranks

    def test_backend_refuses_more_ranks_in_a_high_rung_than_slots_at_once(self, spark: Any) -> None:
        with pytest.raises(CapacityError) as caught:
            SparkBackend(cluster_of(spark), train, world_size={0: 1, 2: 3})
        assert (caught.value.key, caught.value.value) == ("resources.world_size", {0: 1, 2: 3})


class TestConnectBackend(BackendContract):
    world_size = 1

    @pytest.fixture
    def backend(self, connect: Any) -> Iterator[Backend]:
        backend = SparkBackend(cluster_of(connect), train, world_size=self.world_size)
        yield backend
        backend.close()

    def test_num_slots_is_that_of_the_server(self, backend: Backend) -> None:
        assert backend.num_slots == 2 // self.world_size

    def test_assignment_whose_process_dies_is_lost(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, die=0))
        report = self.next_report(backend)
        assert report.failure is not None
        assert report.failure.kind is FailureKind.INFRASTRUCTURE


class TestConnectBackendOfTwoRanks(TestConnectBackend):
    world_size = 2


def test_merge_reports_names_the_lost_rank_if_there_is_no_cause() -> None:
    lost = Failure(kind=FailureKind.INFRASTRUCTURE, message="gone")
    fine = Report(trial_id=1, attempt=1, rung=0, resource=1)
    broken = Report(trial_id=1, attempt=1, rung=0, resource=0, failure=lost)
    assert merge_reports([fine, broken], seconds=1.0).failure == lost
