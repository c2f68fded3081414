"""Delta tables that deltalake wrote, read in place."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.plan import footers
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.profile import profile
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, NullRule, TableFormat, TableSchema
from spark_hpo.errors import ConfigError, DataError
from tests.support.lakes import (
    GROWN,
    SCHEMA,
    add_commit,
    delivered,
    metadata_of,
    rows,
    write_delta,
    write_many_files,
)

DeltaTable = pytest.importorskip("deltalake").DeltaTable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Version 0 has the ids 0 to 99; 1: 0 to 199; 2: no id below 50; 3: only the ids 1000 to 1049."""
    place = tmp_path / "rides"
    write_delta(place, rows(0, 100))
    write_delta(place, rows(100, 200), mode="append")
    DeltaTable(str(place)).delete("id < 50")
    write_delta(place, rows(1000, 1050), mode="overwrite")
    return place


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (0, range(100)),
        (1, range(200)),
        (2, range(50, 200)),
        (3, range(1000, 1050)),
        (None, range(1000, 1050)),
    ],
)
def test_version_has_the_rows_that_the_table_had(
    folder: Path, version: int | None, expected: range, reader: str
) -> None:
    manifest = read_manifest(str(folder), SCHEMA, version=version)
    assert manifest.rows == len(expected)
    assert delivered(manifest, SCHEMA, reader) == list(expected)


def test_wanted_version_is_a_number_a_time_or_the_newest(folder: Path) -> None:
    place = str(folder)
    assert table_format(place) is TableFormat.DELTA
    assert [find_version(place, TableFormat.DELTA, v) for v in (None, 2, "1")] == [3, 2, 1]
    written = datetime.now(UTC)
    time.sleep(0.01)  # the log counts milliseconds
    write_delta(folder, rows(0, 9), mode="append")
    assert find_version(place, TableFormat.DELTA, written.isoformat()) == 3
    assert find_version(place, TableFormat.DELTA, "2999-01-01") == 4


