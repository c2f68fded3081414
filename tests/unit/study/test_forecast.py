"""The time left, on simulated studies: estimated from what was seen, compared with what came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.study.time_left import ForecastWriter
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Params, Report, Trial
from tests.support.simulated import Curve, Disturbances
from tests.support.virtual_studies import Accuracies, write_study

FACTOR = 1.5  # an estimate after a tenth of the study is within this factor


class Paced(Accuracies):
    """Trials of one pace, or of paces that differ by a factor of up to four."""

    def __init__(self, max_resource: int, epoch_s: float, *, differ: bool) -> None:
        super().__init__(max_resource)
        self.epoch_s = epoch_s
        self.differ = differ

    def curve(self, trial_id: int, params: Params) -> Curve:
        curve = super().curve(trial_id, params)
        factor = 2.0 ** float(np.random.default_rng(trial_id).uniform(-1, 1)) if self.differ else 1.0
        epochs = np.arange(1, self.max_resource + 1)
        return Curve(metrics=curve.metrics, elapsed_s=self.epoch_s * factor * epochs)


class Estimates(Callback):
    """Collects the estimates, each with the time at which it was made."""

    def __init__(self) -> None:
        self.made: list[tuple[float, float | None]] = []
        self.seconds = 0.0

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self.made.append((study.progress.seconds, study.seconds_left))

    def on_study_end(self, study: RunningStudy) -> None:
        self.seconds = study.progress.seconds


# Schedulers and slots, each with the seconds of an epoch and of a launch, and whether trials differ in pace.
STUDIES = [
    ("asha", {"trials": 60, "slots": 4}, 0.1, 5.0, False),
    ("asha", {"trials": 60, "slots": 4}, 20.0, 5.0, True),
    ("asha", {"trials": None, "resource": 600, "slots": 4}, 1.0, 0.0, True),
    ("adaptive_asha", {"trials": 80, "slots": 8}, 0.1, 5.0, False),
    ("adaptive_asha", {"trials": 80, "slots": 8}, 20.0, 5.0, True),
    ("hyperband", {"trials": 60, "slots": 4}, 1.0, 0.0, True),
    ("full", {"trials": 40, "slots": 3}, 20.0, 5.0, True),
    ("median_stopping", {"trials": 40, "slots": 4}, 0.1, 5.0, False),
    ("population_based", {"trials": 40, "slots": 10}, 1.0, 0.0, True),
]


@pytest.mark.parametrize(("scheduler", "settings", "epoch_s", "launch_s", "differ"), STUDIES, ids=str)
def test_time_left_after_a_tenth_of_a_study_is_about_right(
    tmp_path: Path,
    scheduler: str,
    settings: dict[str, Any],
    epoch_s: float,
    launch_s: float,
    differ: bool,
) -> None:
    seen = Estimates()
    write_study(
        tmp_path,
        **settings,
        search={"sampler": "random", "max_resource": 27, "scheduler": scheduler},
        curves=Paced(27, epoch_s, differ=differ),
        disturbances=Disturbances(launch_s=launch_s),
        callbacks=[seen],
        test=False,
    )
    when, left = next(made for made in seen.made if made[0] >= 0.1 * seen.seconds)
    assert left is not None
    assert 1 / FACTOR < left / (seen.seconds - when) < FACTOR
    assert seen.made[-1][1] == pytest.approx(0.0, abs=0.01)


def test_driver_writes_its_estimate_for_other_programs(tmp_path: Path) -> None:
    storage, seen = Storage(tmp_path), Estimates()
    write_study(tmp_path, trials=20, slots=2, callbacks=[ForecastWriter(storage), seen], test=False)
    forecast = Forecast.load(storage)
    assert forecast is not None
    assert forecast.seconds_left in [left for _, left in seen.made]
    assert forecast.left_s(forecast.time + 1e9) == 0.0
