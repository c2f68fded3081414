"""`check_study`: errors that are reported before torch, MLflow and Spark are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.config import load_config
from spark_hpo.driver.precheck import check_study, check_torch
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from tests.support.tables import write_clusters

STUDY = """
name: small
study_dir: study
task: tabular
data: {path: table}
objective: {metric: accuracy, mode: max}
space: {learning_rate: {type: loguniform, low: 0.001, high: 0.1}}
search: {max_resource: 3}
budget: {trials: 2}
backend: inline
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a table, a study file and a task file."""
    write_clusters(tmp_path / "table")
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "mine.py").write_text("import torch\n\nclass Mine: ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_study_accepts_a_study(folder: Path) -> None:
    check_study(load_config("study.yaml"))
    check_study(load_config("study.yaml", ["task=mine.py:Mine"]))
    check_study(load_config("study.yaml", ["objective.metric=auroc", "training.metrics=[f1, accuracy]"]))


def test_check_study_suggests_the_nearest_metric_of_torchmetrics(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", ["training.metrics=[average_presision]"]))
    assert "'average_precision'" in caught.value.cure


@pytest.mark.parametrize(
    ("strategy", "version", "is_valid"),
    [
        ("fsdp", "2.6.0", False),
        ("fsdp", "2.7.0+cu126", True),
        ("fsdp", "2.10.0", True),
        ("ddp", "2.4.1", True),
    ],
)
def test_check_torch_refuses_strategies_of_newer_versions(
    strategy: str, version: str, is_valid: bool
) -> None:
    if is_valid:
        check_torch(strategy, version)
        return
    with pytest.raises(ConfigError, match=r"2\.7 or newer.*2\.6\.0") as caught:
        check_torch(strategy, version)
    assert caught.value.key == "training.strategy"


def test_check_study_names_the_extra_that_a_task_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    check_study(load_config("study.yaml", ["task=text"]))
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", ["task=text"]))
    assert (caught.value.key, caught.value.value) == ("task", "text")
    assert "spark_hpo[transformers]" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("search.method=asho", "search.method", "asho"),
        ("search.scheduler_settings={quantile: 1}", "search.scheduler_settings.quantile", None),
        ("space={learning_rate: [0.1, 1]}", "space.learning_rate", [0.1, 1]),
        ("space={x: {type: uniform, low: 0, high: 1}, model: resnt}", "space.model", "resnt"),
        ("space={model: {type: choice, options: [mlp, resnt]}}", "space.model", "resnt"),
        ("objective.metric=acuracy", "objective.metric", "acuracy"),
        ("objective.metric=aurok", "objective.metric", "aurok"),
        ("objective.metric=r2_score", "objective.metric", "r2_score"),
        ("training.metrics=[f1, aurok]", "training.metrics", "aurok"),
        ("training.metrics=[f1, r2]", "training.metrics", "r2"),
        ("task=tabula", "task", "tabula"),
        ("task=:Mine", "task", ":Mine"),
        ("task=not_installed.tasks:Mine", "task", "not_installed.tasks:Mine"),
        ("task=other.py:Mine", "task", "other.py:Mine"),
        ("task=mine.py:Mein", "task", "mine.py:Mein"),
        ("data.transforms={x: gone.py:decode}", "data.transforms.x", "gone.py:decode"),
        ("data.path=study.yaml", "data.path", "study.yaml"),
    ],
)
def test_check_study_names_the_setting(folder: Path, override: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", [override]))
    assert caught.value.key == key
    assert getattr(caught.value, "value", None) == value or value is None
    assert caught.value.place == "study.yaml"


@pytest.mark.parametrize(
    "override",
    [
        "space.lr={type: loguniform, low: 0.001, high: 0.1}",
        "space.lr=0.1",
        "space={optimizer: {learning_rate: {type: uniform, low: 0, high: 1}}}",
    ],
)
def test_check_study_refuses_parameters_that_the_task_does_not_read(folder: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", [override]))
    [error] = caught.value.errors
    assert error.key == ("space.optimizer" if "optimizer" in override else "space.lr")
    assert error.place == "study.yaml"
    assert ("'learning_rate'" in error.cure) is (error.key == "space.lr")
    assert "hidden_units" in caught.value.cure


def test_check_study_names_each_parameter_that_the_task_does_not_read(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", ["space.lr=1", "space.hiden_units=8", "space.dropout=0"]))
    assert [error.key for error in caught.value.errors] == ["space.lr", "space.hiden_units"]


def test_check_study_accepts_parameters_of_losses_and_of_other_tasks(folder: Path) -> None:
    check_study(load_config("study.yaml", ["space.focal_gamma=2", "space.loss_weight_price=0.5"]))
    check_study(load_config("study.yaml", ["task=mine.py:Mine", "space.lr=1"]))


def test_check_study_accepts_a_begun_study_with_a_parameter_that_is_not_read(folder: Path) -> None:
    config = load_config("study.yaml", ["space.lr=0.1"])
    Definition.create(config.model_dump(mode="json")).write(Storage(config.study_dir))
    check_study(config)


def test_check_study_names_a_metric_of_no_table_before_the_table_is_prepared(folder: Path) -> None:
    prepared_later = "data={path: new, prepare: {source: digits}}"
    check_study(load_config("study.yaml", [prepared_later]))
    with pytest.raises(ConfigError) as caught:
        check_study(load_config("study.yaml", [prepared_later, "objective.metric=acuracy"]))
    assert (caught.value.key, caught.value.value) == ("objective.metric", "acuracy")


@pytest.mark.parametrize(("override", "named"), [("data.path=gone", "gone"), ("data.nulls={z: fill}", "'z'")])
def test_check_study_names_what_the_table_lacks(folder: Path, override: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        check_study(load_config("study.yaml", [override]))


@pytest.mark.medium
def test_errors_of_a_study_are_known_before_heavy_imports(folder: Path) -> None:
    program = """
import sys
from spark_hpo.cli import main
from spark_hpo.errors import ConfigError
try:
    main(["run", "study.yaml", "objective.metric=acuracy"])
except SystemExit as exc:
    heavy = {"torch", "mlflow", "pandas"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else exc.code)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == ConfigError.exit_code, ended.stderr
    assert "objective.metric" in ended.stderr
    assert not (folder / "study").exists()


@pytest.mark.parametrize(
    ("override", "resume"),
    [
        ("data.path=gone", "auto"),
        ("objective.metric=acuracy", "auto"),
        ("seed=1", "must"),
        ("space.lr=1", "auto"),
    ],
)
def test_run_study_creates_no_directory_for_a_wrong_study(folder: Path, override: str, resume: str) -> None:
    with pytest.raises((ConfigError, DataError)):
        run_study(load_config("study.yaml", [override]), resume=resume)
    assert not (folder / "study").exists()