@pytest.mark.parametrize(
    ("wanted", "error", "named"),
    [
        (9, DataError, "has no version 9: its log has the versions 0 to 3"),
        (-1, DataError, "has no version -1"),
        ("2001-01-01", DataError, "no version of 2001-01-01.*first is version 0"),
        ("newest", ConfigError, "version must be a version number or a time"),
        (True, ConfigError, "version must be"),
    ],
)
def test_absent_version_is_named_with_those_that_are_there(
    folder: Path, wanted: Any, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        find_version(str(folder), TableFormat.DELTA, wanted)


def test_vacuumed_version_is_named(folder: Path) -> None:
    DeltaTable(str(folder)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert read_manifest(str(folder), SCHEMA).rows == 50
    with pytest.raises(DataError, match=r"version 1\) is gone.*VACUUM.*newest version is \d+"):
        read_manifest(str(folder), SCHEMA, version=1)


def test_empty_version_is_named(folder: Path) -> None:
    DeltaTable(str(folder)).delete()
    with pytest.raises(DataError, match=r"version 4\) is empty"):
        read_manifest(str(folder), SCHEMA)


def test_part_of_a_table_is_refused(tmp_path: Path) -> None:
    write_delta(tmp_path / "t", rows(0, 20), partition_by=["season"])
    for part in ("season=spring", "_delta_log", next((tmp_path / "t").rglob("*.parquet"))):
        with pytest.raises(DataError):
            read_manifest(str(tmp_path / "t" / part))


PARTITIONS = {
    "day": [date(2026, 1, 1), date(2026, 1, 2)],
    "place": ["a b/c=d", "ü:%"],
    "price": [Decimal("1.50"), Decimal("2.25")],
    "open": [True, False],
    "moment": [datetime(2026, 1, 1, 3, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)],
    "number": [1, None],
}


@pytest.mark.parametrize("column", PARTITIONS)
def test_partition_values_are_columns(tmp_path: Path, column: str, reader: str) -> None:
    first, second = PARTITIONS[column]
    values = pa.array([first] * 10 + [second] * 20, pa.array(PARTITIONS[column]).type)
    content = rows(0, 30).append_column(column, values)
    write_delta(tmp_path / "t", content, partition_by=[column])
    kind = ColumnKind.CATEGORICAL if column in ("place", "open") else ColumnKind.NUMERIC
    feature = Feature(name=column, kind=kind, vocabulary=("a b/c=d", "true"), nulls=NullRule.FILL)
    schema = TableSchema(features=(feature, *SCHEMA.features), label=SCHEMA.label, encoding=Encoding.RAW)
    manifest = read_manifest(str(tmp_path / "t"), schema)
    assert manifest.rows == 30
    by_value: dict[Any, int] = {}
    for value in delivered(manifest, schema, reader, column):
        by_value[value] = by_value.get(value, 0) + 1
    assert sorted(by_value.values()) == [10, 20]
    assert manifest.columns[column] == str(content.schema.field(column).type)


def test_conditions_open_only_files_that_may_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    once = footers.read_footer
    monkeypatch.setattr(
        footers, "read_footer", lambda fs, path, *known: opened.append(path) or once(fs, path, *known)
    )
    place = tmp_path / "t"
    for number in range(10):
        write_delta(place, rows(number * 10, number * 10 + 10), mode="append", partition_by=["season"])
    for where, count, matching in (
        ("id >= 40 and id < 55", 8, 15),
        ("season = 'spring' and id < 20", 2, 5),
        ("season = 'spring' and id is null", 0, 0),
    ):
        opened.clear()
        if not matching:
            with pytest.raises(DataError, match="no rows that match"):
                read_manifest(str(place), SCHEMA, where=where)
        else:
            manifest = read_manifest(str(place), SCHEMA, where=where)
            assert manifest.rows == matching
        assert len(opened) == count


@pytest.mark.medium
def test_ten_thousand_files_of_ten_rows_are_dealt_evenly(tmp_path: Path) -> None:
    write_many_files(tmp_path / "many", 10_000, 10)
    features = (Feature(name="x0", kind=ColumnKind.NUMERIC),)
    schema = TableSchema(features=features, label=Label(name="y"), encoding=Encoding.RAW)
    manifest = read_manifest(str(tmp_path / "many"), schema)
    shards = plan_shards(manifest, 3, 0)
    assert manifest.rows == 100_000
    assert [shard.rows for shard in shards] == [33_333, 33_333, 33_334]
    pieces = open_reader("arrow", manifest, schema).read(shards[0].segments[:200])
    assert sum(len(piece["y"]) for piece in pieces) == sum(s.rows for s in shards[0].segments[:200])
    few = read_manifest(str(tmp_path / "many"), schema, where="id < 20")
    assert (few.rows, len(few.files)) == (20, 2)


# Schema growth -------------------------------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    place = tmp_path / "grown"
    write_delta(place, rows(0, 10))
    write_delta(place, rows(10, 20, wind=7.0), mode="append", schema_mode="merge")
    return place


def test_column_that_came_later_is_null_in_older_files(grown: Path, reader: str) -> None:
    manifest = read_manifest(str(grown), GROWN)
    assert delivered(manifest, GROWN, reader, "wind") == [0.0] * 10 + [3.0] * 10
    assert delivered(manifest, GROWN, reader, "wind_missing") == [0.0] * 10 + [1.0] * 10
    assert delivered(manifest, GROWN, reader) == list(range(20))
    assert profile(str(grown)).column("wind").present == 10  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("where", "count"), [("wind is null", 10), ("wind > 5", 10), ("id >= 5 and wind is null", 5)]
)
def test_condition_on_a_column_that_came_later(grown: Path, where: str, count: int, reader: str) -> None:
    manifest = read_manifest(str(grown), GROWN, where=where)
    assert manifest.rows == count
    assert len(delivered(manifest, GROWN, reader)) == count


def test_null_rule_applies_to_files_without_the_column(grown: Path) -> None:
    features = (Feature(name="wind", kind=ColumnKind.NUMERIC), *SCHEMA.features)
    schema = TableSchema(features=features, label=SCHEMA.label, encoding=Encoding.RAW)
    with pytest.raises(DataError, match="column 'wind' has 10 nulls"):
        read_manifest(str(grown), schema)
    assert read_manifest(str(grown), schema, where="wind is not null").rows == 10


def test_column_before_it_came_is_named(grown: Path) -> None:
    with pytest.raises(DataError, match="column 'wind' is missing"):
        read_manifest(str(grown), GROWN, version=0)


def test_files_of_another_type_are_named(folder: Path) -> None:
    """A writer that ignores the table's schema, or a type that was changed."""
    odd = folder / "odd.parquet"
    content = rows(0, 10).set_column(0, "id", pa.array([str(i) for i in range(10)]))
    pq.write_table(content, odd)
    add = {"path": odd.name, "size": odd.stat().st_size, "partitionValues": {}, "modificationTime": 1}
    add_commit(folder, {"add": {**add, "dataChange": True}})
    with pytest.raises(
        DataError, match=r"odd.parquet: column 'id' is string in the file, but int64 in the table"
    ):
        read_manifest(str(folder), SCHEMA)


def test_narrower_type_is_read_as_the_wider_one(folder: Path, reader: str) -> None:
    odd = folder / "narrow.parquet"
    pq.write_table(rows(0, 10).set_column(0, "id", pa.array(range(10), pa.int16())), odd)
    add = {"path": odd.name, "size": odd.stat().st_size, "partitionValues": {}, "modificationTime": 1}
    add_commit(
        folder,
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": ["typeWidening"],
                "writerFeatures": ["typeWidening"],
            }
        },
        {"add": {**add, "dataChange": True}},
    )
    manifest = read_manifest(str(folder), SCHEMA, where="id < 1020")
    assert delivered(manifest, SCHEMA, reader) == [*range(10), *range(1000, 1020)]


