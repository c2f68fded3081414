"""What a study does about assignments that fail: try again, go on without the trial, or stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from spark_hpo.errors import DataError, StorageError, TooManyFailures
from spark_hpo.trial import Assignment, Failure, FailureKind, Report, Trial, TrialState

_MOST_DELAY_S = 60.0
_LEAST_FAILED = 10  # a share of fewer says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """What is borne."""

    max_infra_retries: int = 2  # of one assignment
    retry_delay_s: float = 0.0  # before the first of them, doubled for each further one
    max_trial_failures: int | None = None
    max_failed_share: float | None = None  # of the trials that have ended or are paused
    leave_out: Callable[[Collection[str]], object] | None = None
    """Tries the table without these files, or raises DataError; None: a bad file ends the study."""


class Failures:
    """Counts the failures of a study by whose fault they are.

    A trace, max_infra_retries 1: lost(report of a) -> 1.0; lost(the next of a) -> None: the trial has failed
    """

    def __init__(self, policy: FailurePolicy) -> None:
        self._policy = policy
        self._retries: dict[int, int] = {}  # of the assignment in flight, by trial
        self.without: tuple[str, ...] = ()  # files of the table that cannot be read, in the order found

    def retry_delay(
        self, report: Report, failure: Failure, *, left_out: Collection[str] = ()
    ) -> float | None:
        """Seconds until the assignment is to be tried again; None: it has failed.

        Args:
            left_out: files that this attempt did without.

        Raises:
            DataError: the table is at fault, and nothing may be left out.
            StorageError: the study directory is, again and again.
        """
        if failure.kind is FailureKind.DATA:
            self._skip(failure, left_out)
            return 0.0
        if not failure.kind.is_passing:
            return None
        done = self._retries.get(report.trial_id, 0)
        if done >= self._policy.max_infra_retries:
            if failure.kind is FailureKind.STORAGE:
                raise StorageError(
                    f"{failure.message} ({done + 1} attempts): the study pauses here; when it is mended, the "
                    "same command goes on"
                )
            return None
        self._retries[report.trial_id] = done + 1
        return float(min(self._policy.retry_delay_s * 2**done, _MOST_DELAY_S))

    def ended(self, trial_id: int) -> None:
        """An assignment has been reported: the next one of this trial has its own retries."""
        self._retries.pop(trial_id, None)

    def replay(self, assignment: Assignment) -> None:
        """An earlier driver has started it."""
        self.without = tuple(dict.fromkeys([*self.without, *assignment.without]))

    def check(self, trials: Iterable[Trial]) -> None:
        """Stop a study whose task is broken.

        Raises:
            TooManyFailures: with the reason, and what failed last.
        """
        trials = [trial for trial in trials if trial.state is not TrialState.RUNNING or trial.resource]
        failed = [trial for trial in trials if trial.failure is not None]
        if not failed:
            return
        most, share = self._policy.max_trial_failures, self._policy.max_failed_share
        if most is not None and len(failed) > most:
            rule = f"stopping.max_trial_failures is {most}"
        elif share is not None and len(failed) >= max(_LEAST_FAILED, share * len(trials) + 1e-9):
            rule = f"stopping.max_failed_share is {share:g}"
        else:
            return
        last = max(failed, key=lambda trial: trial.changed_at).failure
        assert last is not None
        raise TooManyFailures(
            f"{len(failed)} of {len(trials)} trials have failed, and {rule}; the last one: {last.message}. "
            "Mend the task, or raise the limit; the same command goes on"
        )

    def _skip(self, failure: Failure, left_out: Collection[str]) -> None:
        if self._policy.leave_out is None or failure.file is None or failure.file in left_out:
            raise DataError(failure.message)
        if failure.file in self.without:
            return  # another trial has found it, while this one ran
        without = (*self.without, failure.file)
        self._policy.leave_out(without)
        self.without = without
