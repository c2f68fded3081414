"""Finalists are trained again with other seeds, and the one with the best mean wins."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.report.serve.tally import Tally
from spark_hpo.study import Confirm, Study
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.finalists import compare
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Assignment, TrialState
from tests.support.budget_ends import LOSS, MAX, Runner

CONFIRM = Confirm(top=3, seeds=3)


def repeats(runner: Runner) -> list[Assignment]:
    return [a for a in runner.asked if a.repeat is not None]


def checkpoints(runner: Runner) -> set[str]:
    return {
        f"checkpoints/{folder}/{name}"
        for folder in runner.storage.names("checkpoints")
        for name in runner.storage.names(f"checkpoints/{folder}")
    }


def means(runner: Runner) -> dict[int, float]:
    losses: dict[int, list[float]] = {}
    for event in Journal(runner.storage, LOSS).past:
        if event.kind is EventKind.REPEATED:
            losses.setdefault(event.report.trial_id, []).append(event.report.metrics["loss"])
    return {trial_id: statistics.fmean(each) for trial_id, each in losses.items()}


def winner(study: Study) -> int:
    assert study.best is not None
    return study.best.trial_id


def test_finalists_are_trained_again_and_the_best_mean_wins(tmp_path: Path) -> None:
    plain = Runner(tmp_path / "plain")
    before = plain.run(trials=15, slots=3)
    runner = Runner(tmp_path / "study")
    study = runner.run(trials=15, slots=3, confirm=CONFIRM)
    asked = repeats(runner)
    finalists = {a.trial_id for a in asked}
    assert (len(asked), len(finalists), len(study.trials)) == (9, 3, 15)
    assert winner(before) in finalists
    for trial_id in finalists:
        assert study.trials[trial_id].state is TrialState.COMPLETED, "the reserve has trained all finalists"
        seeds = {a.seed for a in runner.asked if a.trial_id == trial_id}
        assert len(seeds) == 1 + 3
    assert all((a.resource_from, a.checkpoint) == (0, None) for a in asked)
    found = means(runner)
    assert winner(study) == min(found, key=found.__getitem__)
    spent = sum(a.resource_to - a.resource_from for a in runner.asked)
    assert study.progress.resource_spent == spent
    assert study.best is not None
    assert study.best.checkpoint in checkpoints(runner), "the model that is registered"
    assert not any("seed" in path for path in checkpoints(runner))


@pytest.mark.parametrize("kill_before_end", [9, 5, 1])
def test_confirmation_resumes_in_the_middle(tmp_path: Path, kill_before_end: int) -> None:
    whole = Runner(tmp_path / "whole")
    expected = whole.run(trials=12, slots=1, confirm=CONFIRM)
    runner = Runner(tmp_path / "study")
    runner.run(trials=12, slots=1, confirm=CONFIRM, kill_after=len(whole.asked) - kill_before_end)
    study = runner.run(trials=12, slots=1, confirm=CONFIRM)
    assert winner(study) == winner(expected)
    assert means(runner) == means(whole)
    assert len({(a.key, a.seed) for a in repeats(runner)}) == 9
    assert study.progress.resource_spent == expected.progress.resource_spent
    asked = len(runner.asked)
    assert winner(runner.run(trials=12, slots=1, confirm=CONFIRM)) == winner(study)
    assert len(runner.asked) == asked, "a finished study runs nothing again"


@pytest.mark.parametrize("budget", [{"resource": 500}, {"seconds": 500.0}], ids=str)
def test_confirmation_is_counted_by_the_budget(tmp_path: Path, budget: dict[str, float]) -> None:
    runner = Runner(tmp_path)
    study = runner.run(slots=1, confirm=Confirm(top=2, seeds=3), **budget)  # type: ignore[arg-type]
    assert len(repeats(runner)) == 6
    assert study.progress.resource_spent <= 500 + MAX
    assert study.progress.seconds <= 500 + MAX


def test_larger_budget_revokes_the_confirmation(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    runner.run(trials=9, confirm=CONFIRM)
    first = {a.trial_id for a in repeats(runner)}
    study = runner.run(trials=27, confirm=CONFIRM)
    journal = Journal(runner.storage, LOSS)
    assert journal.finalists is not None
    assert winner(study) == journal.finalists.winner
    again = [(a.key, a.resource_to) for a in repeats(runner)]
    assert len(again) == len(set(again)), "a training is not repeated"
    assert {a.trial_id for a in repeats(runner)} - first, "with later trials among the finalists"


def test_comparison_says_how_sure_the_winner_is() -> None:
    close = compare({4: [0.50, 0.60, 0.70], 7: [0.49, 0.59, 0.72]})
    assert close[0].chance == pytest.approx(0.5, abs=0.1)
    clear = compare({4: [0.50, 0.51, 0.52], 7: [0.10, 0.11, 0.12], 9: [0.80, 0.79, 0.81]})
    assert [each.trial_id for each in clear] == [7, 4, 9]
    assert clear[0].chance > 0.99
    assert (clear[0].mean, clear[0].spread) == (pytest.approx(0.11), pytest.approx(0.01))
    assert sum(each.chance for each in clear) == pytest.approx(1.0)
    broken = compare({4: [0.5, 0.5, 0.5], 7: [0.1, float("inf"), 0.1]})
    assert [(each.trial_id, each.num_failed) for each in broken] == [(4, 0), (7, 1)]


@pytest.mark.parametrize("kill_after", [None, 5, 20])
def test_folds_of_finalists_are_trained_with_other_seeds(tmp_path: Path, kill_after: int | None) -> None:
    runner, num_folds = Runner(tmp_path), 3
    options: dict[str, Any] = {"has_folds": True, "trials": 4, "confirm": Confirm(top=2, seeds=2)}
    options["max_resource"] = num_folds
    if kill_after is not None:
        runner.run("full", kill_after=4 * num_folds + kill_after // 2, **options)
    study = runner.run("full", **options)
    asked = {(a.trial_id, a.repeat, a.fold): a for a in repeats(runner)}
    finals = Journal(runner.storage, LOSS).finalists
    assert finals is not None
    assert asked.keys() == {(t, s, f) for t in finals.resources for s in (1, 2) for f in range(1, 4)}
    assert len({asked[t, s, 1].seed for t in finals.resources for s in (1, 2)}) == 4
    for finalist in finals.compared():
        for seed, loss in enumerate(finalist.losses, 1):
            each = [finals.repeats[finalist.trial_id, f, seed].metrics["loss"] for f in range(1, 4)]
            assert loss == pytest.approx(sum(each) / num_folds)
    assert winner(study) == finals.winner
    assert study.progress.resource_spent == (4 + 4) * num_folds
    config = {"objective": {"metric": "loss", "mode": "min"}, "search": {"max_resource": num_folds}}
    tally = Tally(Definition.create({**config, "budget": {}}), None)
    tally.add(Journal(runner.storage, LOSS).past)
    assert tally.best is not None
    assert (tally.best.trial_id, tally.resource) == (finals.winner, (4 + 4) * num_folds)