# Features that deltalake, or we, cannot read -------------------------------------------------------------


def protocol(*features: str) -> dict[str, Any]:
    names = list(features)
    versions = {"minReaderVersion": 3, "minWriterVersion": 7}
    return {"protocol": {**versions, "readerFeatures": names, "writerFeatures": names}}


@pytest.mark.parametrize("feature", ["aNewReaderFeature", "variantType"])
def test_unknown_reader_feature_is_refused_by_name(folder: Path, feature: str) -> None:
    add_commit(folder, protocol(feature))
    with pytest.raises(DataError, match=rf"{feature}.*data\.query"):
        read_manifest(str(folder), SCHEMA)


def test_deletion_vectors_are_refused_and_the_mere_feature_is_not(folder: Path) -> None:
    add_commit(folder, protocol("deletionVectors", "v2Checkpoint", "timestampNtz"))
    assert read_manifest(str(folder), SCHEMA).rows == 50
    table = DeltaTable(str(folder))
    action = pa.table(table.get_add_actions()).to_pylist()[0]
    base = {"path": action["path"], "partitionValues": {}, "dataChange": True}
    # Rows 3, 4, 7, 11, 18 and 29 of the protocol's own example.
    vector = {"storageType": "i", "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
              "sizeInBytes": 44, "cardinality": 6}  # fmt: skip
    add_commit(
        folder,
        {"remove": {**base, "deletionTimestamp": 1}},
        {"add": {**base, "size": action["size_bytes"], "modificationTime": 1, "deletionVector": vector}},
    )
    with pytest.raises(DataError, match=r"deletion vectors.*data\.query"):
        read_manifest(str(folder), SCHEMA)


@pytest.mark.parametrize("stored", ["id", "col-4711"])
def test_mapped_column_is_refused_unless_its_names_agree(folder: Path, stored: str) -> None:
    action = metadata_of(folder)
    schema = json.loads(action["metaData"]["schemaString"])
    for number, field in enumerate(schema["fields"], 1):
        name = stored if field["name"] == "id" else field["name"]
        field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": name}
    action["metaData"]["schemaString"] = json.dumps(schema)
    action["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
    add_commit(folder, {"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, action)
    if stored == "id":
        assert read_manifest(str(folder), SCHEMA).rows == 50
        return
    with pytest.raises(DataError, match=r"column 'id' is stored as 'col-4711'.*data\.query"):
        read_manifest(str(folder), SCHEMA)


def test_table_that_was_parquet_when_prepared_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="is a table of format delta now"):
        read_manifest(str(folder), SCHEMA, format=TableFormat.PARQUET)
    shutil.rmtree(folder / "_delta_log")
    assert read_manifest(str(folder), SCHEMA, format=TableFormat.PARQUET).rows > 50


def test_fingerprint_is_that_of_the_version(folder: Path) -> None:
    before = read_manifest(str(folder), SCHEMA, version=2).fingerprint
    write_delta(folder, rows(0, 10), mode="append")
    assert read_manifest(str(folder), SCHEMA, version=2).fingerprint == before
    assert read_manifest(str(folder), SCHEMA).fingerprint != before
