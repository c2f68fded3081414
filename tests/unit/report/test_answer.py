import math

import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.report.answer import Peak, answer_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.virtual_studies import TODAY
from tests.support.written_studies import TEST, StudyWriter


def test_answer_of_a_study_without_trials_is_empty() -> None:
    answer = answer_of(StudyWriter().record())
    assert (answer.best, answer.value, answer.test, answer.first, answer.default) == (None,) * 5
    assert not answer.has_default


def test_baseline_compares_after_equal_training() -> None:
    pen = StudyWriter(search={"max_resource": 9, "enqueue": [{"x": 0.25}]})
    pen.start(0, params={"x": 0.75}).end(0, 1, 0.4).settle(TrialState.STOPPED, 0)
    pen.start(1, params={"x": 0.25}).end(1, 1, 0.3)
    pen.start(1, 1, 9, rung=1, params={"x": 0.25}).end(1, 9, 0.6).settle(TrialState.COMPLETED, 1)
    pen.start(2, 0, 9, params={"x": 0.5}).end(2, 9, 0.9, curve={1: 0.5, 9: 0.9})
    pen.settle(TrialState.COMPLETED, 2)
    pen.start(2, 9, 9, **TEST).end(2, 9, 0.88, **TEST).close()
    answer = answer_of(pen.record())
    assert answer.best is not None
    assert (answer.best.trial_id, answer.value, answer.test) == (2, 0.9, {"accuracy": 0.88})
    assert answer.first is not None
    assert (answer.first.value, answer.first.best, answer.first.is_fair) == (0.4, 0.5, True)
    assert answer.first.gain == pytest.approx(0.1)
    assert answer.default is not None
    assert (answer.default.trial.trial_id, answer.default.best) == (1, 0.9)
    assert answer.default.gain == pytest.approx(0.3)


def test_baseline_is_not_fair_if_the_best_was_not_measured_as_early() -> None:
    pen = StudyWriter().start(0).end(0, 1, 0.4).start(1, 0, 9).end(1, 9, 0.9).close()
    first = answer_of(pen.record()).first
    assert first is not None
    assert (first.best, first.is_fair) == (0.9, False)


def test_baseline_gain_is_positive_for_a_smaller_minimised_metric() -> None:
    pen = StudyWriter(Objective(metric="loss", mode=Mode.MIN)).start(0).end(0, 1, 3.0).start(1).end(1, 1, 1.0)
    first = answer_of(pen.close().record()).first
    assert first is not None
    assert first.gain == 2.0


def test_baseline_of_a_failed_trial_has_no_value() -> None:
    broken = Failure(kind=FailureKind.TRIAL, message="nan")
    pen = StudyWriter().start(0).end(0, 0, None, failure=broken).start(1).end(1).close()
    first = answer_of(pen.record()).first
    assert first is not None
    assert (first.value, first.gain) == (None, None)


def test_answer_ignores_the_test_of_an_earlier_checkpoint() -> None:
    pen = StudyWriter().start(0).end(0, 1, 0.4).start(0, 1, 1, **TEST).end(0, 1, **TEST)
    pen.start(0, 1, 3, rung=1).end(0, 3, 0.6)
    assert answer_of(pen.record()).test is None


def test_default_is_none_if_it_does_not_fit_the_space() -> None:
    answer = answer_of(
        StudyWriter(search={"max_resource": 9, "enqueue": [{"y": 1}]}).start(0).end(0).record()
    )
    assert answer.has_default
    assert answer.default is None


def test_default_is_the_trial_of_the_first_enqueued_configuration(record: StudyRecord) -> None:
    answer = answer_of(record)
    assert answer.default is not None
    assert answer.default.trial.params == TODAY
    assert answer.first is None, "it is the same trial"
    assert answer.default.gain is not None
    assert answer.default.gain > 0
    assert answer.test is not None
    assert answer.best is not None
    assert answer.best.loss == min(t.loss for t in record.trials.values() if math.isfinite(t.loss))


def test_peak_is_a_better_epoch_than_the_saved_one() -> None:
    pen = (
        StudyWriter()
        .start(0, 0, 9)
        .end(0, 9, 0.7, curve={3: 0.6, 6: 0.8, 9: 0.7})
        .start(1)
        .end(1, 1, 0.5)
        .close()
    )
    answer = answer_of(pen.record())
    assert answer.value == 0.7
    assert answer.peak == Peak(resource=6, value=0.8)


