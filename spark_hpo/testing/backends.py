"""The contract of backends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spark_hpo.backend.base import Backend
from spark_hpo.trial import Assignment, Failure, FailureKind, Report

_TIMEOUT_S = 60.0


def stub_training(assignment: Assignment, *, rank: int, world_size: int, **_: Any) -> Report:
    """Stands in for training: a `RankFunction` that sleeps and reports.

    Parameters of the assignment control it: `seconds` to sleep, and `fail`, the rank whose code fails. Its
    peers then report a lost connection, as the peers of a real rank do. Metrics: rank, world_size and pid.
    """
    time.sleep(assignment.params.get("seconds", 0.0))
    failure = None
    if assignment.params.get("fail") == rank:
        failure = Failure(kind=FailureKind.TRIAL, message=f"rank {rank} failed")
    elif "fail" in assignment.params and world_size > 1:
        failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="connection closed by peer")
    return Report(
        trial_id=assignment.trial_id,
        attempt=assignment.attempt,
        rung=0,
        resource=1,
        metrics={"rank": rank, "world_size": world_size, "pid": os.getpid()},
        failure=failure,
    )


class BackendContract:
    """Tests that every backend passes. A subclass implements the fixture `backend`."""

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        """A new backend that runs `stub_training` on each rank. Close it after the yield."""
        raise NotImplementedError

    def assignment(self, trial_id: int, **params: Any) -> Assignment:
        """The first assignment of a trial, from resource 0 to 1."""
        return Assignment(
            trial_id=trial_id,
            attempt=1,
            params=params,
            bracket=0,
            rung=0,
            resource_from=0,
            resource_to=1,
            checkpoint=None,
            seed=0,
        )

    def next_report(self, backend: Backend) -> Report:
        report = backend.wait(_TIMEOUT_S)
        assert report is not None, f"no report after {_TIMEOUT_S:.0f} s"
        return report

    def test_num_slots_is_at_least_one(self, backend: Backend) -> None:
        assert backend.num_slots >= 1

    def test_wait_returns_the_report_of_an_assignment(self, backend: Backend) -> None:
        backend.submit(self.assignment(3))
        report = self.next_report(backend)
        assert (report.trial_id, report.metrics["rank"], report.failure) == (3, 0, None)
        assert report.seconds > 0

    def test_wait_times_out(self, backend: Backend) -> None:
        assert backend.wait(0.05) is None

    def test_wait_ends_early_when_it_is_woken(self, backend: Backend) -> None:
        shared = backend.shared_slots
        if shared is None:
            pytest.skip("its slots belong to one study")
        assert 0 < shared.size() <= 1
        timer = threading.Timer(0.05, shared.wake)
        began = time.monotonic()
        timer.start()
        assert backend.wait(_TIMEOUT_S) is None
        assert time.monotonic() - began < _TIMEOUT_S / 2
        backend.submit(self.assignment(1))
        assert self.next_report(backend).trial_id == 1, "no report is lost"

    def test_failure_is_reported_not_raised(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, fail=0))
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is FailureKind.TRIAL, "the cause, not the connection that its peers lost"

    def test_cancelled_assignment_is_not_reported(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, seconds=30))
        backend.cancel(1)
        backend.submit(self.assignment(2))
        assert self.next_report(backend).trial_id == 2
        assert backend.wait(0.1) is None

    def test_cancel_of_an_unknown_trial_changes_nothing(self, backend: Backend) -> None:
        backend.cancel(99)
        backend.submit(self.assignment(1))
        assert self.next_report(backend).trial_id == 1

    def test_close_is_idempotent(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, seconds=30))
        backend.close()
        backend.close()
