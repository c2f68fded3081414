"""Failures: retries, excluded files, and the limits on failed trials."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from spark_hpo.errors import DataError, StorageError, TooManyFailures
from spark_hpo.study.failures import FailurePolicy, Failures
from spark_hpo.trial import Failure, FailureKind, Report, Trial, TrialState

REPORT = Report(trial_id=3, attempt=1, rung=0, resource=0)


def failure(kind: FailureKind, **fields: Any) -> Failure:
    return Failure(kind=kind, message="it broke", **fields)


def trials(good: int, bad: int) -> list[Trial]:
    def trial(number: int, why: Failure | None) -> Trial:
        state = TrialState.FAILED if why else TrialState.PAUSED
        return Trial(trial_id=number, params={}, state=state, bracket=0, rung=0, failure=why)

    why = failure(FailureKind.TRIAL)
    return [trial(i, None) for i in range(good)] + [trial(good + i, why) for i in range(bad)]


def test_retry_delay_doubles_up_to_a_minute() -> None:
    failures = Failures(FailurePolicy(max_infra_retries=8, retry_delay_s=1.0))
    lost = failure(FailureKind.INFRASTRUCTURE)
    delays = [failures.retry_delay(REPORT, lost) for _ in range(9)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, None]


def test_retries_are_counted_per_assignment() -> None:
    failures = Failures(FailurePolicy(max_infra_retries=1))
    lost = failure(FailureKind.INFRASTRUCTURE)
    assert failures.retry_delay(REPORT, lost) == 0.0
    failures.ended(REPORT)
    assert failures.retry_delay(REPORT, lost) == 0.0
    assert failures.retry_delay(REPORT, lost) is None


@pytest.mark.parametrize("kind", [FailureKind.TRIAL, FailureKind.MEMORY])
def test_failures_of_the_trial_itself_are_not_retried(kind: FailureKind) -> None:
    assert Failures(FailurePolicy()).retry_delay(REPORT, failure(kind)) is None


def test_storage_that_fails_after_all_retries_ends_the_study() -> None:
    failures = Failures(FailurePolicy(max_infra_retries=1))
    assert failures.retry_delay(REPORT, failure(FailureKind.STORAGE)) == 0.0
    with pytest.raises(StorageError, match=r"it broke \(2 attempts\)"):
        failures.retry_delay(REPORT, failure(FailureKind.STORAGE))


def test_bad_file_ends_the_study_unless_it_may_be_excluded() -> None:
    bad = failure(FailureKind.DATA, file="b.parquet")
    with pytest.raises(DataError, match="it broke"):
        Failures(FailurePolicy()).retry_delay(REPORT, bad)

    asked: list[Collection[str]] = []
    failures = Failures(FailurePolicy(on_bad_files=asked.append))
    assert failures.retry_delay(REPORT, bad) == 0.0
    assert failures.retry_delay(REPORT, failure(FailureKind.DATA, file="a.parquet")) == 0.0
    assert failures.excluded_files == ("b.parquet", "a.parquet")
    assert asked == [("b.parquet",), ("b.parquet", "a.parquet")]
    assert failures.retry_delay(REPORT, bad) == 0.0, "a trial that started earlier may find it too"
    assert len(asked) == 2
    with pytest.raises(DataError):  # the attempt excluded the file already, so it is not the cause
        failures.retry_delay(REPORT, bad, excluded=failures.excluded_files)
    with pytest.raises(DataError):  # the failure names no file
        failures.retry_delay(REPORT, failure(FailureKind.DATA))


def test_bad_file_that_cannot_be_spared_ends_the_study() -> None:
    def refuse(files: Collection[str]) -> None:
        raise DataError("no rows are left")

    failures = Failures(FailurePolicy(on_bad_files=refuse))
    with pytest.raises(DataError, match="no rows are left"):
        failures.retry_delay(REPORT, failure(FailureKind.DATA, file="a.parquet"))
    assert failures.excluded_files == ()


@pytest.mark.parametrize(
    ("policy", "good", "bad", "stops"),
    [
        ({}, 0, 100, False),
        ({"max_trial_failures": 3}, 100, 3, False),
        ({"max_trial_failures": 3}, 100, 4, True),
        ({"max_trial_failures": 0}, 0, 1, True),
        ({"max_failed_share": 0.5}, 0, 9, False),
        ({"max_failed_share": 0.5}, 0, 10, True),
        ({"max_failed_share": 0.5}, 10, 10, False),
        ({"max_failed_share": 0.5}, 10, 11, True),
        ({"max_failed_share": 1.0}, 0, 50, False),
    ],
)
def test_check_raises_when_too_many_trials_have_failed(
    policy: dict[str, Any], good: int, bad: int, stops: bool
) -> None:
    failures = Failures(FailurePolicy(**policy))
    if not stops:
        failures.check(trials(good, bad))
        return
    [name] = policy
    with pytest.raises(
        TooManyFailures, match=rf"{bad} of {good + bad} trials .* stopping\.{name} .* it broke"
    ):
        failures.check(trials(good, bad))