def test_peak_is_none_where_the_saved_epoch_is_the_best() -> None:
    pen = StudyWriter().start(0, 0, 9).end(0, 9, 0.7, curve={3: 0.6, 9: 0.7}).close()
    assert answer_of(pen.record()).peak is None


def test_at_best_has_each_trial_as_it_was_when_it_was_best() -> None:
    pen = StudyWriter().start(0).end(0, 1, 0.8).start(0, 1, 3, rung=1).end(0, 3, 0.7).start(1).close()
    first, second = pen.record().at_best
    assert (first.resource, first.metrics, first.rung) == (1, {"accuracy": 0.8}, 0)
    assert second.trial_id == 1


@pytest.mark.parametrize(
    ("mode", "value", "constant", "warned"),
    [
        ("max", 0.5, 0.5, True),
        ("max", 0.6, 0.5, False),
        ("min", 3e9, 2.5e9, True),
        ("min", 2e9, 2.5e9, False),
    ],
)
def test_warnings_name_a_model_that_is_no_better_than_a_constant(
    mode: str, value: float, constant: float, warned: bool
) -> None:
    pen = StudyWriter(Objective(metric="m", mode=Mode(mode))).start(0, 0, 9).end(0, 9, value)
    ConstantAnswer(metric="m", value=constant, answer="'blue'").write(pen.storage)
    warnings = answer_of(pen.settle(TrialState.COMPLETED, 0).close().record()).warnings
    assert len(warnings) == warned
    assert all("'blue'" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("state", "reason", "is_partial", "can_continue"),
    [
        (TrialState.PAUSED, "resource", True, True),
        (TrialState.PAUSED, "target", True, False),
        (TrialState.STOPPED, "trials", True, False),
        (TrialState.COMPLETED, "trials", False, False),  # on a plateau
    ],
)
def test_warnings_name_a_best_trial_that_was_not_fully_trained(
    state: TrialState, reason: str, is_partial: bool, can_continue: bool
) -> None:
    pen = StudyWriter(search={"max_resource": 81}).start(0, 0, 3).end(0, 3, 0.8)
    warnings = answer_of(pen.settle(state, 0).close(reason).record()).warnings
    assert ["3 of 81 epochs" in warning for warning in warnings] == [True] * is_partial
    assert ["Raise the budget" in warning for warning in warnings] == [can_continue] * is_partial


def test_warnings_are_empty_while_a_study_runs() -> None:
    assert answer_of(StudyWriter().start(0).end(0, 1, 0.8).record(is_running=True)).warnings == ()


def test_warnings_count_the_trials_whose_batches_were_halved() -> None:
    pen = StudyWriter().start(0, 0, 9)
    pen.end(0, 9, notes={"micro_batch": {"rows": 32, "halved": 2}}).settle(TrialState.COMPLETED, 0)
    pen.start(1).end(1, notes={"micro_batch": {"rows": 8, "halved": 4}})
    pen.start(2).end(2, notes={"micro_batch": "a note of a function"})
    (warning,) = answer_of(pen.close().record()).warnings
    assert "2 of 3 trials" in warning
    assert "8 rows" in warning


def test_warnings_name_the_limits_that_every_trial_breaks() -> None:
    limited = Objective(metric="m", mode=Mode.MAX, limits=(Limit(metric="ms", at_most=20.0),))
    pen = StudyWriter(limited).start(0, 0, 9).end(0, 9, metrics={"m": 0.9, "ms": 35.0})
    (warning,) = answer_of(pen.settle(TrialState.COMPLETED, 0).close().record()).warnings
    assert "ms 35 (limit: at most 20)" in warning


def test_best_is_feasible_whatever_an_infeasible_trial_reaches() -> None:
    limited = Objective(metric="m", mode=Mode.MIN, limits=(Limit(metric="ms", at_most=20.0),))
    pen = StudyWriter(limited).start(0, 0, 9).end(0, 9, metrics={"m": 2.5e9, "ms": 20.0})
    answer = answer_of(pen.start(1, 0, 9).end(1, 9, metrics={"m": 0.1, "ms": 35.0}).close().record())
    assert answer.value == 2.5e9
