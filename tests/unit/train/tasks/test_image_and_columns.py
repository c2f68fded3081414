"""ImageTask with other columns beside the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from tests.support.training import train_task

ROWS = 400


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The label is whether a number is positive; in bright images, whether it is negative."""
    folder = tmp_path_factory.mktemp("tables") / "both"
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        bright, number = rng.integers(0, 2, ROWS), rng.normal(size=ROWS)
        images = rng.normal(size=(ROWS, 16)) * 0.2 + bright[:, None]
        columns = {
            "photo": list(images.astype("float32")),
            "number": number.astype("float32"),
            "kind": rng.integers(1, 3, ROWS),
            "label": ((number > 0) ^ (bright == 1)).astype("int64"),
        }
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / split / "part-0.parquet")
    schema = TableSchema(
        features=(
            Feature(name="photo", kind=ColumnKind.ARRAY, shape=(1, 4, 4)),
            Feature(name="number", kind=ColumnKind.NUMERIC),
            Feature(name="kind", kind=ColumnKind.CATEGORICAL, vocabulary=("a", "b")),
        ),
        label=Label(name="label", classes=("no", "yes")),
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def test_image_task_learns_from_the_image_and_the_other_columns(table: Table, tmp_path: Path) -> None:
    params = {"learning_rate": 0.01, "channels": 4, "stages": 1}
    both = train_task("image", table, tmp_path / "both", epochs=8, column_units=16, **params)
    alone = train_task("image", table, tmp_path / "alone", epochs=8, **params)
    assert both.failure is None
    assert both.metrics["accuracy"] > 0.85
    assert alone.metrics["accuracy"] < 0.65
