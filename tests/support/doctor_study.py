"""A small study for tests of the doctor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from spark_hpo.doctor import Finding, Status, examine
from tests.support.tables import write_clusters

FILE = "study.yaml"
STUDY = {
    "name": "clusters",
    "study_dir": "studies/clusters",
    "task": "tabular",
    "data": {"path": "table", "reader": "arrow"},
    "objective": {"metric": "accuracy", "mode": "max"},
    "space": {"learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-1}},
    "search": {"max_resource": 3},
    "budget": {"trials": 12},
    "mlflow": {"tracking_uri": "sqlite:///studies/mlflow.db"},
}


def write_study(folder: Path, **settings: Any) -> Path:
    """Write a table and a study file to a folder, and return the file."""
    write_clusters(folder / "table", rows=240)
    (folder / FILE).write_text(yaml.safe_dump({**STUDY, **settings}))
    return folder


def look(*overrides: str, spark: Any = None) -> dict[str, Finding]:
    """Return the doctor's findings by the name of the check."""
    return {finding.check: finding for finding in examine(FILE, overrides, spark=spark)}


def failed(found: Mapping[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if finding.status is Status.FAIL]
