"""TabularTask builds the network that the parameter `model` names, and trains it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.train import generators
from spark_hpo.train.built_in import MODELS
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.tasks.tabular_models import PeriodicEmbedding
from tests.support.training import train_task

COLOURS = Feature(name="colour", kind=ColumnKind.CATEGORICAL, vocabulary=("red", "green", "blue"))
NUMBER = Feature(name="x", kind=ColumnKind.NUMERIC)
STRIPES = TableSchema(features=(NUMBER,), label=Label(name="stripe", classes=("even", "odd")))
SMALL = {"learning_rate": 5e-3, "hidden_units": 16, "hidden_layers": 1}
EARLIER_SUM = -0.44986751284932325  # of all weights, as versions without `model` drew them with this seed


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A table whose label changes eight times along a number."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for split, rows in {"train": 800, "validation": 400, "test": 8}.items():
        x = rng.uniform(-2, 2, rows).astype("float32")
        (folder / split).mkdir()
        columns = pa.table({"x": x, "stripe": (np.floor(x * 2) % 2).astype("int64")})
        pq.write_table(columns, folder / split / "part-0.parquet", row_group_size=100)
    (folder / "schema.json").write_text(json.dumps(STRIPES.to_json()))
    return open_table(str(folder))


@pytest.mark.medium
def test_resnet_learns_stripes_that_an_mlp_does_not(stripes: Table, tmp_path: Path) -> None:
    mlp, resnet = (
        train_task("tabular", stripes, tmp_path / name, epochs=12, model=name, **SMALL)
        for name in ("mlp", "resnet")
    )
    assert mlp.metrics["accuracy"] < 0.75
    assert resnet.metrics["accuracy"] > 0.9


@pytest.mark.medium
def test_resnet_resumes_bit_for_bit(stripes: Table, tmp_path: Path) -> None:
    params = {"model": "resnet", "dropout": 0.2, **SMALL}
    whole = train_task("tabular", stripes, tmp_path / "whole", epochs=4, **params)
    half = train_task("tabular", stripes, tmp_path / "halves", epochs=2, max_epochs=4, **params)
    rest = train_task("tabular", stripes, tmp_path / "halves", epochs=4, start=half, **params)
    assert [m.metrics for m in rest.curve] == [m.metrics for m in whole.curve[2:]]


def test_model_that_does_not_exist_fails_the_trial(stripes: Table, tmp_path: Path) -> None:
    failure = train_task("tabular", stripes, tmp_path, epochs=1, model="resnt").failure
    assert failure is not None
    assert "'resnt'" in failure.message
    assert "resnet" in failure.message


@pytest.mark.parametrize("model", MODELS["tabular"])
def test_model_that_the_driver_accepts_is_built(model: str) -> None:
    assert TabularTask({"model": model}, STRIPES).build_model()


def test_mlp_is_the_default_and_has_the_weights_of_earlier_versions() -> None:
    schema = TableSchema(features=(NUMBER, COLOURS), label=STRIPES.label)
    states = []
    for params in ({}, {"model": "mlp"}):
        generators.seed(5)
        states.append(TabularTask(params, schema).build_model().state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert list(states[0]) == [
        "embeddings.0.weight",
        *(f"layers.{i}.{kind}" for i in (0, 3, 6) for kind in ("weight", "bias")),
    ]
    assert sum(float(w.double().sum()) for w in states[0].values()) == pytest.approx(EARLIER_SUM, abs=1e-9)


def test_resnet_takes_a_table_without_numbers() -> None:
    schema = TableSchema(features=(COLOURS,), label=STRIPES.label)
    model = TabularTask({"model": "resnet"}, schema).build_model()
    assert model({"colour": torch.tensor([0, 3])}).shape == (2, 2)


def test_periodic_embedding_embeds_each_number_on_its_own() -> None:
    embedding = PeriodicEmbedding(2, 3, scale=1.0)
    before = embedding(torch.tensor([[0.1, 0.2]]))
    after = embedding(torch.tensor([[0.1, 0.7]]))
    assert before.shape == (1, 6)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])
