"""Integers that stand for something train better as categories than as numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment

ROWS, EPOCHS = 4_000, 10
CALL = "xxhash64(0, cast(row as bigint))"
SIDES = {"train": f"{CALL} < 4611686018427387904", "validation": f"{CALL} >= 4611686018427387904"}


def rentals() -> pa.Table:
    """Bikes that are rented by the hour: many at the times of commuting, on working days."""
    rng = np.random.default_rng(0)
    hour, weekday, season = (rng.integers(0, n, ROWS) for n in (24, 7, 4))
    commute = np.isin(hour, [7, 8, 17, 18]) & (weekday < 5)
    leisure = (hour >= 10) & (hour <= 16) & (weekday >= 5)
    mean = 20 + 250 * commute + 200 * leisure + np.array([0, 40, 60, 30])[season] * (hour > 6)
    return pa.table(
        {
            "row": range(ROWS),
            "hour": hour,
            "weekday": weekday,
            "season": season,
            "count": rng.poisson(mean).astype(float),
        }
    )


def squared_error(folder: Path, kind: ColumnKind) -> float:
    """The validation error of the tabular task after 10 epochs."""
    table = rentals()
    folder.mkdir()
    pq.write_table(table, folder / "rentals.parquet", row_group_size=500)

    def feature(name: str) -> Feature:
        values = table[name].to_numpy()
        if kind is ColumnKind.CATEGORICAL:
            return Feature(name=name, kind=kind, vocabulary=tuple(map(str, np.unique(values))))
        return Feature(name=name, kind=kind, mean=float(values.mean()), deviation=float(values.std()))

    label = table["count"].to_numpy()
    schema = TableSchema(
        features=tuple(map(feature, ("hour", "weekday", "season"))),
        label=Label(name="count", mean=float(label.mean()), deviation=float(label.std())),
        encoding=Encoding.RAW,
        sources={
            split: Source(url=str(folder / "rentals.parquet"), where=SIDES.get(split, SIDES["validation"]))
            for split in ("train", "validation", "test")
        },
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    spec = RankSpec(
        study_id="kinds",
        storage=Storage(folder / "study"),
        trainable="tabular",
        table=open_table(str(folder)),
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=64),
        max_resource=EPOCHS,
        seed=0,
        reader="arrow",
        shuffle_window=ROWS,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"learning_rate": 0.01, "hidden_units": 32},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=EPOCHS,
        checkpoint=None,
        seed=1,
    )
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return float(report.metrics["loss"])


def test_integers_as_categories_cut_the_error_by_a_quarter(tmp_path: Path) -> None:
    numbers = squared_error(tmp_path / "numbers", ColumnKind.NUMERIC)
    categories = squared_error(tmp_path / "categories", ColumnKind.CATEGORICAL)
    assert categories < 0.75 * numbers, (categories, numbers)
