"""`run_study` called from Python, and the champion over several studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hyperopt import hp
from mlflow import MlflowClient

from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from tests.support.tables import clusters_study, write_clusters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "table")
    return tmp_path


def test_run_study_accepts_a_hyperopt_space(folder: Path) -> None:
    space = {
        "learning_rate": hp.loguniform("lr", -4, -2),
        "hidden_units": hp.choice("width", [4, 8]),
        "dropout": hp.uniform("dropout", 0, 0.5),
    }
    result = run_study(clusters_study(folder, space={}), space=space)
    assert set(result.best.params) == {"learning_rate", "hidden_units", "dropout"}
    assert result.best.params["hidden_units"] in (4, 8)
    assert 0.018 < result.best.params["learning_rate"] < 0.136
    again = run_study(clusters_study(folder, space={}), space=space)
    assert again.study.progress.run == 0
    with pytest.raises(ConfigError, match="space"):
        run_study(clusters_study(folder, space={}), space={**space, "dropout": hp.uniform("dropout", 0, 0.9)})


def test_run_study_with_rows_as_resource_reads_a_share_in_low_rungs(folder: Path) -> None:
    search = {"method": "asha", "resource": "rows", "max_resource": 9, "min_resource": 1}
    result = run_study(clusters_study(folder, search=search, budget={"trials": 9}))
    trials = result.journal.trials.values()
    trained = {trial.resource: sum(m.rows for m in trial.curve) for trial in trials}
    assert trained == {1: 13, 3: 40, 9: 120}
    assert all([m.resource for m in t.curve] == [r for r in (1, 3, 9) if r <= t.resource] for t in trials)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"search": {"max_resource": 9, "epochs": 2}}, "search.epochs"),
        ({"search": {"max_resource": 9, "resource": "rows", "epochs": 2}}, "search.max_resource"),
        (
            {"search": {"max_resource": 9, "resource": "rows"}, "training": {"patience": 3}},
            "training.patience",
        ),
    ],
)
def test_run_study_refuses_settings_that_do_not_fit_the_resource(
    folder: Path, changes: Any, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        clusters_study(folder, **changes)
    assert caught.value.key == key


def champion(folder: Path) -> str:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return str(client.get_model_version_by_alias("clusters", "champion").version)


def test_champion_is_evaluated_on_the_new_rows_and_replaced_by_a_better_model(folder: Path) -> None:
    write_clusters(folder / "other", rows=160)

    def run(study: str, table: str, learning_rate: float) -> Result:
        changes = {
            "study_dir": str(folder / study),
            "data": {"path": str(folder / table)},
            "space": {"learning_rate": learning_rate, "hidden_units": {"type": "int", "low": 4, "high": 9}},
        }
        return run_study(clusters_study(folder, **changes))

    poor = run("poor", "table", 1e-7)
    assert champion(folder) == "1"
    good = run("good", "other", 0.05)
    assert good.test["accuracy"] > poor.test["accuracy"]
    assert champion(folder) == "2", "it was compared on the rows of the second table"
    run("poor again", "table", 1e-7)
    assert champion(folder) == "2"


def test_run_study_stops_at_the_target(folder: Path) -> None:
    result = run_study(clusters_study(folder, stopping={"target": 0.5}, budget={"trials": 40}))
    assert result.stopped_by == "target"
    assert len(result.journal.trials) < 40


def test_run_study_runs_enqueued_configurations_first_and_keeps_constraints(folder: Path) -> None:
    width = {"type": "int", "low": 4, "high": 16}
    today = {"learning_rate": 0.05, "hidden_units": 8, "embedding_units": 4}
    result = run_study(
        clusters_study(
            folder,
            space={"learning_rate": 0.05, "hidden_units": width, "embedding_units": width},
            search={
                "max_resource": 3,
                "enqueue": [today],
                "constraints": ["embedding_units <= hidden_units"],
            },
            budget={"trials": 12},
        )
    )
    assert dict(result.journal.trials[0].params) == today
    assert all(
        t.params["embedding_units"] <= t.params["hidden_units"] for t in result.journal.trials.values()
    )


def test_run_study_starts_with_the_best_of_an_earlier_study(folder: Path) -> None:
    earlier = run_study(clusters_study(folder))
    transfer = {"studies": [str(folder / "study")], "num_first": 1}
    changes = {"study_dir": str(folder / "next"), "search": {"max_resource": 3, "transfer": transfer}}
    later = run_study(clusters_study(folder, **changes))
    params = [trial.params for trial in earlier.journal.trials.values()]
    assert later.journal.trials[0].params in params
    again = run_study(clusters_study(folder, **changes))
    assert again.study.progress.run == 0


WEIGHED = """
import torch
from spark_hpo.train.tasks.tabular import TabularTask


