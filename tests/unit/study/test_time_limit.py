"""A limit of time, on a simulated clock: it is kept, and the study ends with a trained model if one fits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spark_hpo.study import Confirm
from spark_hpo.study.time_limit import makespan
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Params, Purpose, TrialState
from tests.support import budget_ends
from tests.support.budget_ends import LOSS, MAX, Runner
from tests.support.simulated import Curve


@dataclass
class Paced:
    """Noise at paces that differ by a factor of up to `differ`; the mean is about a second per epoch."""

    differ: float

    def curve(self, trial_id: int, params: Params) -> Curve:
        rng = np.random.default_rng(int(params["x"] * 1e9))
        pace = self.differ ** float(rng.uniform(-0.5, 0.5))
        return Curve(metrics={"loss": rng.random(MAX)}, elapsed_s=pace * np.arange(1.0, MAX + 1))


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_ends, "Noise", lambda: Paced(3.0))


@pytest.mark.usefixtures("paced")
@pytest.mark.parametrize("limit_s", [70.0, 150.0])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("scheduler", ["adaptive_asha", "asha", "hyperband", "population_based"])
def test_limit_of_time_is_kept_and_a_model_is_trained(
    tmp_path: Path, scheduler: str, slots: int, limit_s: float
) -> None:
    runner = Runner(tmp_path)
    study = runner.run(scheduler, slots=slots, seconds=limit_s)
    assert study.stopped_by == "seconds"
    assert study.progress.seconds <= limit_s
    assert study.best is not None
    assert study.trials[study.best.trial_id].state is TrialState.COMPLETED
    if slots == 1:
        assert study.progress.seconds >= 0.6 * limit_s, "most of the time is used"


@pytest.mark.usefixtures("paced")
def test_limit_of_time_is_kept_by_a_confirmation(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    study = runner.run(slots=3, seconds=300.0, confirm=Confirm(top=3, seeds=2))
    assert study.progress.seconds <= 300.0
    assert sum(a.repeat is not None for a in runner.asked) == 6
    assert study.best is not None
    finals = Journal(runner.storage, LOSS).finalists
    assert finals is not None
    assert finals.winner == study.best.trial_id


def test_confirmation_without_time_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(tmp_path)
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        study = runner.run(slots=1, seconds=100.0, confirm=Confirm(top=3, seeds=3))
    assert study.progress.seconds <= 100.0
    assert not [a for a in runner.asked if a.repeat is not None]
    assert "finalists" in caplog.text


def test_limit_below_a_full_training_trains_nothing_to_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(tmp_path)
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        study = runner.run(slots=2, seconds=20.0)
    assert study.progress.seconds <= 20.0
    assert study.best is not None
    assert study.best.resource < MAX
    assert "no time is left" in caplog.text
    more = runner.run(slots=2, seconds=90.0)
    assert more.progress.seconds <= 90.0
    assert more.best is not None
    assert more.trials[more.best.trial_id].state is TrialState.COMPLETED


def test_reserve_takes_a_trial_that_fits_where_a_better_one_does_not(tmp_path: Path) -> None:
    """A trial that becomes the best too late for its training leaves the reserve to one that still fits."""
    finished = 0
    for seed in range(6):
        runner = Runner(tmp_path / str(seed))
        study = runner.run("hyperband", slots=3, seconds=45.0 + 3 * seed)
        assert study.progress.seconds <= 45.0 + 3 * seed
        assert study.best is not None
        assert study.trials[study.best.trial_id].state is TrialState.COMPLETED
        finished += sum(a.purpose is Purpose.FINISH for a in runner.asked)
        plans = [e.data for e in Journal(runner.storage, LOSS).past if e.kind is EventKind.RESERVE]
        assert all(plan["seconds"] <= 45.0 + 3 * seed for plan in plans)
    assert finished


def test_makespan_begins_the_longest_jobs_first() -> None:
    assert makespan([(0.0, 3.0), (0.0, 5.0), (0.0, 2.0)], [0.0, 0.0]) == 5.0
    assert makespan([(4.0, 1.0)], [0.0, 2.0]) == 5.0
    assert makespan([], [7.0]) == 0.0
