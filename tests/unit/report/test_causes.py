import pytest

from spark_hpo.report.causes import causes_of, normalised
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.written_studies import StudyWriter


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rank 3 died at 0x7f3a", "rank 12 died at 0x55ff"),
        ("lost executor 7f9c1e2d4b5a6978 on host-4", "lost executor 00ff1e2d4b5a6971 on host-9"),
        (
            "job 123e4567-e89b-12d3-a456-426614174000",
            "job 00000000-e89b-12d3-a456-426614174001",
        ),
        ("needs 1.5e-3 GiB, has 2", "needs 22 GiB, has -3"),
    ],
)
def test_normalised_replaces_numbers(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize("text", ["no column 'conv1d'", "facade", "bad dead beef"])
def test_normalised_keeps_words(text: str) -> None:
    assert normalised(text) == text


def failed(message: str, kind: FailureKind = FailureKind.TRIAL) -> dict[str, object]:
    return {"value": None, "failure": Failure(kind=kind, message=message, traceback=f"Traceback: {message}")}


def test_causes_are_counted_by_kind_and_message() -> None:
    pen = StudyWriter().slots(4)
    for trial in range(3):
        pen.start(trial).end(trial, 0, **failed(f"loss is nan in epoch {trial}"))
    pen.start(3).lose(3, "executor 1 was lost").start(3, attempt=2).lose(3, "executor 2 was lost", attempt=2)
    pen.start(3, attempt=3).end(3, attempt=3)
    pen.start(4).end(4, 0, **failed("loss is nan in epoch 9", FailureKind.MEMORY))
    pen.start(5).lose(5, "asked to stop", kind=FailureKind.INTERRUPTED)
    record = pen.close().record()
    first, second, third = causes_of(record)
    assert (first.kind, first.message, first.failed, first.retried) == (
        FailureKind.TRIAL,
        "loss is nan in epoch #",
        3,
        0,
    )
    assert (first.example, first.traceback) == ("loss is nan in epoch 0", "Traceback: loss is nan in epoch 0")
    assert first.trials == (0, 1, 2)
    assert (second.kind, second.count) == (FailureKind.MEMORY, 1)
    assert (third.message, third.failed, third.retried, third.trials) == ("executor # was lost", 0, 2, (3,))


def test_causes_cover_failed_trials_and_lost_attempts(record: StudyRecord) -> None:
    causes = causes_of(record)
    failures = [trial for trial in record.trials.values() if trial.state is TrialState.FAILED]
    assert sum(cause.failed for cause in causes) == len(failures) > 0
    assert sum(cause.retried for cause in causes) == sum(a.is_lost for a in record.attempts) > 0