class Weighed(TabularTask):
    def metrics(self, outputs, batch):
        units = torch.full((len(outputs),), float(self.params["hidden_units"]))
        return {**super().metrics(outputs, batch), "units": units}
"""


def test_run_study_of_several_objectives_returns_a_pareto_front(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "weighed.py").write_text(WEIGHED)
    changes: dict[str, Any] = {
        "task": "weighed.py:Weighed",
        "objective": {
            "metric": "accuracy",
            "mode": "max",
            "also": {"units": "min"},
            "limits": [{"metric": "units", "at_least": 5}],
        },
        "space": {
            "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 0.1},
            "hidden_units": {"type": "int", "low": 1, "high": 12},
        },
        "budget": {"trials": 12},
    }
    place = str(folder / "study.yaml")
    result = run_study(clusters_study(folder, **changes).with_source(place))
    trials = result.journal.trials

    # By definition: what no other trial within the limits beats.
    offers = {i: (-t.metrics["accuracy"], t.metrics["units"]) for i, t in trials.items()}
    offers = {i: losses for i, losses in offers.items() if losses[1] >= 5}
    assert len(offers) < len(trials), "some break the limit"
    front = [
        i
        for i, (error, units) in sorted(offers.items())
        if not any(e <= error and u <= units and (e, u) != (error, units) for e, u in offers.values())
    ]
    assert [trial.trial_id for trial in result.pareto_front] == front
    assert {trial.resource for trial in trials.values()} == {3}, "no rung stops what is small"
    assert "alone" not in caplog.text

    summary = json.loads(json.dumps(result.summary()))
    assert [member["trial"] for member in summary["pareto_front"]] == front
    for member in summary["pareto_front"]:
        trial = trials[member["trial"]]
        assert member["params"] == trial.params
        assert member["metrics"] == {name: trial.metrics[name] for name in ("accuracy", "units")}
    assert summary["best"]["trial"] == result.best.trial_id
    assert result.model is not None

    kept = {str(path.relative_to(folder / "study")) for path in (folder / "study").rglob("*.pt")}
    assert kept == {result.best.checkpoint, *(trial.checkpoint for trial in result.pareto_front)}

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment, run = result.tracking["experiment_id"], result.tracking["run_id"]
    tagged = client.search_runs([experiment], "tags.`spark_hpo.pareto_front` = 'true'")
    assert sorted(int(child.data.tags["spark_hpo.trial_id"]) for child in tagged) == front
    artifacts = folder / "mlartifacts" / run / "artifacts"
    table = pd.read_csv(artifacts / "leaderboard.csv").set_index("trial")
    assert sorted(table.index[table["pareto_front"]]) == front
    assert table["units"].to_dict() == {i: t.metrics["units"] for i, t in trials.items()}
    assert 'id="pareto_front"' in (artifacts / "report.html").read_text()

    again = run_study(clusters_study(folder, **changes).with_source(place))
    assert again.study.progress.run == 0
    assert [trial.trial_id for trial in again.pareto_front] == front
    with pytest.raises(ConfigError) as caught:
        run_study(clusters_study(folder, **_with_also(changes, units="max")).with_source(place))
    assert [(e.key, e.value) for e in caught.value.errors] == [("objective.also.units", "max")]


def _with_also(changes: dict[str, Any], **also: str) -> dict[str, Any]:
    return {**changes, "objective": {**changes["objective"], "also": also}}


def test_run_study_warns_once_that_rungs_rank_by_the_first_objective(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective = {"metric": "accuracy", "mode": "max", "also": {"loss": "min"}}
    result = run_study(
        clusters_study(folder, objective=objective, search={"max_resource": 3, "scheduler": "asha"})
    )
    remarks = [record for record in caplog.records if "by accuracy only" in record.getMessage()]
    assert [record.levelname for record in remarks] == ["WARNING"]
    assert all(trial.resource == 3 for trial in result.pareto_front)


def test_pareto_front_of_one_objective_is_empty(folder: Path) -> None:
    result = run_study(clusters_study(folder))
    assert result.pareto_front == []
    assert "pareto_front" not in result.summary()
