"""Gets assignments done on a backend, in as many attempts as it takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from spark_hpo.backend.base import Backend
from spark_hpo.study.failures import FailurePolicy, Failures
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.retention import Retention
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Failure, FailureKind, Report

logger = logging.getLogger(__name__)

# Bounds how late an interrupt, a lost lease, a grown cluster or a spent budget is noticed.
POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchPolicy:
    """Limits of concurrency and waiting, retries, and shutdown."""

    max_concurrent: int | None = None  # trials at once; None: as many as there are slots
    slot_timeout_s: float = 600.0  # how long to wait while nothing runs because no slot is free
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    supervisor: Supervisor | None = None  # says which assignments to give up; None: all are waited for
    interrupted: Callable[[], bool] = lambda: False  # asked about once a second
    grace_s: float = 20.0  # for running trials to save, when it says so


@dataclass(frozen=True, slots=True)
class _Waiting:
    assignment: Assignment
    not_before: float  # on the study's clock


class Dispatcher:
    """Between a study and its backend: every attempt is in the journal before it starts, every loss after it.

    A trace: start(a); wait(1) -> None (a was lost, and waits); start_waiting() -> a, attempt 2; wait(1) ->
    its report, which is for the study to write
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        storage: Storage,
        retention: Retention,
        policy: DispatchPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._journal = journal
        self._storage = storage
        self._retention = retention
        self._policy = policy
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self.failures = Failures(policy.failures)
        self.running: dict[int, Assignment] = {}  # by trial
        self.busy_seconds = 0.0  # slot time filled

    @property
    def has_waiting(self) -> bool:
        """Whether there are assignments to be tried again."""
        return bool(self._waiting)

    @property
    def is_interrupted(self) -> bool:
        return self._policy.interrupted()

    def forget_signals(self) -> None:
        """Delete what killed drivers, and ranks that ended after their peers, have left to be read."""
        self._storage.delete(layout.STOP)
        for name in self._storage.names(layout.PROGRESS, hidden=True):
            self._storage.delete(f"{layout.PROGRESS}/{name}")

    def resume(self, assignments: Sequence[Assignment]) -> None:
        """Assignments that an earlier driver has left."""
        self._waiting = [_Waiting(self._again(a), self._clock()) for a in assignments]

    def waiting_trials(self) -> list[int]:
        return [waiting.assignment.trial_id for waiting in self._waiting]

    def start(self, assignment: Assignment) -> None:
        self._journal.assigned(assignment)
        if assignment.attempt > 1:
            self._retention.fence(assignment.trial_id, assignment.rung, assignment.attempt)
        self.running[assignment.trial_id] = assignment
        self._backend.submit(assignment)

    def start_waiting(self) -> Assignment | None:
        """Start one of the assignments that wait, if it is time for one."""
        now = self._clock()
        due = next((waiting for waiting in self._waiting if waiting.not_before <= now), None)
        if due is None:
            return None
        self._waiting.remove(due)
        self.start(due.assignment)
        return due.assignment

    def wait(self, timeout: float = POLL_S) -> tuple[Assignment, Report] | None:
        """The next report that is to be told; None after `timeout` seconds, or when one will be tried again.

        Raises:
            DataError: the table is at fault.
            StorageError: the study directory is, again and again.
        """
        report = self._backend.wait(timeout)
        if report is None:
            report = self._given_up()
        if report is None:
            return None
        assignment = self.running.pop(report.trial_id)
        self.busy_seconds += report.seconds
        delay = self._retry_delay(assignment, report)
        if delay is None:
            self.failures.ended(report.trial_id)
            return assignment, report
        self._journal.lost(report)
        self._waiting.append(_Waiting(self._again(assignment), self._clock() + delay))
        return None

    def run_alone(self, assignment: Assignment) -> Report:
        """One assignment to its end, with nothing beside it.

        Raises:
            KeyboardInterrupt: as was asked for.
        """
        assert not self.running, "it is alone"
        self.start(assignment)
        while True:
            done = self.wait()
            if done is not None:
                return done[1]
            if self.is_interrupted:
                raise KeyboardInterrupt  # an evaluation has nothing that were to be saved
            if not self.running:
                self.start_waiting()

    def drain(self) -> Iterator[tuple[Assignment, Report]]:
        """Have what runs save what it has and stop. What has ended by then is to be told."""
        grace = self._policy.grace_s
        logger.warning(
            "interrupted: running trials are saved, for %.0f s at most; once more ends at once", grace
        )
        self._storage.write(layout.STOP, b"")
        try:
            deadline = self._clock() + grace
            while self.running and self._clock() < deadline:
                if (done := self.wait()) is not None:
                    yield done
        finally:
            self._backend.close()
            self._storage.delete(layout.STOP)

    def _retry_delay(self, assignment: Assignment, report: Report) -> float | None:
        """Seconds until another attempt; None: there is none."""
        failure = report.failure
        if failure is None:
            return None
        supervisor = self._policy.supervisor
        if supervisor is not None and (stacks := supervisor.stacks(assignment)):
            logger.warning("%s: where its ranks stood:\n%s", assignment, stacks)
        if failure.kind is FailureKind.INTERRUPTED:
            logger.info("%s has saved what it had", assignment)
            return 0.0
        delay = self.failures.retry_delay(report, failure, left_out=assignment.without)
        if delay is not None:
            again = f"tried again in {delay:.3g} s" if delay else "tried again"
            logger.warning("%s was lost (%s); it is %s", assignment, failure.message, again)
        return delay

    def _given_up(self) -> Report | None:
        supervisor = self._policy.supervisor
        if supervisor is None:
            return None
        for assignment, reason in supervisor.silent(self.running.values()):
            self._backend.cancel(assignment.trial_id)
            return Report(
                trial_id=assignment.trial_id,
                attempt=assignment.attempt,
                rung=assignment.rung,
                resource=assignment.resource_from,
                split=assignment.split,
                failure=Failure(kind=FailureKind.INFRASTRUCTURE, message=reason),
            )
        return None

    def _again(self, assignment: Assignment) -> Assignment:
        return replace(assignment, attempt=assignment.attempt + 1, without=self.failures.without)
