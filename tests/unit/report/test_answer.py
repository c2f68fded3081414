import math

import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.report.answer import answer_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.virtual_studies import TODAY
from tests.support.written_studies import TEST, Pen


def test_a_study_without_a_trial_has_no_answer() -> None:
    answer = answer_of(Pen().record())
    assert (answer.best, answer.value, answer.test, answer.first, answer.default) == (None,) * 5
    assert not answer.has_default


def test_the_best_trial_is_compared_at_equal_training() -> None:
    pen = Pen(search={"max_resource": 9, "first": [{"x": 0.25}]})
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


def test_where_the_best_was_not_measured_as_early_its_end_is_compared_and_said() -> None:
    pen = Pen().start(0).end(0, 1, 0.4).start(1, 0, 9).end(1, 9, 0.9).close()
    first = answer_of(pen.record()).first
    assert first is not None
    assert (first.best, first.is_fair) == (0.9, False)


def test_less_is_better_where_the_metric_says_so() -> None:
    pen = Pen(Objective(metric="loss", mode=Mode.MIN)).start(0).end(0, 1, 3.0).start(1).end(1, 1, 1.0)
    first = answer_of(pen.close().record()).first
    assert first is not None
    assert first.gain == 2.0


def test_a_baseline_that_failed_has_no_value() -> None:
    broken = Failure(kind=FailureKind.TRIAL, message="nan")
    pen = Pen().start(0).end(0, 0, None, failure=broken).start(1).end(1).close()
    first = answer_of(pen.record()).first
    assert first is not None
    assert (first.value, first.gain) == (None, None)


def test_a_test_of_an_earlier_checkpoint_is_not_the_bests() -> None:
    pen = Pen().start(0).end(0, 1, 0.4).start(0, 1, 1, **TEST).end(0, 1, **TEST)
    pen.start(0, 1, 3, rung=1).end(0, 3, 0.6)
    assert answer_of(pen.record()).test is None


def test_a_configuration_that_does_not_fit_the_space_is_no_default() -> None:
    answer = answer_of(Pen(search={"max_resource": 9, "first": [{"y": 1}]}).start(0).end(0).record())
    assert answer.has_default
    assert answer.default is None


def test_what_runs_today_is_found_in_a_study(record: StudyRecord) -> None:
    answer = answer_of(record)
    assert answer.default is not None
    assert answer.default.trial.params == TODAY
    assert answer.first is None, "it is the same trial"
    assert answer.default.gain is not None
    assert answer.default.gain > 0
    assert answer.test is not None
    assert answer.best is not None
    assert answer.best.loss == min(t.loss for t in record.trials.values() if math.isfinite(t.loss))
