"""Studies with trials that their training function prunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.backend.inline import InlineBackend
from spark_hpo.trial import Assignment, Report, TrialState
from tests.support.study_bench import StudyRunner


def train(assignment: Assignment, **_: Any) -> Report:
    """Prunes every other trial at once, with the best metric of all."""
    is_pruned = assignment.trial_id % 2 == 1
    return Report(
        trial_id=assignment.trial_id,
        attempt=assignment.attempt,
        rung=assignment.rung,
        resource=assignment.resource_to,
        metrics={"loss": -1.0 if is_pruned else float(assignment.trial_id)},
        is_pruned=is_pruned,
    )


@pytest.mark.parametrize("scheduler", ["full", "hyperband", "asha", "adaptive_asha", "median_stopping"])
def test_pruned_trials_are_stopped_and_never_the_best(scheduler: str, tmp_path: Path) -> None:
    bench = StudyRunner(tmp_path / "study")
    study = bench.study(scheduler=scheduler, sampler="tpe", backend=InlineBackend(train))
    study.run()
    for trial_id, trial in study.trials.items():
        if trial_id % 2:
            assert trial.state is TrialState.STOPPED
            assert trial.rung == 0
            assert trial.failure is None
    assert study.best is not None
    assert study.best.trial_id == 0
    assert study.progress.failed == 0
    again = bench.study(scheduler=scheduler, sampler="tpe", backend=InlineBackend(train))
    assert again.run() == study.stopped_by
    assert again.progress.run == 0
    assert again.best == study.best
