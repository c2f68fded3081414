"""Python callers: `run_study` with a space of hyperopt's, and the champion over several studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp
from mlflow import MlflowClient
from tables import write_clusters

from spark_hpo.app import run_study
from spark_hpo.config import StudyConfig, build_config
from spark_hpo.errors import ConfigError
from spark_hpo.result import Result


def config(folder: Path, **changes: Any) -> StudyConfig:
    record: dict[str, Any] = {
        "name": "clusters",
        "study_dir": str(folder / "study"),
        "task": "tabular",
        "data": {"path": str(folder / "table")},
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        "search": {"max_resource": 3},
        "budget": {"trials": 4},
        "training": {"batch_size": 16},
        "backend": "inline",
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return build_config(record | changes, place="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "table")
    return tmp_path


def test_a_space_of_hyperopts_is_taken_as_it_is(folder: Path) -> None:
    space = {
        "learning_rate": hp.loguniform("lr", -4, -2),
        "hidden_units": hp.choice("width", [4, 8]),
        "dropout": hp.uniform("dropout", 0, 0.5),
    }
    result = run_study(config(folder, space={}), space=space)
    assert set(result.best.params) == {"learning_rate", "hidden_units", "dropout"}
    assert result.best.params["hidden_units"] in (4, 8)
    assert 0.018 < result.best.params["learning_rate"] < 0.136
    again = run_study(config(folder, space={}), space=space)
    assert again.study.progress.run == 0
    with pytest.raises(ConfigError, match="the study was started with"):
        run_study(config(folder, space={}), space={**space, "dropout": hp.uniform("dropout", 0, 0.9)})


@pytest.mark.parametrize("scheduler", ["full", "successive_halving", "hyperband"])
@pytest.mark.parametrize("sampler", ["random", "grid", "tpe"])
def test_every_method_trains_its_best_trial_to_the_end(folder: Path, sampler: str, scheduler: str) -> None:
    search = {"sampler": sampler, "scheduler": scheduler, "max_resource": 3}
    result = run_study(config(folder, search=search))
    assert result.stopped_by == "trials"
    assert any(trial.resource == 3 for trial in result.journal.trials.values())
    assert result.test["accuracy"] > 0.5


def champion(folder: Path) -> str:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return str(client.get_model_version_by_alias("clusters", "champion").version)


def test_the_champion_is_measured_again_on_other_rows_and_gives_way_to_a_better_model(folder: Path) -> None:
    write_clusters(folder / "other", rows=160)

    def run(study: str, table: str, learning_rate: float) -> Result:
        changes = {
            "study_dir": str(folder / study),
            "data": {"path": str(folder / table)},
            "space": {"learning_rate": learning_rate, "hidden_units": {"type": "int", "low": 4, "high": 9}},
        }
        return run_study(config(folder, **changes))

    poor = run("poor", "table", 1e-7)
    assert champion(folder) == "1"
    good = run("good", "other", 0.05)
    assert good.test["accuracy"] > poor.test["accuracy"]
    assert champion(folder) == "2", "it was compared on the rows of the second table"
    run("poor again", "table", 1e-7)
    assert champion(folder) == "2"


def test_a_search_stops_when_it_has_reached_its_target(folder: Path) -> None:
    result = run_study(config(folder, stopping={"target": 0.5}, budget={"trials": 40}))
    assert result.stopped_by == "target"
    assert len(result.journal.trials) < 40


def test_what_runs_today_runs_first_and_constraints_hold(folder: Path) -> None:
    width = {"type": "int", "low": 4, "high": 16}
    today = {"learning_rate": 0.05, "first": 8, "second": 4}
    result = run_study(
        config(
            folder,
            space={"learning_rate": 0.05, "first": width, "second": width},
            search={"max_resource": 3, "first": [today], "constraints": ["second <= first"]},
            budget={"trials": 12},
        )
    )
    assert dict(result.journal.trials[0].params) == today
    assert all(t.params["second"] <= t.params["first"] for t in result.journal.trials.values())


def test_a_new_study_starts_from_the_best_of_an_earlier_one(folder: Path) -> None:
    earlier = run_study(config(folder))
    transfer = {"studies": [str(folder / "study")], "num_first": 1}
    changes = {"study_dir": str(folder / "next"), "search": {"max_resource": 3, "transfer": transfer}}
    later = run_study(config(folder, **changes))
    params = [trial.params for trial in earlier.journal.trials.values()]
    assert later.journal.trials[0].params in params
    again = run_study(config(folder, **changes))
    assert again.study.progress.run == 0


@pytest.mark.parametrize("method", ["default", "bohb", "dehb", "asha", "hyperband", "pbt", "random"])
def test_a_method_is_chosen_by_its_name(folder: Path, method: str) -> None:
    space = {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}, "hidden_units": 8}
    search: dict[str, Any] = {"method": method, "max_resource": 4}
    result = run_study(config(folder, space=space, search=search, budget={"trials": 8}))
    assert result.test["accuracy"] > 0.5
    assert max(trial.resource for trial in result.journal.trials.values()) == 4
