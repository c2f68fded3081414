"""The best trial and the Pareto front of a study, also after a resume."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.ranking import pareto_front
from spark_hpo.trial import Failure, FailureKind, Trial, TrialState
from tests.support.study_bench import LOSS, Killed, StudyRunner

FAILURE = Failure(kind=FailureKind.TRIAL, message="ValueError: no")
BOTH = replace(LOSS, extra_objectives=(("cost", Mode.MIN),))  # on the front, x is from -1 to 0


def trial(trial_id: int, loss: float, cost: float, objective: Objective = BOTH, **changes: object) -> Trial:
    fields: dict[str, object] = {
        "trial_id": trial_id,
        "params": {},
        "state": TrialState.COMPLETED,
        "bracket": 0,
        "rung": 0,
        "resource": 9,
        "metrics": {"loss": loss, "cost": cost},
        "loss": objective.loss({"loss": loss, "cost": cost}),
    }
    return Trial(**(fields | changes))  # type: ignore[arg-type]


def front(bench: StudyRunner) -> list[Trial]:
    assert bench.journal is not None
    return pareto_front(bench.journal.trials.values(), bench.objective)


def asked(bench: StudyRunner) -> list[object]:
    return [(a.trial_id, a.params, a.resource_to, a.seed) for a in bench.training.asked]


def test_front_has_completed_trials_that_no_other_dominates() -> None:
    trials = [
        trial(5, 0.3, 1.0),
        trial(2, 0.1, 3.0),
        trial(3, 0.3, 3.0),  # beaten by both
        trial(4, 0.1, 3.0),  # the equal of 2
        trial(6, 0.0, 0.0, state=TrialState.STOPPED),
        trial(7, 0.0, 0.0, state=TrialState.PAUSED),
        trial(8, 0.0, 0.0, state=TrialState.FAILED),
        trial(9, 0.0, 0.0, metrics={"loss": 0.0}),  # its cost is not known
    ]
    assert [t.trial_id for t in pareto_front(trials, BOTH)] == [2, 4, 5]


def test_front_of_an_objective_to_maximize() -> None:
    trials = [trial(0, 0.3, 1.0), trial(1, 0.1, 3.0), trial(2, 0.2, 2.0)]
    more = replace(BOTH, extra_objectives=(("cost", Mode.MAX),))
    assert [t.trial_id for t in pareto_front(trials, more)] == [1]


def test_front_excludes_trials_that_break_a_limit() -> None:
    limited = replace(BOTH, limits=(Limit(metric="cost", at_most=2.0),))
    trials = [
        trial(i, loss, cost, limited) for i, (loss, cost) in enumerate([(0.3, 1.0), (0.1, 3.0), (0.2, 2.0)])
    ]
    assert [t.trial_id for t in pareto_front(trials, limited)] == [0, 2]
    assert pareto_front(trials[1:2], limited) == []


def test_front_of_one_objective_is_empty() -> None:
    assert pareto_front([trial(0, 0.3, 1.0)], LOSS) == []


@pytest.mark.parametrize("scheduler", ["full", "hyperband"])
def test_study_keeps_the_checkpoints_of_the_best_and_the_front(tmp_path: Path, scheduler: str) -> None:
    bench = StudyRunner(tmp_path, BOTH)
    study = bench.study(scheduler=scheduler, trials=30)
    study.run()
    assert study.best is not None
    on_front = front(bench)
    assert {t.resource for t in on_front} == {9}
    assert 1 < len(on_front) < sum(t.resource == 9 for t in bench.journal.trials.values())  # type: ignore[union-attr]
    assert all(-1 <= t.params["x"] <= 0 for t in on_front[1:-1])
    assert bench.checkpoints == {study.best.checkpoint, *(t.checkpoint for t in on_front)}


needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is an extra")


@pytest.mark.parametrize("scheduler", ["full", "hyperband"])
@pytest.mark.parametrize(
    "sampler",
    ["tpe", pytest.param("nsga2", marks=needs_optuna), pytest.param("optuna_tpe", marks=needs_optuna)],
)
def test_resume_after_a_kill_changes_neither_proposals_nor_front(
    tmp_path: Path, sampler: str, scheduler: str
) -> None:
    undisturbed = StudyRunner(tmp_path / "undisturbed", BOTH)
    undisturbed.study(sampler=sampler, scheduler=scheduler, trials=40).run()

    bench = StudyRunner(tmp_path / "killed", BOTH)
    bench.training.kill_after = 26  # when the models are asked already
    with pytest.raises(Killed):
        bench.study(sampler=sampler, scheduler=scheduler, trials=40).run()
    bench.training.kill_after = None
    bench.study(sampler=sampler, scheduler=scheduler, trials=40).run()
    assert asked(bench) == asked(undisturbed)
    assert [t.trial_id for t in front(bench)] == [t.trial_id for t in front(undisturbed)]
    assert {t.checkpoint for t in front(bench)} <= bench.checkpoints
    assert len(bench.checkpoints) == len(undisturbed.checkpoints)


def test_sampler_learns_from_the_second_objective(tmp_path: Path) -> None:
    both, one = StudyRunner(tmp_path / "both", BOTH), StudyRunner(tmp_path / "one", LOSS)
    for bench in (both, one):
        bench.study(sampler="tpe", scheduler="full", trials=60).run()
    far = [sum(a.params["x"] < -0.4 for a in bench.training.asked[30:]) for bench in (both, one)]
    assert far[0] > 2 * far[1], "the front reaches from the least loss to the least cost"


def test_front_excludes_failed_trials(tmp_path: Path) -> None:
    bench = StudyRunner(tmp_path, BOTH)
    bench.training.fail = lambda a: FAILURE if a.trial_id % 2 else None
    bench.study(sampler="tpe", scheduler="full", trials=30).run()
    assert front(bench)
    assert all(t.trial_id % 2 == 0 for t in front(bench))


def test_front_is_empty_when_a_metric_is_never_reported(tmp_path: Path) -> None:
    unknown = Objective(metric="loss", mode=Mode.MIN, extra_objectives=(("memory", Mode.MIN),))
    bench = StudyRunner(tmp_path, unknown)
    study = bench.study(sampler="tpe", scheduler="full", trials=30)
    study.run()
    assert study.best is not None
    assert front(bench) == []
