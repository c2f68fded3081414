"""Training functions whose models are registered: they save them with a flavour of MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from spark_hpo import tune
from tests.support.documents import blocks
from tests.support.mlflow_database import write_database

pytestmark = pytest.mark.medium


def test_model_in_the_checkpoint_of_the_best_trial_is_registered(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    labels = (rows[:, 0] > 0).astype(int)
    [block] = [block for block in blocks("docs/training.md", "python") if "mlflow_model" in block.text]
    scope: dict[str, Any] = {"rows": rows, "labels": labels, "mlflow": mlflow}
    scope["LogisticRegression"] = LogisticRegression
    exec(block.text, scope)
    uri = write_database(tmp_path)
    result = tune(
        scope["train"],
        {"c": {"type": "loguniform", "low": 1e-4, "high": 10.0}},
        metric="accuracy",
        mode="max",
        trials=3,
        max_resource=1,
        method="random",
        backend="inline",
        storage=str(tmp_path / "study"),
        mlflow={"tracking_uri": uri, "registered_model": "regression"},
    )
    assert result.model is not None
    assert result.model.uri == "models:/regression/1"
    mlflow.set_tracking_uri(uri)
    model = mlflow.sklearn.load_model("models:/regression/1")
    assert result.best_trial.params["c"] == pytest.approx(model.C)
    loaded = mlflow.pyfunc.load_model("models:/regression/1")
    assert loaded.predict(rows).tolist() == model.predict(rows).tolist()
    version = mlflow.MlflowClient().get_model_version("regression", "1")
    assert version.tags["spark_hpo.trial_id"] == str(result.best_trial.trial_id)
