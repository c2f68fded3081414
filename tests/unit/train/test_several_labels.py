"""Tasks with several labels: from a study's setting to predictions of raw rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    Feature,
    Label,
    OriginalColumn,
    Source,
    TableSchema,
)
from spark_hpo.data.table import Table
from spark_hpo.driver.build import build_table, training_settings
from spark_hpo.driver.precheck import check_study
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.label_statistics import label_statistics
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split
from tests.support.torch_versions import needs_newer_export

ROWS = 300
NAMES = ("size", "sold", "price", "colour")


def rows(count: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """`size` decides all labels: whether it is sold, the colour, and the price."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=count)
    return {
        "size": size,
        "sold": ["yes" if s > 0 else "no" for s in size],
        "price": 100 + 50 * size,
        "colour": [("red", "green", "blue")[int(np.digitize(s, (-0.5, 0.5)))] for s in size],
    }


def write(folder: Path, columns: Mapping[str, Any]) -> str:
    (folder / "raw").mkdir(parents=True)
    pq.write_table(pa.table(dict(columns)), folder / "raw" / "a.parquet", row_group_size=10)
    shares = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
    types = {"size": "double", "sold": "string", "price": "double", "colour": "string"}
    schema = TableSchema(
        features=(
            Feature(name="size", kind=ColumnKind.NUMERIC, source="size"),
            Feature(name="price", kind=ColumnKind.NUMERIC, mean=100.0, deviation=50.0, source="price"),
            Feature(
                name="colour",
                kind=ColumnKind.CATEGORICAL,
                vocabulary=("red", "green", "blue"),
                source="colour",
            ),
        ),
        label=Label(name="sold", classes=("no", "yes")),
        encoding=Encoding.RAW,
        sources={n: Source(url=str(folder / "raw"), share=share, seed=1) for n, share in shares.items()},
        original=tuple(OriginalColumn(name=name, type=types[name]) for name in NAMES),
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return str(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tables") / "goods", rows())


def config_of(url: str, *, metric: str = "colour_auroc", **settings: Any) -> StudyConfig:
    data = {"path": url, "label": ["sold", "price", "colour"], "reader": "arrow"}
    return build_config(
        {
            "name": "goods",
            "study_dir": "study",
            "task": "tabular",
            "data": {**data, "cache": {"enabled": False}, **settings.pop("data", {})},
            "objective": {"metric": metric, "mode": "max"},
            "space": {"learning_rate": {"type": "loguniform", "low": 0.001, "high": 0.1}},
            "search": {"max_resource": 20},
            "budget": {"trials": 2},
            "backend": "inline",
            **settings,
        },
        place="here",
    )


def opened(config: StudyConfig) -> Table:
    table = build_table(config, {})
    assert table is not None
    return table


def trained(config: StudyConfig, folder: Path, **params: Any) -> tuple[Table, RankSpec, Report]:
    table = opened(config)
    spec = RankSpec(
        study_id="goods",
        storage=Storage(folder / "study"),
        trainable="tabular",
        table=table,
        objective=Objective(metric=config.objective.metric, mode=Mode.MAX),
        settings=training_settings(config),
        max_resource=20,
        seed=0,
        reader="arrow",
        shuffle_window=100,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"learning_rate": 0.02, "hidden_units": 16, "batch_size": 32, **params},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=20,
        checkpoint=None,
        seed=1,
    )
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return table, spec, report


def test_config_takes_one_label_or_a_list() -> None:
    config = config_of("t")
    assert config.data is not None
    assert (config.data.label, config.data.extra_labels) == ("sold", ("price", "colour"))
    assert build_config(config.model_dump(mode="json"), place="again") == config


def test_labels_are_not_features(url: str) -> None:
    schema = opened(config_of(url)).schema
    assert [feature.name for feature in schema.features] == ["size"]
    assert [label.name for label in schema.labels] == ["sold", "price", "colour"]
    assert schema.labels[2].classes == ("blue", "green", "red")  # in order, as those of a label
    assert TableSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@needs_newer_export
def test_task_learns_all_labels_and_predicts_raw_rows(url: str, tmp_path: Path) -> None:
    config = config_of(url, training={"metrics": ["auroc", "r2"]})
    table, spec, report = trained(config, tmp_path)
    metrics = report.metrics
    assert metrics["sold_accuracy"] > 0.9
    assert metrics["colour_accuracy"] > 0.85
    assert metrics["price_r2"] > 0.9
    assert min(metrics["sold_auroc"], metrics["colour_auroc"]) > 0.95
    assert metrics["loss"] == pytest.approx(
        metrics["sold_loss"] + metrics["price_loss"] + metrics["colour_loss"], rel=1e-5
    )
    assert report.checkpoint is not None
    model_folder.export(
        tmp_path / "model",
        code=Code.named("tabular"),
        params={"hidden_units": 16},
        table=table,
        load_checkpoint=lambda: checkpoint.load(spec.storage, report.checkpoint),
        metrics=training_settings(config).metrics,
    )
    model = predictor.Predictor.load(tmp_path / "model")
    answers = model.predict(pd.DataFrame({"size": [-2.0, 0.0, 2.0]}))
    assert list(answers["colour_prediction"]) == ["red", "green", "blue"]
    assert list(answers["sold_prediction"])[::2] == ["no", "yes"]
    assert answers["price_prediction"].to_numpy() == pytest.approx([0, 100, 200], abs=35)
    assert answers["colour_probability_blue"][2] > 0.8
    assert (tmp_path / "model" / "network.pt2").exists()
    assert model.evaluate(table, Split.TEST, reader="arrow").keys() == metrics.keys() - {"train_loss"}


def test_loss_weight_of_a_label_is_a_parameter(url: str, tmp_path: Path) -> None:
    config = config_of(url)
    _, _, even = trained(config, tmp_path / "even")
    _, _, without = trained(config, tmp_path / "without", loss_weight_sold=0.0)
    assert without.metrics["sold_loss"] > even.metrics["sold_loss"] + 0.2
    assert without.metrics["colour_accuracy"] > 0.85


def test_class_weights_are_those_of_each_label(url: str, tmp_path: Path) -> None:
    config = config_of(url, training={"class_weights": "balanced", "loss": "focal"})
    table, _, report = trained(config, tmp_path)
    assert [len(label.class_weights) for label in table.schema.labels] == [2, 0, 3]
    assert report.metrics["colour_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"metric": "price_auroc"}, "objective.metric"),
        ({"metric": "auroc"}, "objective.metric"),
        ({"training": {"metrics": ["colour_r2"]}}, "training.metrics"),
        ({"data": {"label": ["sold", "cost"]}}, "data.extra_labels"),
        ({"training": {"class_weights": {"pink": 2}}}, "training.class_weights"),
    ],
)
def test_check_study_names_the_setting(url: str, settings: dict[str, Any], key: str) -> None:
    check_study(config_of(url))
    with pytest.raises(ConfigError) as caught:
        check_study(config_of(url, **settings))
    assert caught.value.key == key


@pytest.mark.parametrize("label", [["sold", "sold"], []])
def test_config_refuses_lists_that_are_no_labels(label: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("t", data={"label": label})
    assert caught.value.key == "data.label"


def test_value_that_is_not_a_class_is_an_error(tmp_path: Path) -> None:
    columns = rows()
    columns["colour"] = ["pink", *columns["colour"][1:]]
    table = opened(config_of(write(tmp_path / "goods", columns)))
    with pytest.raises(DataError, match="'colour'"):
        [label_statistics(table, split) for split in Split]
