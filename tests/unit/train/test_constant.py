"""The constant answer of a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.constant import constant_answer
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.train.tasks.tabular import TabularTask

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
LOSS = Objective(metric="loss", mode=Mode.MIN)
COLOURS = np.array([0, 2, 2, 2, 1, 2, 0, 2])  # 5 of 8 are blue
PRICES = np.array([1e6, 2e6, 3e6, 10e6], dtype="float32")


def write_table(folder: Path, label: Label, values: np.ndarray) -> Table:
    schema = TableSchema(features=(Feature(name="x", kind=ColumnKind.NUMERIC),), label=label)
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        x = np.arange(len(values), dtype="float32")
        pq.write_table(pa.table({"x": x, label.name: values}), folder / split / "part-0.parquet")
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


@pytest.fixture
def colours(tmp_path: Path) -> Table:
    return write_table(tmp_path, Label(name="colour", classes=("red", "green", "blue")), COLOURS)


@pytest.fixture
def prices(tmp_path: Path) -> Table:
    return write_table(tmp_path, Label(name="price", mean=5e6, deviation=2e6), PRICES)


def test_constant_answer_of_classes_is_the_most_frequent_one(colours: Table) -> None:
    found = constant_answer(colours, TabularTask, {}, ACCURACY)
    assert found == ConstantAnswer(metric="accuracy", value=5 / 8, answer="'blue'")


def test_constant_answer_by_cross_entropy_is_the_entropy_of_the_label(colours: Table) -> None:
    shares = np.array([2, 1, 5]) / 8
    found = constant_answer(colours, TabularTask, {}, LOSS)
    assert found is not None
    assert found.value == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)


def test_constant_answer_of_numbers_is_the_mean_or_the_median(prices: Table) -> None:
    squared = constant_answer(prices, TabularTask, {}, Objective(metric="squared_error", mode=Mode.MIN))
    absolute = constant_answer(prices, TabularTask, {}, Objective(metric="absolute_error", mode=Mode.MIN))
    loss = constant_answer(prices, TabularTask, {}, LOSS)
    assert squared is not None
    assert absolute is not None
    assert loss is not None
    assert (squared.answer, absolute.answer) == ("4e+06", "2e+06")
    assert squared.value == pytest.approx(PRICES.astype(float).var(), rel=1e-4)
    assert absolute.value == pytest.approx(2.5e6)
    assert loss.value == pytest.approx(squared.value / 2e6**2, rel=1e-4)


class OwnMetric(TabularTask):
    def metrics(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        is_blue = batch["colour"] == 2
        return {"blue": is_blue.float()}


class MetricOfColumns(TabularTask):
    def metrics(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        return {"accuracy": batch["x"]}


class Unlabelled(TrainTask):
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1)

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return outputs.mean()


@pytest.mark.parametrize(
    ("task", "metric", "value"),
    [(OwnMetric, "blue", 5 / 8), (MetricOfColumns, "accuracy", None), (Unlabelled, "loss", None)],
)
def test_constant_answer_uses_the_metrics_of_the_task(
    colours: Table, task: type[TrainTask], metric: str, value: float | None
) -> None:
    found = constant_answer(colours, task, {}, replace(ACCURACY, metric=metric))
    assert (None if found is None else found.value) == value


def test_constant_answer_survives_in_the_study_directory(tmp_path: Path) -> None:
    answer = ConstantAnswer(metric="accuracy", value=0.625, answer="'blue'")
    storage = Storage(tmp_path)
    assert ConstantAnswer.load(storage) is None
    answer.write(storage)
    assert ConstantAnswer.load(storage) == answer
    storage.write("constant_answer.json", b"{")
    assert ConstantAnswer.load(storage) is None
