"""The table of a study as an input of its run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import InputTable
from tests.unit.tracking.conftest import card

ROWS = {"train": 80, "validation": 10, "test": 10}


@pytest.mark.parametrize(
    ("format", "version", "source"),
    [
        ("delta", 12, {"path": "s3://lake/rides", "delta_table_version": 12}),
        ("iceberg", 7319203, {"uri": "s3://lake/rides", "snapshot_id": 7319203}),
        ("parquet", None, {"uri": "s3://lake/rides"}),
    ],
)
def test_run_has_the_version_of_the_table_once(
    uri: str, format: str, version: int | None, source: dict[str, object]
) -> None:
    table = InputTable(url="s3://lake/rides", format=format, version=version, rows=ROWS, digest="0" * 40)
    for _ in range(2):  # a resume describes the study again
        tracker = MlflowTracker(uri, "tests", replace(card(), table=table))
        tracker.close(60)
    [found] = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("rides", "0" * 36)
    assert json.loads(found.dataset.source) == source
    assert json.loads(found.dataset.profile) == {"rows": ROWS}
