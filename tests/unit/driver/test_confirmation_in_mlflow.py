"""The final between the best trials, in MLflow: a whole study in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from tests.support.tables import clusters_study, write_clusters


@pytest.mark.medium
def test_mlflow_has_mean_spread_and_chance_of_the_winner(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table", rows=120)
    folds = {"resource": "folds", "max_resource": 2, "epochs": 1, "scheduler": "full"}
    search = {**folds, "confirm": {"top": 2, "seeds": 2}}
    result = run_study(clusters_study(tmp_path, search=search, budget={"trials": 3}), test=True)
    winner, other = result.summary()["confirmation"]
    assert winner["trial"] == result.best.trial_id
    client = MlflowClient(result.config.mlflow.tracking_uri)
    run = client.get_run(result.tracking["run_id"])
    metric = result.config.objective.metric
    assert run.data.metrics[f"confirmed_{metric}"] == pytest.approx(winner["mean"])
    assert run.data.metrics[f"confirmed_{metric}_std"] == pytest.approx(winner["spread"])
    assert run.data.metrics["confirmed_chance"] == pytest.approx(winner["chance"], abs=1e-3)
    assert json.loads(run.data.tags["spark_hpo.confirmation"]) == [winner, other]
    assert result.model is not None
    version = client.get_model_version(result.model.name, result.model.version)
    assert float(version.tags[f"spark_hpo.confirmed_{metric}"]) == pytest.approx(winner["mean"])
    assert float(version.tags["spark_hpo.confirmed_chance"]) == pytest.approx(winner["chance"], abs=1e-3)
    assert version.tags["spark_hpo.confirmed_seeds"] == "2"
    assert sync_study(result.config).model == result.model
