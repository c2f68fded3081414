"""Metrics of torchmetrics in a study: checked before it starts, and the same in training and in the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data.table import open_table
from spark_hpo.driver.build import build_table, training_settings
from spark_hpo.driver.export import export_model
from spark_hpo.driver.plan import check_table, plan_study
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.predictor import Predictor
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.trial import Split
from tests.support.tables import write_clusters


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clusters(tmp_path_factory.mktemp("tables") / "clusters")


def config_of(table: Path, tmp_path: Path, **changes: Any) -> StudyConfig:
    record: dict[str, Any] = {
        "name": "small",
        "study_dir": str(tmp_path / "study"),
        "task": "tabular",
        "data": {"path": str(table), "reader": "arrow", "cache": {"enabled": False}},
        "objective": {"metric": "auroc", "mode": "max"},
        "space": {"learning_rate": {"type": "loguniform", "low": 0.001, "high": 0.1}},
        "search": {"max_resource": 3},
        "budget": {"trials": 2},
        "backend": "inline",
        "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    return build_config({**record, **changes}, place="here")


class Plain(TrainTask):
    def build_model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = model(torch.stack([batch["x"], batch["y"]], dim=1))
        return outputs

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["side"])


class WithProbabilities(Plain):
    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        return {"probability": outputs.softmax(dim=1)}


def check(config: StudyConfig, task: Any) -> None:
    plan = plan_study(config, task=task)
    check_table(plan, build_table(config, {}))


def test_check_table_refuses_auroc_of_a_task_without_probabilities(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config_of(table, tmp_path), Plain)
    assert (caught.value.key, caught.value.value) == ("objective", "auroc")
    check(config_of(table, tmp_path), WithProbabilities)
    by_loss = {"objective": {"metric": "loss", "mode": "min"}}
    check(config_of(table, tmp_path, **by_loss), Plain)
    with pytest.raises(ConfigError) as caught:
        check(config_of(table, tmp_path, **by_loss, training={"metrics": ["auroc"]}), Plain)
    assert caught.value.key == "training.metrics"


def test_plan_study_refuses_metrics_of_a_training_function(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_study(config_of(table, tmp_path, training={"metrics": ["f1"]}), task=lambda ctx: None)
    assert caught.value.key == "training.metrics"


def test_training_settings_measure_all_metrics_that_a_study_names(table: Path, tmp_path: Path) -> None:
    objective = {
        "metric": "auroc",
        "mode": "max",
        "also": {"loss": "min"},
        "penalties": {"eer": 0.1},
        "limits": [{"metric": "recall", "at_least": 0.1}],
    }
    config = config_of(table, tmp_path, objective=objective, training={"metrics": ["f1", "auroc"]})
    assert training_settings(config).metrics == ("f1", "auroc", "eer", "recall")


@pytest.mark.medium
def test_study_searches_for_the_best_auroc(table: Path, tmp_path: Path) -> None:
    """The objective is measured in trials, on the test split, by the exported model, and for a constant."""
    config = config_of(table, tmp_path, training={"metrics": ["f1"]})
    result = run_study(config)
    assert 0.7 < result.best.metrics["auroc"] <= 1
    assert {"auroc", "f1", "accuracy", "loss"} <= result.test.keys()
    constant = ConstantAnswer.load(Storage(config.study_dir))
    assert constant is not None
    assert (constant.metric, constant.value) == ("auroc", 0.5)
    export_model(config, result.best, tmp_path / "model")
    opened = open_table(str(table))
    assert json.loads((tmp_path / "model" / "model.json").read_text())["metrics"] == ["f1", "auroc"]
    again = Predictor.load(tmp_path / "model").evaluate(opened, Split.TEST, reader="arrow")
    assert again == pytest.approx(result.test, rel=1e-6)
    known = Definition.require(Storage(config.study_dir))
    more = config_of(table, tmp_path, training={"metrics": ["recall"]}).model_dump(mode="json")
    known.check({**more, "space": known.config["space"]})  # a resumed study may report other metrics
