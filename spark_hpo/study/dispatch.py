"""Runs assignments on a backend, with as many attempts as they need."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from spark_hpo.backend.base import ONE_RANK, Backend, RanksByRung, Share, Unshared
from spark_hpo.errors import CapacityError
from spark_hpo.study.attempts import Attempts
from spark_hpo.study.failures import FailurePolicy, Failures
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Report

logger = logging.getLogger(__name__)

# The longest time after which an interrupt, a lost lease, a grown cluster or a spent budget is noticed.
POLL_S = 1.0
_CROWDED_DELAY_S = 5.0  # until an assignment whose ranks found too few slots is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchPolicy:
    """Limits of concurrency and waiting, retries, and shutdown."""

    max_concurrent: int | None = None  # trials at once; None: as many as there are slots
    ranks: RanksByRung = ONE_RANK  # by which an assignment of a high rung may take several slots
    share: Share = field(default_factory=Unshared)  # of the slots, if other studies use them too
    trial_timeout_s: float | None = None  # of one attempt; None: no limit
    slot_timeout_s: float = 600.0  # how long to wait while nothing runs because no slot is free
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    supervisor: Supervisor | None = None  # detects stalled assignments; None: none is given up
    interrupted: Callable[[], bool] = lambda: False  # asked about once a second
    grace_s: float = 20.0  # for running trials to save their state after an interrupt


def pruned(assignment: Assignment, seconds: float = 0.0) -> Report:
    """Return the report of an assignment that is cancelled because its trial was dropped."""
    return replace(Report.started(assignment), is_pruned=True, seconds=seconds)


@dataclass(frozen=True, slots=True)
class _Waiting:
    assignment: Assignment
    not_before: float  # on the study's clock


@dataclass(eq=False)
class Dispatcher:
    """Starts attempts on the backend, gives up stalled ones, and retries those that were lost.

    Lost assignments, and folds for which there was no slot yet, wait until `start_waiting`.

    An assignment of several slots is held until all of them are free. Meanwhile the study must start no other
    one: so wide assignments do not starve. It has begun in the journal, because the search has decided on it
    before the reports that come while it is held.

    A trace: start(a); wait(1) -> None (a was lost and will be retried); start_waiting() -> a, attempt 2;
        wait(1) -> a and its report, for the study to record
    """

    backend: Backend
    attempts: Attempts
    failures: Failures
    storage: Storage
    policy: DispatchPolicy
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._crowded_since: float | None = None  # no assignment has found slots for all of its ranks
        self.held: Assignment | None = None
        """The assignment that has begun, and runs when all of its slots are free."""
        self._given_up: deque[Report] = deque()  # reports of stalled and overdue assignments
        self._started: dict[AssignmentKey, float] = {}  # on the study's clock
        self._suspended_at: float | None = None  # while trials save; None: nobody has to

    @property
    def waiting(self) -> Sequence[Assignment]:
        """The assignments that wait: for another attempt, or for a slot."""
        return [waiting.assignment for waiting in self._waiting]

    @property
    def is_interrupted(self) -> bool:
        return self.policy.interrupted()

    def delete_signals(self) -> None:
        """Delete the stop signal of a killed driver, and progress files that ranks wrote after their end."""
        self.storage.delete(layout.STOP)
        for name in self.storage.names(layout.PROGRESS, hidden=True):
            self.storage.delete(f"{layout.PROGRESS}/{name}")

    def resume(self, assignments: Sequence[Assignment]) -> None:
        """Retry the assignments that were in flight when an earlier driver ended."""
        self.enqueue(self._next_attempt(assignment) for assignment in assignments)

    def enqueue(self, assignments: Iterable[Assignment]) -> None:
        """Let assignments wait until there are slots for them."""
        self._waiting += [_Waiting(assignment, self.clock()) for assignment in assignments]

    def drop(self, trial_id: int) -> None:
        """Drop the waiting folds of a trial that have not begun."""
        self._waiting = [
            w for w in self._waiting if w.assignment.trial_id != trial_id or w.assignment.attempt > 1
        ]

    @property
    def used_slots(self) -> int:
        """The slots of the assignments in flight, without the one that is held."""
        return self.attempts.used_slots - (0 if self.held is None else self._slots(self.held))

    def elapsed(self, now: float) -> dict[int, float]:
        """Return the seconds since the assignments in flight began, by trial.

        Args:
            now: on the study's clock.
        """
        return {a.trial_id: now - self._started.get(a.key, now) for a in self.attempts.running.values()}

    @property
    def is_held_for_capacity(self) -> bool:
        """True if the backend does not have the slots that the held assignment needs, even if it is idle."""
        return self.held is not None and self._slots(self.held) > self.backend.num_slots

    def start(self, assignment: Assignment) -> None:
        """Begin an assignment, and run it as soon as its slots are free. No other one may be held."""
        self.attempts.begin(assignment)
        self.held = assignment
        self.start_held()

    def start_held(self) -> None:
        """Run the assignment that is held, if there is one and its slots are free."""
        if self.held is None:
            return
        needed = self._slots(self.held)
        if needed > 1:  # the caller has seen that one is free
            used = self.used_slots
            if used + needed > self.backend.num_slots or not self.policy.share.hold(used, needed):
                return
        assignment, self.held = self.held, None
        self._started[assignment.key] = self.clock()
        self.backend.submit(assignment)

    def start_waiting(self) -> Assignment | None:
        """Start one of the waiting assignments, if one is due."""
        now = self.clock()
        due = next((waiting for waiting in self._waiting if waiting.not_before <= now), None)
        if due is None:
            return None
        self._waiting.remove(due)
        self.start(due.assignment)
        return due.assignment

    def wait(self, timeout: float = POLL_S) -> tuple[Assignment, Report] | None:
        """The next assignment that has ended for good, for the study to record.

        Returns:
            None after `timeout` seconds, or when an attempt was lost and will be retried.

        Raises:
            CapacityError: no assignment has found slots for all of its ranks for `slot_timeout_s`.
            DataError: the table is damaged.
            StorageError: the study directory cannot be written, after all retries.
        """
        report = self._given_up.popleft() if self._given_up else self.backend.wait(timeout)
        if not self._given_up:
            self._give_up_stalled(report)
        if report is None and self._given_up:
            report = self._given_up.popleft()
        if report is None:
            return None
        assignment = self.attempts.running[report.key]
        if report.failure is not None:
            self._log_stacks(assignment)
        delay = self._retry_delay(assignment, report)
        if delay is None:
            self.failures.ended(report)
            return assignment, report
        self.attempts.lose(report)
        self._waiting.append(_Waiting(self._next_attempt(assignment), self.clock() + delay))
        return None

    def suspend(self) -> None:
        """Ask running trials to save their state. They wait for another attempt, and leave their slots."""
        self.storage.write(layout.STOP, b"")
        self._suspended_at = self.clock()
        if (held := self._lose_held("the study was paused")) is not None:
            self.resume([held])

    def end_suspension(self) -> None:
        """Let trials run that have not seen the request to save."""
        self.storage.delete(layout.STOP)
        self._suspended_at = None

    def check_suspension(self) -> None:
        """Cancel the trials that have not saved within `grace_s`."""
        if self._suspended_at is None:
            return
        if self.attempts.running and self.clock() - self._suspended_at > self.policy.grace_s:
            given_up = {report.key for report in self._given_up}
            for assignment in [a for a in self.attempts.running.values() if a.key not in given_up]:
                failure = Failure(kind=FailureKind.INTERRUPTED, message="cancelled, because it did not save")
                self._give_up(assignment, failure)
        elif not self.attempts.running:
            self.end_suspension()

    def cut(self, trials: Collection[int]) -> list[tuple[Assignment, Report]]:
        """Take the assignments of trials out, running or waiting. Returns them with reports as pruned."""
        cut = []
        for assignment in [a for a in self.attempts.running.values() if a.trial_id in trials]:
            if assignment is self.held:
                self.held = None
            else:
                self.backend.cancel(*assignment.key)
                # A rank that outlives its job must not save any more.
                fence = layout.fence(assignment.trial_id, assignment.rung, assignment.part)
                self.storage.write(fence, str(assignment.attempt + 1).encode())
            seconds = self.clock() - self._started.get(assignment.key, self.clock())
            cut.append((assignment, pruned(assignment, seconds)))
        self._given_up = deque(report for report in self._given_up if report.trial_id not in trials)
        waiting = [w.assignment for w in self._waiting if w.assignment.trial_id in trials]
        self._waiting = [w for w in self._waiting if w.assignment.trial_id not in trials]
        for assignment in waiting:
            if assignment.attempt == 1:  # a fold that has not begun
                if any(assignment.trial_id == other.trial_id for other, _ in cut):
                    continue
                self.attempts.begin(assignment)  # something must end the slot of the trial
            cut.append((assignment, pruned(assignment)))
        return cut

    def run_alone(self, assignment: Assignment) -> Report:
        """Run one assignment to its end while nothing else runs.

        Raises:
            KeyboardInterrupt: an interrupt was requested.
        """
        assert not self.attempts.running, "nothing else runs"
        while not self.policy.share.take(0):
            if self.is_interrupted:
                raise KeyboardInterrupt
            self.backend.wait(POLL_S)
        self.start(assignment)
        while True:
            self.start_held()
            done = self.wait()
            if done is not None:
                return done[1]
            if self.is_interrupted:
                if not assignment.is_evaluation:  # which has no state to save
                    for _, report in self.drain():
                        return report
                raise KeyboardInterrupt
            if not self.attempts.running:
                self.start_waiting()

    def drain(self) -> Iterator[tuple[Assignment, Report]]:
        """Ask running trials to save their state and stop. Yields those that end for good meanwhile."""
        grace = self.policy.grace_s
        logger.warning(
            "interrupted: saving running trials (up to %.0f s); press Ctrl-C again to quit immediately", grace
        )
        self.storage.write(layout.STOP, b"")
        self._lose_held("the study was interrupted")
        try:
            deadline = self.clock() + grace
            while self.attempts.running and self.clock() < deadline:
                if (done := self.wait()) is not None:
                    yield done
        finally:
            self.backend.close()
            self.storage.delete(layout.STOP)

    def _lose_held(self, message: str) -> Assignment | None:
        """Put back the assignment that is held, which has nothing to save."""
        held, self.held = self.held, None
        if held is not None:
            failure = Failure(kind=FailureKind.INTERRUPTED, message=message)
            self.attempts.lose(Report.failed(held, failure))
        return held

    def _retry_delay(self, assignment: Assignment, report: Report) -> float | None:
        """Seconds until another attempt; None: there is none."""
        failure = report.failure
        if failure is None or failure.kind is not FailureKind.CAPACITY:
            self._crowded_since = None
        if failure is None:
            return None
        if failure.kind is FailureKind.CAPACITY:
            self._check_crowded(report, failure)
            logger.warning("%s: %s; retrying in %.3g s", assignment, failure.message, _CROWDED_DELAY_S)
            return _CROWDED_DELAY_S
        if failure.kind is FailureKind.INTERRUPTED:
            logger.info("%s %s", assignment, "has saved its state" if report.seconds else failure.message)
            return 0.0
        delay = self.failures.retry_delay(report, failure, excluded=assignment.excluded_files)
        if delay is not None:
            when = f"in {delay:.3g} s" if delay else "now"
            logger.warning("%s was lost (%s); retrying %s", assignment, failure.message, when)
        return delay

    def _check_crowded(self, report: Report, failure: Failure) -> None:
        """Raise CapacityError if for `slot_timeout_s` the ranks of no assignment have started together."""
        if self._crowded_since is None:
            self._crowded_since = self.clock() - report.seconds
        if self.clock() - self._crowded_since > self.policy.slot_timeout_s:
            raise CapacityError(
                f"no trial could start for {self.policy.slot_timeout_s:.0f} s "
                f"(resources.slot_timeout_s): {failure.message}. Then rerun this command to resume"
            )

    def _log_stacks(self, assignment: Assignment) -> None:
        supervisor = self.policy.supervisor
        if supervisor is not None and (stacks := supervisor.take_stacks(assignment)):
            logger.warning("%s: stack traces of its ranks:\n%s", assignment, stacks)

    def _give_up_stalled(self, report: Report | None) -> None:
        """Cancel stalled and overdue assignments, however many reports of other assignments come in.

        Args:
            report: that has just come; its assignment is not in flight any more.
        """
        if self.policy.trial_timeout_s is None and self.policy.supervisor is None:
            return
        ended = None if report is None else report.key
        running = [a for a in self.attempts.running.values() if a.key != ended and a is not self.held]
        overdue = list(self._overdue(running))
        for assignment in overdue:
            reason = f"cancelled after {self.policy.trial_timeout_s:.4g} s (resources.trial_timeout_s)"
            self._give_up(assignment, Failure(kind=FailureKind.TRIAL, message=reason))
        if self.policy.supervisor is not None:
            watched = [assignment for assignment in running if assignment not in overdue]
            for assignment, reason in self.policy.supervisor.stalled(watched):
                self._give_up(assignment, Failure(kind=FailureKind.INFRASTRUCTURE, message=reason))

    def _overdue(self, running: Iterable[Assignment]) -> Iterator[Assignment]:
        limit, now = self.policy.trial_timeout_s, self.clock()
        if limit is not None:
            yield from (a for a in running if now - self._started[a.key] > limit)

    def _give_up(self, assignment: Assignment, failure: Failure) -> None:
        self.backend.cancel(*assignment.key)
        self._given_up.append(Report.failed(assignment, failure))

    def _slots(self, assignment: Assignment) -> int:
        return self.policy.ranks.slots(assignment.rung)

    def _next_attempt(self, assignment: Assignment) -> Assignment:
        return replace(
            assignment, attempt=assignment.attempt + 1, excluded_files=self.failures.excluded_files
        )
