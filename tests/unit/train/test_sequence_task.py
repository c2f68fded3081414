"""SequenceTask learns from the order of elements, and ignores what pads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableSchema
from spark_hpo.data.table import Table, first_rows, open_table
from spark_hpo.errors import DataError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.sequence import SequenceTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split
from tests.support.torch_versions import needs_newer_export

ROWS, LONGEST = 400, 8
MODELS = ("gru", "transformer")
SERIES = Feature(
    name="series", kind=ColumnKind.SEQUENCE, shape=(LONGEST,), mean=100.0, deviation=50.0, source="series"
)
WORDS = Feature(name="words", kind=ColumnKind.SEQUENCE, shape=(6,), vocabulary=("a", "b", "c"))
AMOUNT = Feature(name="amount", kind=ColumnKind.NUMERIC)
COLOUR = Feature(name="colour", kind=ColumnKind.CATEGORICAL, vocabulary=("red", "green"))
VECTOR = Feature(name="vector", kind=ColumnKind.ARRAY, shape=(3,))
CLASSES = Label(name="label", classes=("falls", "rises"))


def sequences(rng: np.random.Generator) -> list[list[float]]:
    """Return ascending lists of numbers around 100. Reversed, they differ from these only in their order."""
    lists = [np.sort(rng.normal(100, 50, rng.integers(2, LONGEST + 1))) for _ in range(ROWS)]
    return [list(map(float, values)) for values in lists]


def table_of(folder: Path, columns: dict[str, Any], features: tuple[Feature, ...], label: Label) -> Table:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    pq.write_table(pa.table(columns), raw / "a.parquet", row_group_size=10)
    shares = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
    schema = TableSchema(
        features=features,
        label=label,
        encoding=Encoding.RAW,
        sources={name: Source(url=str(raw), share=share, seed=1) for name, share in shares.items()},
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def trained(
    table: Table, folder: Path, params: dict[str, Any], metric: str = "accuracy", epochs: int = 6
) -> Report:
    spec = RankSpec(
        study_id="sequences",
        storage=Storage(folder / "study"),
        trainable="sequence",
        table=table,
        objective=Objective(metric=metric, mode=Mode.MAX if metric == "accuracy" else Mode.MIN),
        settings=TrainingSettings(batch_size=32),
        max_resource=epochs,
        seed=0,
        reader="arrow",
        shuffle_window=ROWS,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"learning_rate": 0.01, "units": 16, **params},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=epochs,
        checkpoint=None,
        seed=1,
    )
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return report


@pytest.mark.parametrize("model", MODELS)
def test_sequence_task_learns_the_order_of_numbers(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rises = rng.integers(0, 2, ROWS).astype(bool)
    columns = {
        "series": [s if up else s[::-1] for s, up in zip(sequences(rng), rises, strict=True)],
        "label": ["rises" if up else "falls" for up in rises],
    }
    table = table_of(tmp_path, columns, (SERIES,), CLASSES)
    assert trained(table, tmp_path, {"model": model}).metrics["accuracy"] > 0.9


@pytest.mark.parametrize("model", MODELS)
def test_sequence_task_learns_a_number_from_tokens(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [list(rng.choice(["a", "b", "?"], rng.integers(1, 7))) for _ in range(ROWS)]
    numbers = [1000.0 * (found[0] == "a") + 10 * (found[0] == "b") for found in words]
    label = Label(name="label", mean=float(np.mean(numbers)), deviation=float(np.std(numbers)))
    table = table_of(tmp_path, {"words": words, "label": numbers}, (WORDS,), label)
    report = trained(table, tmp_path, {"model": model}, metric="absolute_error", epochs=12)
    assert report.metrics["absolute_error"] < 100  # always answering the median: about 330


def test_sequence_task_uses_columns_beside_the_sequence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    amount, green = rng.normal(size=ROWS), rng.integers(0, 2, ROWS).astype(bool)
    columns = {
        "series": sequences(rng),
        "amount": amount,
        "colour": ["green" if g else "red" for g in green],
        "label": ["rises" if (a > 0) == g else "falls" for a, g in zip(amount, green, strict=True)],
    }
    table = table_of(tmp_path, columns, (SERIES, AMOUNT, COLOUR), CLASSES)
    assert trained(table, tmp_path, {"learning_rate": 0.03}).metrics["accuracy"] > 0.9


@needs_newer_export
@pytest.mark.medium
@pytest.mark.parametrize("model", MODELS)
def test_sequence_task_exports_a_network_with_equal_predictions(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "series": [values if i % 9 else [] for i, values in enumerate(sequences(rng))],
        "label": ["rises" if i % 2 else "falls" for i in range(ROWS)],
    }
    table = table_of(tmp_path, columns, (SERIES,), CLASSES)
    params = {"model": model, "units": 6}
    torch.manual_seed(0)
    network = SequenceTask(params, table.schema).build_model()
    model_folder.export(
        tmp_path / "model",
        code=Code.named("sequence"),
        params=params,
        table=table,
        load_checkpoint=lambda: {"model": network.state_dict()},
    )
    loaded = predictor.Predictor.load(tmp_path / "model")
    rows = first_rows(table, Split.TEST, 10)
    assert rows is not None
    said = loaded.predict(rows)["probability"]
    program = torch.export.load(str(tmp_path / "model" / "network.pt2")).module()
    lengths = torch.tensor([len(values) for values in rows["series"]])
    padded = torch.zeros(10, LONGEST)
    for row, values in zip(padded, rows["series"], strict=True):
        row[: len(values)] = torch.tensor(values)
    answers = program({"series": padded, "series.length": lengths})["probability"]
    assert torch.allclose(answers, torch.tensor(said.tolist()), atol=1e-5)


def _batch(rows: int, seed: int, pad: int, junk: float) -> tuple[dict[str, torch.Tensor], ...]:
    """Return a batch, and the same one with other values where the sequences are padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, LONGEST + 1, (rows,), generator=generator)
    words = torch.randint(0, 7, (rows,), generator=generator)
    batch = {
        "series": 100 + 50 * torch.randn(rows, LONGEST, generator=generator),
        "series.length": lengths,
        "words": torch.randint(0, 4, (rows, 6), generator=generator),
        "words.length": words,
        "amount": torch.randn(rows, generator=generator),
    }
    for name, value in (("series", 0), ("words", 0)):
        inside = torch.arange(batch[name].shape[1]) < batch[name + ".length"].unsqueeze(1)
        batch[name] = torch.where(inside, batch[name], value)
    other = dict(batch)
    for name, value in (("series", junk), ("words", 3)):
        inside = torch.arange(batch[name].shape[1]) < batch[name + ".length"].unsqueeze(1)
        filled = torch.where(inside, batch[name], value).to(batch[name].dtype)
        other[name] = torch.cat([filled, torch.full((rows, pad), value, dtype=filled.dtype)], dim=1)
    return batch, other


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 1000),
    pad=st.integers(0, 4),
    junk=st.floats(-1e6, 1e6),
    mode=st.booleans(),
)
def test_padding_does_not_change_the_outputs(
    model: str, rows: int, seed: int, pad: int, junk: float, mode: bool
) -> None:
    schema = TableSchema(features=(SERIES, WORDS, AMOUNT), label=CLASSES)
    torch.manual_seed(0)
    network = SequenceTask({"model": model, "units": 8, "heads": 2}, schema).build_model().train(mode)
    batch, other = _batch(rows, seed, pad, junk)
    expected, outputs = network(batch), network(other)
    assert torch.isfinite(expected).all()
    assert torch.allclose(expected, outputs, atol=1e-5)
    # A row does not depend on the longest list of its batch.
    first = network({name: values[:1] for name, values in batch.items()})
    assert torch.allclose(first, expected[:1], atol=1e-5)


def test_sequence_task_reads_arrays_of_one_length_as_sequences() -> None:
    schema = TableSchema(features=(VECTOR, AMOUNT), label=CLASSES)
    network = SequenceTask({}, schema).build_model()
    batch = {"vector": torch.randn(4, 3), "amount": torch.randn(4)}
    reordered = {**batch, "vector": batch["vector"].flip(1)}
    assert network(batch).shape == (4, 2)
    assert not torch.allclose(network(batch), network(reordered))


def test_sequence_task_refuses_a_table_without_lists() -> None:
    with pytest.raises(DataError, match="amount"):
        SequenceTask({}, TableSchema(features=(AMOUNT,), label=CLASSES)).build_model()


def test_sequence_task_refuses_an_unknown_model() -> None:
    with pytest.raises(TrialError, match="'lstm'"):
        SequenceTask({"model": "lstm"}, TableSchema(features=(SERIES,), label=CLASSES)).build_model()
