"""FunctionRank reports notes, the function's own parameters and TrialPruned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.errors import TrialPruned
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Trial, TrialState

ASSIGNMENT = Assignment(
    trial_id=4,
    attempt=1,
    params={"x": 1},
    bracket=0,
    rung=0,
    resource_from=0,
    resource_to=3,
    checkpoint=None,
    seed=11,
)


def run(function: Any, tmp_path: Path) -> Report:
    spec = RankSpec(
        study_id="study",
        storage=Storage(tmp_path / "study"),
        trainable=function,
        table=None,
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(),
        max_resource=3,
        seed=0,
        reader="arrow",
        shuffle_window=1,
    )
    return run_rank(spec, ASSIGNMENT, rank=0, world_size=1)


def trial_after(report: Report) -> Trial:
    before = Trial(trial_id=4, params={"x": 1}, state=TrialState.RUNNING, bracket=0, rung=0)
    score = Objective(metric="loss", mode=Mode.MIN).score(report.scored_metrics)
    return before.with_report(report, score=score, time=1.0)


def test_report_has_notes_and_parameters_and_survives_json(tmp_path: Path) -> None:
    def train(ctx: Any) -> dict[str, float]:
        assert ctx.trial_id == 4
        ctx.params = {**ctx.params, "y": 2}
        ctx.note("seen", ["a", None])
        return {"loss": 1.0}

    report = run(train, tmp_path)
    assert report.failure is None
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    trial = trial_after(report)
    assert trial.params == {"x": 1, "y": 2}
    assert trial.notes == {"seen": ["a", None]}
    assert trial.state is TrialState.PAUSED


def test_report_of_a_failed_function_has_its_notes(tmp_path: Path) -> None:
    def train(ctx: Any) -> None:
        ctx.note("seen", 1)
        ctx.note("wrong", math.nan)

    report = run(train, tmp_path)
    assert report.failure is not None
    assert "ctx.note: wrong" in report.failure.message
    assert trial_after(report).notes == {"seen": 1}


def test_report_of_a_pruned_trial_is_not_a_failure(tmp_path: Path) -> None:
    def train(ctx: Any) -> None:
        ctx.report({"loss": 0.5})
        raise TrialPruned("not promising")

    report = run(train, tmp_path)
    assert report.failure is None
    assert report.is_pruned
    assert [m.metrics for m in report.curve] == [{"loss": 0.5}]
    trial = trial_after(report)
    assert trial.state is TrialState.STOPPED
    assert math.isinf(trial.loss)

    def at_once(ctx: Any) -> None:
        raise TrialPruned

    report = run(at_once, tmp_path)
    assert report.is_pruned
    assert report.metrics == {}


@pytest.mark.parametrize("silent", [True, False])
def test_report_omits_fields_that_are_not_set(silent: bool, tmp_path: Path) -> None:
    def train(ctx: Any) -> dict[str, float]:
        if not silent:
            ctx.note("word", 1)
        return {"loss": 1.0}

    record = run(train, tmp_path).to_json()
    assert record.keys() & {"notes", "params", "is_pruned"} == (set() if silent else {"notes"})
    assert "is_proposal" not in ASSIGNMENT.to_json()
    assert Assignment.from_json(ASSIGNMENT.to_json()) == ASSIGNMENT
