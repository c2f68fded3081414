from itertools import pairwise

import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.report.cost import cost_of
from spark_hpo.report.expected_cost import ExpectedCost
from spark_hpo.report.ladder import Fate, ladder_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.view import StudyView
from spark_hpo.trial import Failure, FailureKind, RankUse, TrialState
from tests.support.written_studies import TEST, StudyWriter


def test_cost_continues_each_trial_at_its_own_speed() -> None:
    pen = StudyWriter(stopping={"price_per_slot_hour": 3600.0, "cost": 1e9}).slots(2)
    # An epoch of trial 0 takes 2 s, one of trial 1 takes 5 s; a start takes one more.
    pen.start(0, 0, 9).end(0, 9, seconds=19, curve={r: 0.5 for r in range(1, 10)})
    pen.settle(TrialState.COMPLETED, 0)
    pen.start(1).end(1, 1, seconds=3).settle(TrialState.STOPPED, 1)
    pen.start(2).lose(2, seconds=7).start(2, attempt=2)
    broken = Failure(kind=FailureKind.TRIAL, message="nan")
    pen.end(2, 0, None, attempt=2, seconds=1, failure=broken)
    pen.start(0, 9, 9, **TEST).end(0, 9, seconds=2, **TEST).close()
    cost = cost_of(pen.record())
    assert (cost.trials, cost.resource, cost.full_resource) == (3, 9 + 1, 9 + 9)
    assert (cost.slot_s, cost.lost_s) == (19 + 3 + 8 + 2, 7)
    assert cost.full_slot_s == cost.slot_s + 8 * 2.0
    assert cost.saved == pytest.approx(8 / 18)
    assert (cost.money, cost.full_money) == (pytest.approx(32), pytest.approx(48))


def test_cost_of_a_study_without_training() -> None:
    cost = cost_of(StudyWriter().slots(1).start(0).record())
    assert (cost.trials, cost.resource, cost.saved, cost.full_slot_s, cost.money) == (0, 0, None, None, None)


def test_cost_estimates_the_speed_of_trials_without_curves() -> None:
    pen = StudyWriter().start(0).end(0, 1, curve={}, seconds=4).settle(TrialState.STOPPED, 0).close()
    assert cost_of(pen.record()).full_slot_s == 4 + 8 * 4


def test_expected_cost_is_that_of_similar_trials_on_the_same_scale() -> None:
    pen = StudyWriter()
    for trial_id in range(12):
        x = trial_id / 11
        use = RankUse(rank=0, seconds=1.0, memory_bytes=int(1e9 * 2**x))
        pen.start(trial_id, params={"x": x}).end(trial_id, 1, seconds=10**x, usage=(use,))
    view = StudyView(pen.storage)
    cheap, dear = view.expected_cost({"x": 0.1}), view.expected_cost({"x": 0.9})
    # The largest resource is 9 epochs.
    assert (cheap.seconds, dear.seconds) == pytest.approx((9 * 10**0.1, 9 * 10**0.9), rel=0.1)
    assert (cheap.memory_bytes, dear.memory_bytes) == pytest.approx((1e9 * 2**0.1, 1e9 * 2**0.9), rel=0.1)
    with pytest.raises(SpaceError):
        view.expected_cost({"x": 2.0})


def test_expected_cost_is_not_known_from_few_trials() -> None:
    pen = StudyWriter().start(0).end(0, 1, seconds=4)
    assert StudyView(pen.storage).expected_cost({"x": 0.5}) == ExpectedCost(seconds=None, memory_bytes=None)


def test_cost_adds_up_all_reports(record: StudyRecord) -> None:
    cost = cost_of(record)
    trained = [trial for trial in record.trials.values() if trial.ended_at is not None]
    # A trial that failed has the resource of its last good report, and has trained beyond it.
    reached = [max([trial.resource, *(m.resource for m in trial.curve)]) for trial in trained]
    assert cost.resource == sum(reached)
    assert cost.full_resource > 4 * cost.resource
    assert cost.full_slot_s is not None
    assert cost.full_slot_s > 3 * cost.slot_s


def test_ladder_of_hyperband_follows_its_plan(record: StudyRecord) -> None:
    ladder = ladder_of(record)
    # The 40 trials of R = 27, eta = 3: brackets of 27/9/3/1, 9/3/1 and what is left of 4.
    assert [(r.bracket, r.resource, r.trials) for r in ladder] == [
        *[(0, 1, 27), (0, 3, 9), (0, 9, 3), (0, 27, 1)],
        *[(1, 3, 9), (1, 9, 3), (1, 27, 1)],
        *[(2, 9, 4), (2, 27, 1)],
    ]
    for below, above in pairwise(ladder):
        if below.bracket == above.bracket:
            assert below.fates[Fate.PROMOTED] == above.trials
    failed = sum(trial.state is TrialState.FAILED for trial in record.trials.values())
    assert sum(rung.fates.get(Fate.FAILED, 0) for rung in ladder) == failed
