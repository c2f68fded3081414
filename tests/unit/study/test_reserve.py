"""The end of a budget: the best trials are trained to the end, over every scheduler and limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.objective import BestRule, Choice, Mode
from spark_hpo.search.stopping import CostSpent, NoImprovement, TargetReached
from spark_hpo.study import Study
from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Assignment, Purpose, Report, Trial, TrialState
from tests.support.budget_ends import LOSS, MAX, Runner

SCHEDULERS = ("adaptive_asha", "asha", "hyperband", "successive_halving", "median_stopping", "full")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "study")


def finishes(runner: Runner) -> list[Assignment]:
    return [a for a in runner.asked if a.purpose is Purpose.FINISH]


def is_trained(study: Study) -> bool:
    assert study.best is not None
    return study.trials[study.best.trial_id].state is TrialState.COMPLETED


def at_best(study: Study) -> tuple[int, int, float]:
    assert study.best is not None
    return study.best.trial_id, study.best.resource, study.best.loss


def best_of(study: Study) -> int:
    assert study.best is not None
    return study.best.trial_id


def test_twelve_trials_end_with_a_model_that_was_trained(tmp_path: Path) -> None:
    refused, anything = Runner(tmp_path / "refused"), Choice(rule=BestRule.ANY)
    study = refused.run(trials=12, finish=0, choice=anything)
    assert study.best is not None
    stopped_at = study.best.resource
    assert (stopped_at < MAX, is_trained(study)) == (True, False), "the case that the reserve is for"
    runner = Runner(tmp_path / "study")
    study = runner.run(trials=12, choice=anything)
    assert study.stopped_by == "trials"
    assert is_trained(study)
    assert len(study.trials) == 12
    (finish,) = finishes(runner)
    assert (finish.trial_id, finish.resource_to) == (best_of(study), MAX)
    assert study.progress.resource_spent == sum(a.resource_to - a.resource_from for a in runner.asked)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("budget", [{"trials": 15}, {"resource": 200}, {"seconds": 90.0}], ids=str)
def test_every_scheduler_and_limit_ends_with_a_trained_model(
    runner: Runner, scheduler: str, budget: dict[str, Any]
) -> None:
    slots = 1 if "trials" in budget else 3
    settings = {"num_trials": 27} if scheduler == "successive_halving" else {}
    study = runner.run(scheduler, slots=slots, settings=settings, **budget)
    assert study.stopped_by in {*budget, "search_space"}
    assert is_trained(study)
    if "trials" in budget:
        assert len(study.trials) == 15
    if "resource" in budget:  # a running assignment may exceed it, as without a reserve
        assert study.progress.resource_spent <= 200 + slots * (MAX - 1)
    if "seconds" in budget:
        assert study.progress.seconds <= 90.0


def test_reserve_trains_as_many_of_the_best_as_asked(runner: Runner) -> None:
    study = runner.run(trials=20, finish=4, slots=4)
    lowest: dict[int, float] = {}
    for event in Journal(runner.storage, LOSS).past:
        if event.kind is EventKind.REPORTED:
            loss = event.report.metrics["loss"]
            lowest[event.report.trial_id] = min(loss, lowest.get(event.report.trial_id, loss))
    best = sorted(lowest, key=lowest.__getitem__)[:4]
    assert {study.trials[trial_id].state for trial_id in best} == {TrialState.COMPLETED}
    assert 0 < len(finishes(runner)) <= 4


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
@pytest.mark.parametrize("budget", [{"trials": 12}, {"resource": 100}, {"seconds": 60.0}], ids=str)
def test_reserve_is_resumed_and_replayed_after_a_kill_anywhere(
    tmp_path: Path, scheduler: str, budget: dict[str, Any]
) -> None:
    whole = Runner(tmp_path / "whole")
    expected = whole.run(scheduler, slots=1, **budget)
    num_asked = len(whole.asked)
    for kill_after in (num_asked // 2, num_asked - 1):  # in the search, and at the start of the reserve
        runner = Runner(tmp_path / str(kill_after))
        runner.run(scheduler, slots=1, kill_after=kill_after, **budget)
        study = runner.run(scheduler, slots=1, **budget)
        assert is_trained(study)
        asked = len(runner.asked)
        again = runner.run(scheduler, slots=1, **budget)
        assert len(runner.asked) == asked, "a finished study runs nothing again"
        assert again.stopped_by == study.stopped_by
        if "seconds" not in budget:
            assert {a.key: a.resource_to for a in runner.asked} == {a.key: a.resource_to for a in whole.asked}
            assert at_best(again) == at_best(expected)


@pytest.mark.parametrize("limit", ["resource", "seconds"])
@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median_stopping", "population_based"])
def test_finished_study_continues_with_a_larger_budget(runner: Runner, scheduler: str, limit: str) -> None:
    for budget in (60.0, 150.0):
        study = runner.run(scheduler, **{limit: budget if limit == "seconds" else int(budget)})
        assert study.stopped_by == limit
        assert is_trained(study)
    trained = {a.trial_id for a in finishes(runner)}
    if scheduler in ("hyperband", "population_based"):
        assert trained
    last = {a.trial_id: a for a in runner.asked}
    assert all(last[trial_id].purpose is Purpose.FINISH for trial_id in trained), "nothing is trained twice"
    asked = len(runner.asked)
    again = runner.run(scheduler, **{limit: 150})
    assert len(runner.asked) == asked
    assert at_best(again) == at_best(study)


def test_scheduler_is_answered_for_trials_that_the_reserve_has_trained(runner: Runner) -> None:
    for resource in (40, 80, 120, 160, 200, 240):
        runner.run("hyperband", resource=resource)
    events = Journal(runner.storage, LOSS).past
    skipped = [e.data["trial_id"] for e in events if e.kind is EventKind.SKIPPED]
    assert set(skipped) <= {a.trial_id for a in finishes(runner)}
    assert skipped


def test_child_starts_where_the_scheduler_left_its_parent(runner: Runner) -> None:
    """The backend checks that the checkpoint of each assignment is that of its first resource."""
    for seconds in (40, 120, 200):
        runner.run("population_based", slots=4, seconds=seconds, settings={"population_size": 4})
    finished = {a.trial_id for a in finishes(runner)}
    children = [a for a in runner.asked if a.checkpoint and f"trial-{a.trial_id:06d}" not in a.checkpoint]
    parents = {int(a.checkpoint.partition("trial-")[2][:6]) for a in children if a.checkpoint}
    assert parents & finished


def test_folds_of_the_best_trial_are_completed(runner: Runner) -> None:
    study = runner.run("asha", has_folds=True, settings={"reduction_factor": 3}, resource=20)
    assert is_trained(study)
    assert study.best is not None
    assert study.best.resource == MAX
    folds = sorted(a.fold for a in runner.asked if a.trial_id == best_of(study) and a.fold is not None)
    assert folds == list(range(1, MAX + 1))


def test_reserve_finishes_the_best_in_the_first_of_several_objectives(runner: Runner) -> None:
    both = replace(LOSS, extra_objectives=(("other", Mode.MAX),))
    assert is_trained(runner.run(trials=12, objective=both))


def test_reserve_comes_after_rules_that_end_a_search_but_not_after_its_target(tmp_path: Path) -> None:
    rule = NoImprovement(MAX, 1)
    assert is_trained(study := Runner(tmp_path / "rule").run(trials=200, slots=1, stopping=[rule]))
    assert study.stopped_by == "no_improvement"
    runner = Runner(tmp_path / "target")
    assert runner.run(trials=200, stopping=[TargetReached(0.05)]).stopped_by == "target"
    assert not finishes(runner)


def test_reserve_is_held_back_from_a_cost(runner: Runner) -> None:
    rule = CostSpent(limit=100.0, price_per_slot_hour=3600.0)  # 1 a second
    study = runner.run(slots=1, resource=10**6, stopping=[rule])
    assert study.stopped_by == "cost"
    assert is_trained(study)
    assert rule.cost <= 100.0 + 9, "an assignment that runs when the limit is reached is completed"


def test_callback_ends_a_study_without_the_reserve(runner: Runner) -> None:
    class Stop(Callback):
        def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
            study.stop("enough")

    assert runner.run(trials=12, callbacks=[Stop()]).stopped_by == "enough"
    assert not finishes(runner)


def test_reserve_is_in_the_journal_before_it_is_used(runner: Runner) -> None:
    study = runner.run(seconds=60.0, slots=1)
    events = Journal(runner.storage, LOSS).past
    kinds = [e.kind for e in events]
    plan = events[kinds.index(EventKind.RESERVE)]
    first = next(e for e in events if e.kind is EventKind.ASSIGNED and e.assignment.purpose is Purpose.FINISH)
    assert plan.sequence < first.sequence
    assert plan.data["trials"] == [first.assignment.trial_id] == [best_of(study)]
    assert plan.data["resource"] == MAX - first.assignment.resource_from
    assert plan.data["seconds"] == pytest.approx(plan.data["resource"], rel=0.01)
    assert study.progress.seconds <= 60.0
