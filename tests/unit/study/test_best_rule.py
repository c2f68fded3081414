"""The rule by which a study chooses its best model: a trained one, by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.objective import BestRule, Choice, Mode, Objective, Score
from spark_hpo.ranking import Contest
from spark_hpo.report.leaderboard import leaderboard
from spark_hpo.report.serve.tally import Tally
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study import Confirm, Study
from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Params, TrialState
from tests.support.budget_ends import LOSS, MAX, Runner
from tests.support.simulated import Curve
from tests.support.virtual_studies import Killed, write_study

TRAINED = [(name, "trained") for name in ("adaptive_asha", "asha", "hyperband", "population_based")]


@pytest.mark.parametrize(
    ("rule", "expected"), [("trained", "5 after 9"), ("final", "5 after 81"), ("any", "3 after 3")]
)
def test_contest_prefers_trained_trials_and_their_best_checkpoints(rule: str, expected: str) -> None:
    contest: Contest[str] = Contest(Choice(rule=BestRule(rule)))

    def report(trial_id: int, resource: int, loss: float) -> None:
        contest.report(trial_id, (0, Score(0.0, loss), -resource, trial_id), f"{trial_id} after {resource}")

    report(3, 3, 0.1)
    assert contest.best == "3 after 3", "as long as no trial is trained"
    report(5, 9, 0.2)
    report(5, 81, 0.25)
    contest.complete(5)
    report(7, 3, 0.15)
    report(7, 81, 0.3)
    contest.complete(7)
    assert contest.best == expected
    contest.lose(3)
    assert contest.best == expected
    found = {result[0] for result in contest.contenders(3)}
    assert found == {"5", "7"}, "a trial that has failed is no finalist"


def test_contest_forgets_checkpoints_of_a_trial_that_began_again() -> None:
    contest: Contest[str] = Contest(Choice())
    contest.report(3, (0, Score(0.0, 0.1), -3, 3), "early")
    contest.report(3, (0, Score(0.0, 0.2), -81, 3), "end", from_scratch=True)
    contest.complete(3)
    assert contest.best == "end"


def test_contest_takes_a_trial_that_has_reached_the_target() -> None:
    contest: Contest[str] = Contest(Choice(target=0.15))
    contest.report(5, (0, Score(0.0, 0.2), -81, 5), "trained")
    contest.complete(5)
    contest.report(3, (0, Score(0.0, 0.1), -3, 3), "target")
    assert contest.best == "target"


def rung_losses(runner: Runner) -> dict[int, dict[int, float]]:
    """The losses at the ends of assignments, by trial and resource."""
    losses: dict[int, dict[int, float]] = {}
    for event in Journal(runner.storage, LOSS).past:
        if event.kind is EventKind.REPORTED:
            losses.setdefault(event.report.trial_id, {})[event.report.resource] = event.report.metrics["loss"]
    return losses


def check(study: Study, runner: Runner, rule: str) -> None:
    best, losses = study.best, rung_losses(runner)
    assert best is not None
    assert best.checkpoint is not None
    assert runner.storage.read(best.checkpoint) is not None, "the model is there"
    assert losses[best.trial_id][best.resource] == best.loss
    trained = {t.trial_id: t.loss for t in study.trials.values() if t.state is TrialState.COMPLETED}
    if rule == "any":
        assert best.loss == min(min(each.values()) for each in losses.values())
        return
    assert best.trial_id == min(trained, key=trained.__getitem__)
    expected = trained[best.trial_id] if rule == "final" else min(losses[best.trial_id].values())
    assert best.loss == expected


@pytest.mark.parametrize(("scheduler", "rule"), [*TRAINED, ("asha", "final"), ("asha", "any")])
def test_study_keeps_the_model_of_its_rule(tmp_path: Path, scheduler: str, rule: str) -> None:
    settings: dict[str, Any] = {"population_size": 4} if scheduler == "population_based" else {}
    options = {"choice": Choice(rule=BestRule(rule)), "settings": settings, "trials": 15}
    whole = Runner(tmp_path / "whole")
    check(expected := whole.run(scheduler, **options), whole, rule)
    killed = Runner(tmp_path / "killed")
    killed.run(scheduler, **options, kill_after=2 * len(whole.asked) // 3)
    check(study := killed.run(scheduler, **options), killed, rule)
    assert study.best is not None
    assert expected.best is not None
    if scheduler == "hyperband":  # others depend on what has ended when the next slot is opened
        assert (study.best.trial_id, study.best.resource) == (expected.best.trial_id, expected.best.resource)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median_stopping", "population_based"])
def test_budget_that_grows_never_loses_the_best_model(tmp_path: Path, scheduler: str) -> None:
    runner = Runner(tmp_path)
    for resource in (40, 100, 160, 220):
        check(runner.run(scheduler, resource=resource), runner, "trained")


def test_finalists_are_trained_ones(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    study = runner.run("asha", trials=15, confirm=Confirm(top=3, seeds=2))
    finals = Journal(runner.storage, LOSS).finalists
    assert finals is not None
    ends = {t.trial_id: t.loss for t in study.trials.values() if t.state is TrialState.COMPLETED}
    assert list(finals.resources) == sorted(ends, key=ends.__getitem__)[:3]
    losses = rung_losses(runner)
    for trial_id, resource in finals.resources.items():
        assert resource == min(losses[trial_id], key=losses[trial_id].__getitem__)


def test_folds_and_several_objectives_have_trained_models(tmp_path: Path) -> None:
    folds = Runner(tmp_path / "folds").run("asha", has_folds=True, trials=6)
    assert folds.best is not None
    assert folds.best.resource == MAX
    both = replace(LOSS, extra_objectives=(("other", Mode.MAX),))
    study = Runner(tmp_path / "both").run(trials=12, objective=both)
    assert study.best is not None
    assert study.trials[study.best.trial_id].state is TrialState.COMPLETED


class Noise:
    def curve(self, trial_id: int, params: Params) -> Curve:
        accuracy = np.random.default_rng(trial_id).random(27)
        return Curve(metrics={"accuracy": accuracy}, elapsed_s=np.arange(1.0, 28.0))


class Best(Callback):
    """Collects the best trial at the end of a driver."""

    def on_study_end(self, study: RunningStudy) -> None:
        assert study.best is not None
        self.found = study.best.trial_id, study.best.resource


@pytest.mark.parametrize("rule", ["trained", "final", "any", None])
@pytest.mark.parametrize("stop_after", [None, (17, Killed)])
def test_driver_report_and_live_page_name_the_same_model(
    tmp_path: Path, rule: str | None, stop_after: tuple[int, type[BaseException]] | None
) -> None:
    best = Best()
    search = {"scheduler": "asha", "max_resource": 27, **({"best": rule} if rule else {})}
    options: dict[str, Any] = {"search": search, "curves": Noise(), "trials": 20, "finish": 1}
    storage = write_study(tmp_path, **options, callbacks=[best], stop_after=stop_after)
    record, tally = StudyRecord.read(storage), Tally.begin(storage)
    tally.add(Journal(storage, record.objective).past)
    assert (record.ranking[0].trial_id, record.ranking[0].resource) == best.found
    assert tally.best is not None
    assert (tally.best.trial_id, tally.best.resource) == best.found
    rows = leaderboard(record.at_best, record.objective, best=record.best_id)
    assert (rows["trial"][0], rows["resource"][0]) == best.found


def test_study_of_an_earlier_version_keeps_its_choice() -> None:
    config = {
        "objective": {"metric": "accuracy", "mode": "max"},
        "search": {"max_resource": 9},
        "stopping": {"target": 0.9},
    }
    old = Definition.create(config)
    assert old.choice == Choice(rule=BestRule.ANY, target=-0.9)
    asked = {**config, "search": {"max_resource": 9, "best": "trained"}}
    old.check(asked, defaults={"search.best": "trained"})
    new = Definition.create(asked)
    assert new.choice.rule is BestRule.TRAINED
    with pytest.raises(ConfigError) as error:
        new.check({**config, "search": {"max_resource": 9, "best": "any"}})
    assert "search.best" in str(error.value)
    assert Objective(metric="accuracy", mode=Mode.MAX).loss({"accuracy": 0.9}) == old.choice.target
