"""Decides what follows from a failed assignment: a retry, a failed trial, or the end of the study."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from spark_hpo.errors import DataError, StorageError, TooManyFailures
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Report, Trial, TrialState

_MOST_DELAY_S = 60.0
_LEAST_FAILED = 10  # below, a share means nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """Limits on failures. None: no limit."""

    max_infra_retries: int = 2  # of one assignment
    retry_delay_s: float = 0.0  # before the first retry, doubled for each further one
    max_trial_failures: int | None = None
    max_failed_share: float | None = None  # of the trials that have ended or are paused
    on_bad_files: Callable[[Collection[str]], object] | None = None
    """Called with all files that cannot be read; raises DataError if the study cannot continue without them.
    None: a bad file ends the study."""


class Failures:
    """Counts the failures of a study.

    A trace, with max_infra_retries 1: retry_delay(report of a) -> 1.0; retry_delay(the next report of a)
        -> None: the trial has failed
    """

    def __init__(self, policy: FailurePolicy) -> None:
        self._policy = policy
        self._retries: dict[AssignmentKey, int] = {}  # of the assignments in flight
        self.excluded_files: tuple[str, ...] = ()  # of the table, unreadable, in the order of discovery

    def retry_delay(
        self, report: Report, failure: Failure, *, excluded: Collection[str] = ()
    ) -> float | None:
        """Seconds until the next attempt; None: the assignment has failed.

        Args:
            excluded: files that this attempt did not read.

        Raises:
            DataError: the table is damaged, and no file may be excluded.
            StorageError: the study directory cannot be written, after all retries.
        """
        if failure.kind is FailureKind.DATA:
            self._exclude_file(failure, excluded)
            return 0.0
        if not failure.kind.is_passing:
            return None
        done = self._retries.get(report.key, 0)
        if done >= self._policy.max_infra_retries:
            if failure.kind is FailureKind.STORAGE:
                raise StorageError(
                    f"{failure.message} ({done + 1} attempts). Fix the storage, then rerun the same command "
                    "to resume"
                )
            return None
        self._retries[report.key] = done + 1
        return float(min(self._policy.retry_delay_s * 2**done, _MOST_DELAY_S))

    def ended(self, report: Report) -> None:
        """Forget the retries of an assignment that has ended."""
        self._retries.pop(report.key, None)

    def replay(self, assignment: Assignment) -> None:
        """Take over the files that an earlier driver has excluded."""
        self.excluded_files = tuple(dict.fromkeys([*self.excluded_files, *assignment.excluded_files]))

    def check(self, trials: Iterable[Trial]) -> None:
        """Check the number of failed trials.

        Raises:
            TooManyFailures: with the limit, and the latest failure.
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
            "Fix the task or raise the limit, then rerun the same command to resume"
        )

    def _exclude_file(self, failure: Failure, excluded: Collection[str]) -> None:
        if self._policy.on_bad_files is None or failure.file is None or failure.file in excluded:
            raise DataError(failure.message)
        if failure.file in self.excluded_files:
            return  # another trial has discovered it meanwhile
        excluded_files = (*self.excluded_files, failure.file)
        self._policy.on_bad_files(excluded_files)
        self.excluded_files = excluded_files
