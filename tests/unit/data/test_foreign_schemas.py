"""`schema.json` as a hand may have written it, and tables of which files are left out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableFormat, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split
from tests.support.mutations import mutated

SCHEMA = TableSchema(
    features=(
        Feature(name="x", kind=ColumnKind.NUMERIC),
        Feature(name="c", kind=ColumnKind.CATEGORICAL, vocabulary=("a", "b"), source="kind"),
    ),
    label=Label(name="y", classes=("no", "yes")),
    encoding=Encoding.RAW,
)
RECORD = json.loads(json.dumps(SCHEMA.to_json()))


def folder_with(text: str, folder: str | Path) -> str:
    (Path(folder) / "schema.json").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file that all splits are read from."""
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    pq.write_table(pa.table({"x": [1.0, 2.0], "kind": ["a", "b"], "y": ["no", "yes"]}), path)
    return path


@settings(max_examples=200)
@given(record=st.data())
def test_any_schema_file_is_read_or_a_data_error(data: Path, record: st.DataObject) -> None:
    source = {"url": str(data), "where": "", "share": [0.0, 1.0], "seed": 0}
    whole = {**RECORD, "sources": dict.fromkeys(Split, source)}
    broken = record.draw(mutated(whole))
    with tempfile.TemporaryDirectory() as folder:
        url = folder_with(json.dumps(broken), folder)
        try:
            table = open_table(url)
        except DataError:
            return  # and nothing else
        assert TableSchema.from_json(json.loads(json.dumps(table.schema.to_json()))) == table.schema


WRONG: dict[str, Any] = {
    "name": {**RECORD, "features": [{**RECORD["features"][0], "name": 5}]},
    "mean": {**RECORD, "features": [{**RECORD["features"][0], "mean": "0"}]},
    "truth": {**RECORD, "features": [{**RECORD["features"][0], "truncates": 1}]},
    "shape": {**RECORD, "features": [{**RECORD["features"][0], "shape": ["3"]}]},
    "vocabulary": {**RECORD, "features": [{**RECORD["features"][1], "vocabulary": [["a"]]}]},
    "classes": {**RECORD, "label": {**RECORD["label"], "classes": [1, 2]}},
    "share": {**RECORD, "sources": {"train": {"url": "x", "share": [0.5]}}},
    "list": [],
    "number": 1,
}


@pytest.mark.parametrize("name", WRONG)
def test_field_of_a_wrong_type_is_found_before_reading(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"schema\.json is not a valid"):
        open_table(folder_with(json.dumps(WRONG[name]), tmp_path))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", '{"version": 2}', "\0", "nul"])
def test_text_that_is_no_schema_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"schema\.json is not a valid"):
        open_table(folder_with(text, tmp_path))


def test_schema_survives_json() -> None:
    parquet = Source(url="somewhere", where="x > 1", share=(0.0, 0.5), seed=3)
    delta = Source(url="elsewhere", format=TableFormat.DELTA, version=12)
    schema = replace(SCHEMA, sources={"train": parquet, "test": delta}, copied_from=delta)
    record = json.loads(json.dumps(schema.to_json()))
    assert TableSchema.from_json(record) == schema
    # Studies of earlier versions have the hash of this record.
    assert record["sources"]["train"].keys() == {"url", "where", "share", "seed"}


# Files that are left out ---------------------------------------------------------------------------------

SIZES = (3, 1, 7, 0, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of some row groups each, every row with a number of its own."""
    folder = tmp_path_factory.mktemp("table")
    for number, size in enumerate(SIZES):
        rows = pa.table({"x": [100.0 * number + row for row in range(size)], "y": [0.0] * size})
        pq.write_table(
            rows.cast(pa.schema([("x", pa.float64()), ("y", pa.float64())])), name(folder, number), 4
        )
    return folder


def name(folder: Path, number: int) -> str:
    return str(folder / f"{number}.parquet")


def rows_without(gone: Collection[int]) -> list[float]:
    return [100.0 * n + row for n, size in enumerate(SIZES) if n not in gone for row in range(size)]


@settings(max_examples=25)
@given(gone=st.sets(st.integers(0, len(SIZES) - 1)), world_size=st.integers(1, 2))
def test_table_without_some_files_is_planned_and_read_once(
    folder: Path, gone: set[int], world_size: int
) -> None:
    schema = TableSchema(features=(Feature(name="x", kind=ColumnKind.NUMERIC),), label=Label(name="y"))
    manifest = read_manifest(str(folder), schema)
    table = Table(url=str(folder), schema=schema, manifests=dict.fromkeys(Split, manifest))
    paths = [name(folder, number) for number in gone]
    expected = rows_without(gone)
    if len(expected) < world_size:
        if not expected:
            with pytest.raises(DataError, match="no rows are left"):
                table.without(paths)
        return
    smaller = table.without(paths).manifest(Split.TRAIN)
    shards = plan_shards(smaller, world_size, None)
    found = [
        float(value)
        for shard in shards
        for piece in open_reader("arrow", smaller, schema).read(shard.segments)
        for value in np.ravel(piece["x"])
    ]
    assert sorted(found) == expected
    assert smaller.rows == sum(shard.rows for shard in shards) == len(expected)
    assert (table.without(paths).fingerprint == table.fingerprint) == (not gone)
    one_by_one = table
    for path in paths:
        one_by_one = one_by_one.without([path])
    assert one_by_one.manifest(Split.TRAIN).row_groups == smaller.row_groups
