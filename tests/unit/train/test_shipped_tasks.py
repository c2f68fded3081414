"""The shipped tasks train on every kind of column, and their models take rows of the table's files."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, NullRule, Source, TableSchema
from spark_hpo.data.table import Table, first_rows, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split

ROWS = 300
FILL = NullRule.FILL


def decode(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, np.uint8).reshape(1, 4, 4) / 255.0


FEATURES = {
    "numeric": Feature(name="noise", kind=ColumnKind.NUMERIC, nulls=FILL),
    "date": Feature(name="day", kind=ColumnKind.NUMERIC, mean=1.767e9, deviation=1e6),
    "numbers": Feature(name="clicks", kind=ColumnKind.SEQUENCE, shape=(5,), nulls=FILL),
    "words": Feature(
        name="words", kind=ColumnKind.SEQUENCE, shape=(4,), vocabulary=("good", "bad"), nulls=FILL
    ),
    "array": Feature(name="embedding", kind=ColumnKind.ARRAY, shape=(3,)),
    "bytes": Feature(name="photo", kind=ColumnKind.BINARY),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that is read in place. Each column except `noise` determines the class."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    good = rng.integers(0, 2, ROWS).astype(bool)
    word = {True: "good", False: "bad"}
    photos = rng.integers(0, 100, (ROWS, 16)) + 120 * good[:, None]
    table = pa.table(
        {
            "noise": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.1),
            "day": [date(2026, 1, 5) if g else date(2026, 1, 1) for g in good],
            "clicks": pa.array([[1.0] * int(rng.integers(3, 6)) if g else [] for g in good]),
            "words": pa.array([["?", word[bool(g)]] * int(rng.integers(1, 3)) for g in good]),
            "embedding": pa.array(list(rng.normal(size=(ROWS, 3)) + 3 * good[:, None])),
            "photo": pa.array([p.astype("uint8").tobytes() for p in photos]),
            "verdict": ["yes" if g else "no" for g in good],
        }
    )
    (folder / "raw").mkdir()
    pq.write_table(table, folder / "raw" / "a.parquet", row_group_size=5)
    return folder


def opened(folder: Path, *kinds: str) -> Table:
    features = tuple(FEATURES[kind] for kind in kinds)
    shares = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
    schema = TableSchema(
        features=features,
        label=Label(name="verdict", classes=("no", "yes")),
        encoding=Encoding.RAW,
        sources={n: Source(url=str(folder / "raw"), share=share, seed=1) for n, share in shares.items()},
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    transforms = {"photo": f"{__name__}:decode"} if "bytes" in kinds else {}
    return open_table(str(folder), transforms=transforms)


def trained(table: Table, tmp_path: Path, task: str, **params: Any) -> tuple[RankSpec, Report]:
    spec = RankSpec(
        study_id="kinds",
        storage=Storage(tmp_path / "study"),
        trainable=task,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=32),
        max_resource=8,
        seed=0,
        reader="arrow",
        shuffle_window=100,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"learning_rate": 0.02, **params},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=8,
        checkpoint=None,
        seed=1,
    )
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return spec, report


@pytest.mark.parametrize("kind", ["date", "numbers", "words", "array", "bytes"])
def test_tabular_task_learns_from_every_kind_of_column(folder: Path, tmp_path: Path, kind: str) -> None:
    _, report = trained(opened(folder, "numeric", kind), tmp_path, "tabular", hidden_units=16)
    assert report.metrics["accuracy"] > 0.9


def test_image_task_learns_from_bytes(folder: Path, tmp_path: Path) -> None:
    _, report = trained(opened(folder, "bytes"), tmp_path, "image", channels=4, stages=1)
    assert report.metrics["accuracy"] > 0.9


@pytest.mark.medium
@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_predictor_takes_rows_of_the_tables_files(folder: Path, tmp_path: Path, model: str) -> None:
    table = opened(folder, *FEATURES)
    params = {"hidden_units": 16, "model": model}
    spec, report = trained(table, tmp_path, "tabular", **params)
    assert report.checkpoint is not None
    path = report.checkpoint
    model_folder.export(
        tmp_path / "model",
        code=Code.named("tabular"),
        params=params,
        table=table,
        load_checkpoint=lambda: checkpoint.load(spec.storage, path),
    )
    assert (tmp_path / "model" / "network.pt2").exists()
    loaded = predictor.Predictor.load(tmp_path / "model")
    rows = first_rows(table, Split.TEST, 20)
    assert set(rows.columns) == {"noise", "day", "clicks", "words", "embedding", "photo"}
    assert str(rows["day"].dtype).startswith("datetime64")
    truth = pq.read_table(folder / "raw" / "a.parquet").to_pandas()
    by_photo = dict(zip(truth["photo"], truth["verdict"] == "yes", strict=True))
    said = loaded.predict(rows)["prediction"].to_numpy()
    assert (said == [by_photo[photo] for photo in rows["photo"]]).mean() > 0.9
    # The metrics of the whole split are those that the trial reported.
    evaluated = loaded.evaluate(table, Split.VALIDATION, reader="arrow")
    assert evaluated["accuracy"] == pytest.approx(report.metrics["accuracy"])
    assert isinstance(rows, pd.DataFrame)
