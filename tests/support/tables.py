"""Small prepared tables for tests, written with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from tests.support.mlflow_database import write_database

CLUSTERS = TableSchema(
    features=(
        Feature(name="x", kind=ColumnKind.NUMERIC),
        Feature(name="y", kind=ColumnKind.NUMERIC),
    ),
    label=Label(name="side", classes=("left", "right")),
)


def clusters_study(folder: Path, **changes: Any) -> StudyConfig:
    """Return a small inline study of the table that `write_clusters` writes to `folder/table`.

    Args:
        folder: receives an MLflow database, unless it has one or `changes` name another.
        changes: sections that replace the default ones.
    """
    if "mlflow" not in changes and folder.is_dir() and not (folder / "mlflow.db").exists():
        write_database(folder)
    record: dict[str, Any] = {
        "name": "clusters",
        "study_dir": str(folder / "study"),
        "task": "tabular",
        "data": {"path": str(folder / "table")},
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        "search": {"max_resource": 3},
        "budget": {"trials": 4},
        "training": {"batch_size": 16},
        "backend": "inline",
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return build_config(record | changes, place="test")


def write_clusters(folder: Path, *, rows: int = 120, row_group_rows: int = 16, noise: float = 0.8) -> Path:
    """Write a table of two overlapping clusters of points; about 90 % accuracy can be reached."""
    rng = np.random.default_rng(3)
    for split, count in {"train": rows, "validation": rows // 2, "test": rows // 2}.items():
        side = rng.integers(0, 2, count)
        table = pa.table(
            {
                "x": (rng.normal(size=count) * noise + side * 2 - 1).astype("float32"),
                "y": rng.normal(size=count).astype("float32"),
                "side": side,
            }
        )
        (folder / split).mkdir(parents=True)
        pq.write_table(table, folder / split / "part-0.parquet", row_group_size=row_group_rows)
    (folder / "schema.json").write_text(json.dumps(CLUSTERS.to_json()))
    return folder
