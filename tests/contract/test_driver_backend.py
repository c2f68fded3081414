"""The driver backend: assignments in threads of the driver, whose Spark jobs are theirs to cancel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from spark_hpo.backend.base import Backend, DriverContext
from spark_hpo.backend.spark.classic import ClassicCluster
from spark_hpo.backend.spark.driver_backend import DriverBackend
from spark_hpo.backend.spark.session import cluster_of
from spark_hpo.errors import BackendError, CapacityError
from spark_hpo.testing import BackendContract, stub_training
from spark_hpo.trial import Assignment, Failure, FailureKind, Report
from tests.support.ranks import LIMIT_S

_meeting = threading.Barrier(2)
_released = threading.Event()  # lets a thread that waits outside of Spark continue


def run(assignment: Assignment, *, driver: DriverContext, **others: Any) -> Report:
    """Training that sleeps in a Spark job, waits outside of Spark, or meets another trial."""
    params = dict(assignment.params)
    seconds = params.pop("seconds", 0)
    notes = {}
    try:
        if "deaf" in params:
            _released.wait(LIMIT_S)
        if seconds:
            sleep(driver.spark, seconds)
        if "pool" in params:
            notes["pool"] = driver.spark.sparkContext.getLocalProperty("spark.scheduler.pool")
    except Exception as exc:  # of Spark, when its job is cancelled
        failure = Failure(kind=FailureKind.TRIAL, message=str(exc), traceback=str(exc))
        return Report.failed(assignment, failure)
    if "meet" in params:
        _meeting.wait(LIMIT_S)  # raises if the other trial does not run
    if "traceback" in params:
        failure = Failure(kind=FailureKind.TRIAL, message="failed", traceback=params["traceback"])
        return Report.failed(assignment, failure)
    return replace(stub_training(replace(assignment, params=params), **others), notes=notes)


def sleep(spark: Any, seconds: float) -> None:
    """Run a job of short tasks, of which no more start once it is cancelled."""
    tasks = int(seconds / 0.05)
    spark.range(0, tasks, 1, tasks).selectExpr("java_method('java.lang.Thread', 'sleep', 50L)").collect()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def num_jobs(spark: Any) -> Callable[[], int]:
    """Counts the jobs that Spark runs."""
    tracker = spark.sparkContext.statusTracker()
    return lambda: len(tracker.getActiveJobsIds())


class TestDriverBackend(BackendContract):
    @pytest.fixture
    def backend(self, spark: Any) -> Iterator[Backend]:
        backend = DriverBackend(cluster_of(spark), run, cancel_limit_s=2.0)
        _released.clear()
        yield backend
        _released.set()
        backend.close()

    def test_cancel_ends_the_spark_job_of_the_assignment_alone(
        self, backend: Backend, num_jobs: Callable[[], int]
    ) -> None:
        backend.submit(self.assignment(1, seconds=LIMIT_S))
        backend.submit(self.assignment(2, seconds=2))
        until(lambda: num_jobs() == 2)
        backend.cancel(1)
        until(lambda: num_jobs() <= 1)
        report = self.next_report(backend)
        assert (report.trial_id, report.failure) == (2, None)
        until(lambda: backend.num_slots == 2)

    def test_thread_that_does_not_react_is_given_up(
        self, backend: Backend, num_jobs: Callable[[], int], caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.submit(self.assignment(41, deaf=True, seconds=LIMIT_S))
        backend.cancel(41)
        assert backend.num_slots == 1, "its Spark jobs may still run"
        with caplog.at_level(logging.WARNING):
            until(lambda: backend.num_slots == 2)
            until(lambda: bool(caplog.messages))
        assert "trial 41" in caplog.messages[-1]
        _released.set()  # its job starts after all, and is cancelled
        until(lambda: not any("trial 41" in thread.name for thread in threading.enumerate()))
        until(lambda: num_jobs() == 0)

    def test_assignments_run_side_by_side_in_pools_of_their_own(self, backend: Backend) -> None:
        for trial_id in (1, 2):
            backend.submit(self.assignment(trial_id, meet=True, pool=True))
        reports = [self.next_report(backend), self.next_report(backend)]
        assert {report.notes["pool"] for report in reports} == {"spark_hpo-0", "spark_hpo-1"}
        backend.submit(self.assignment(3, pool=True))
        assert self.next_report(backend).notes["pool"] == "spark_hpo-0"

    @pytest.mark.parametrize(
        ("traceback", "kind"),
        [
            ("Lost task 0.3 in stage 1.0: ExecutorLostFailure", FailureKind.INFRASTRUCTURE),
            ("ZeroDivisionError", FailureKind.TRIAL),
        ],
    )
    def test_lost_executor_is_not_the_fault_of_the_trial(
        self, backend: Backend, traceback: str, kind: FailureKind
    ) -> None:
        backend.submit(self.assignment(1, traceback=traceback))
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is kind

    def test_trial_that_fails_because_spark_has_stopped_is_retried(self, spark: Any) -> None:
        class Stopping(ClassicCluster):
            is_alive = True

            def num_task_slots(self, profile: Any) -> int:
                if not self.is_alive:
                    raise BackendError("Spark has stopped")
                return super().num_task_slots(profile)

        cluster = Stopping(spark)
        backend = DriverBackend(cluster, run)
        cluster.is_alive = False
        backend.submit(self.assignment(1, traceback="Py4JNetworkError"))
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is FailureKind.INFRASTRUCTURE

    def test_slots_of_a_trial_are_reserved(self, spark: Any) -> None:
        assert DriverBackend(cluster_of(spark), run, slots_per_trial=2).num_slots == 1
        assert DriverBackend(cluster_of(spark), run, max_threads=1).num_slots == 1

    def test_more_slots_than_there_are_are_refused(self, spark: Any) -> None:
        with pytest.raises(CapacityError) as caught:
            DriverBackend(cluster_of(spark), run, slots_per_trial=3)
        assert (caught.value.key, caught.value.value) == ("resources.slots_per_trial", 3)

    def test_frames_are_cached_once_and_released_at_the_end(self, spark: Any) -> None:
        backend = DriverBackend(cluster_of(spark), run)
        cached = spark.sparkContext._jsc.getPersistentRDDs
        before = len(cached())
        made = []

        def make() -> Any:
            made.append(spark.range(100))
            return made[-1]

        rows = backend.frames.get("rows", make)
        assert backend.frames.get("rows", make) is rows
        held_out = []
        for fold in (1, 2, 3):
            training, out = backend.frames.fold(rows, fold, 3, seed=7)
            assert training.columns == out.columns == ["id"]
            ids = {row.id for row in out.collect()}
            assert ids.isdisjoint(row.id for row in training.collect())
            held_out += ids
        assert sorted(held_out) == list(range(100))
        assert len(made) == 1
        assert len(cached()) == before + 2, "the rows, and the rows with their folds"
        backend.close()
        assert len(cached()) == before


@pytest.mark.slow
class TestDriverBackendOnConnect(BackendContract):
    @pytest.fixture
    def backend(self, connect: Any) -> Iterator[Backend]:
        backend = DriverBackend(cluster_of(connect), run, cancel_limit_s=2.0)
        yield backend
        backend.close()

    def test_cancel_ends_the_query_of_the_assignment(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, seconds=LIMIT_S))
        until(lambda: any(thread.name.startswith("trial 1,") for thread in threading.enumerate()))
        backend.cancel(1)
        until(lambda: not any(thread.name.startswith("trial 1,") for thread in threading.enumerate()))
