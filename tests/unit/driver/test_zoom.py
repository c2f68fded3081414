"""`spark-hpo zoom`: the study file of a narrower search around the best trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_hpo import cli
from spark_hpo.config import build_config, load_config
from spark_hpo.driver.earlier_studies import read_earlier_trials
from spark_hpo.driver.zoom import narrowed
from spark_hpo.search.space import Space
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage
from tests.support.written_studies import StudyWriter

SPACE: dict[str, Any] = {
    "learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1.0, "default": 0.5},
    "units": {"type": "int", "low": 8, "high": 512},
    "optimizer": {
        "type": "choice",
        "options": [{"name": "adam"}, {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 1}}],
    },
    "layers": 2,
}


def params(rate: float, units: int, momentum: float) -> dict[str, Any]:
    optimizer = {"name": "sgd", "momentum": momentum}
    return {"learning_rate": rate, "units": units, "optimizer": optimizer, "layers": 2}


def test_ranges_become_those_of_the_best_trials_with_a_margin() -> None:
    best = [params(1e-3, 100, 0.5), params(1e-2, 200, 0.6), params(3e-3, 150, 0.95)]
    found = narrowed(SPACE, best)
    # A tenth of the five decades on both sides; the default is outside.
    assert found["learning_rate"] == {"type": "loguniform", "low": 3.16e-4, "high": 0.0316}
    assert (found["units"]["low"], found["units"]["high"]) == (49, 251)
    (sgd,) = found["optimizer"]["options"]
    assert sgd == {"name": "sgd", "momentum": {"type": "uniform", "low": 0.4, "high": 1.0}}
    assert found["layers"] == 2
    narrow = Space.from_config(found)
    for values in best:
        assert narrow.validate(values) == values


def test_zoom_writes_a_study_file_that_learns_from_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(tmp_path / "study")
    record = {
        "name": "first",
        "study_dir": storage.url,
        "task": "image",
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": SPACE,
        "search": {"max_resource": 9, "enqueue": [params(1e-4, 8, 0.0)]},
        "budget": {"trials": 12},
        "mlflow": {"tracking_uri": "https://me:secret@mlflow.example.com"},
    }
    Settings.of(build_config(record, place="test")).write(storage)
    pen = StudyWriter(storage=storage, space=SPACE)
    for trial in range(12):
        pen.start(trial, 0, 9, params=params(10 ** (-1 - trial / 4), 50 + trial, 0.5)).end(
            trial, 9, 0.5 + trial / 40
        )
    pen.close()
    file = tmp_path / "zoomed.yaml"
    with pytest.raises(SystemExit) as ended:
        cli.main(["zoom", storage.url, "--share", "0.3", "--output", str(file), "--json"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    config = load_config(file)
    assert (answer["name"], config.name, config.study_dir) == (
        "first-zoom",
        "first-zoom",
        f"{storage.url}-zoom",
    )
    assert config.search.enqueue == ()
    assert "secret" not in file.read_text()
    low = 10 ** (-1 - 11 / 4) / 10**0.5
    assert config.space["learning_rate"]["low"] == pytest.approx(low, rel=0.01)
    (earlier,) = read_earlier_trials(config, Storage(config.study_dir))
    assert len(earlier) == 12
    with pytest.raises(SystemExit) as ended:
        cli.main(["zoom", storage.url, "--output", str(file)])
    assert ended.value.code == 2, "a file is not overwritten"
