"""Iceberg tables in a SQLite catalog, read in place by their metadata files."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.plan import footers
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, NullRule, TableFormat, TableSchema
from spark_hpo.errors import DataError
from tests.support.lakes import GROWN, SCHEMA, IcebergTable, delivered, rows

pytest.importorskip("pyiceberg")


@pytest.fixture
def lake(tmp_path: Path) -> IcebergTable:
    """The ids 0 to 99, then 0 to 199."""
    table = IcebergTable(tmp_path / "lake", rows(0, 100))
    table.append(rows(100, 200))
    return table


def test_snapshot_has_the_rows_that_the_table_had(lake: IcebergTable, reader: str) -> None:
    place = str(lake.folder)
    assert table_format(place) is TableFormat.ICEBERG
    first, second = (snapshot.snapshot_id for snapshot in lake.table.snapshots())
    assert find_version(place, TableFormat.ICEBERG) == second == lake.snapshot
    for version, count in ((first, 100), (second, 200), (None, 200)):
        manifest = read_manifest(place, SCHEMA, version=version)
        assert delivered(manifest, SCHEMA, reader) == list(range(count))


def test_overwritten_table_has_only_its_new_rows(lake: IcebergTable, reader: str) -> None:
    before = lake.snapshot
    lake.table.delete("id >= 0")  # whole files
    lake.append(rows(500, 520))
    assert delivered(read_manifest(str(lake.folder), SCHEMA), SCHEMA, reader) == list(range(500, 520))
    assert read_manifest(str(lake.folder), SCHEMA, version=before).rows == 200


def test_metadata_file_is_enough(lake: IcebergTable) -> None:
    """A metadata file is the table as it was when the file was written."""
    older = lake.table.metadata_location.removeprefix("file://")
    lake.append(rows(200, 250))
    assert read_manifest(older, SCHEMA).rows == 200
    assert read_manifest(str(lake.folder), SCHEMA).rows == 250
    assert (
        read_manifest(older, SCHEMA).fingerprint
        == read_manifest(
            str(lake.folder), SCHEMA, version=find_version(older, TableFormat.ICEBERG)
        ).fingerprint
    )


def test_version_may_be_a_time(lake: IcebergTable) -> None:
    now, before = datetime.now(UTC), lake.snapshot
    time.sleep(0.01)  # snapshots count milliseconds
    lake.append(rows(200, 250))
    assert find_version(str(lake.folder), TableFormat.ICEBERG, now.isoformat()) == before
    with pytest.raises(DataError, match=rf"no snapshot of 2001.*has the snapshots .*{before}"):
        find_version(str(lake.folder), TableFormat.ICEBERG, "2001-01-01")
    with pytest.raises(DataError, match=rf"no snapshot 12\. It has the snapshots .*{before}"):
        find_version(str(lake.folder), TableFormat.ICEBERG, 12)


def test_two_newest_metadata_files_are_refused(lake: IcebergTable) -> None:
    """A commit that failed leaves its file, and only the catalog knows which one counts."""
    newest = Path(lake.table.metadata_location.removeprefix("file://"))
    shutil.copy(newest, newest.with_name(newest.name.replace("-", "-0", 1)))
    with pytest.raises(DataError, match="two newest metadata files"):
        read_manifest(str(lake.folder), SCHEMA)
    assert read_manifest(str(newest), SCHEMA).rows == 200


def test_expired_files_are_named(lake: IcebergTable) -> None:
    first = lake.table.snapshots()[0].snapshot_id
    next((lake.folder / "data").glob("*.parquet")).unlink()
    with pytest.raises(DataError, match=rf"\(snapshot {lake.snapshot}\) is gone"):
        read_manifest(str(lake.folder), SCHEMA)
    with pytest.raises(DataError, match=rf"\(snapshot {first}\) is gone"):
        read_manifest(str(lake.folder), SCHEMA, version=first)


def test_table_without_rows_is_named(lake: IcebergTable, tmp_path: Path) -> None:
    lake.catalog.create_table("lake.empty", lake.table.schema())
    folder = lake.folder.with_name("empty")
    with pytest.raises(DataError, match="nothing has been written"):
        read_manifest(str(folder), SCHEMA)
    lake.table.delete("id >= 0")
    with pytest.raises(DataError, match="is empty"):
        read_manifest(str(lake.folder), SCHEMA)


def test_part_of_a_table_is_refused(lake: IcebergTable) -> None:
    for part in ("data", "data/00000.parquet"):
        with pytest.raises(DataError, match="is a part of the iceberg table"):
            read_manifest(str(lake.folder / part))


def test_conditions_open_only_files_that_may_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    table = IcebergTable(tmp_path / "lake", rows(0, 10).append_column("day", _days(1)), partition_by="day")
    table.append(rows(10, 20).append_column("day", _days(2)))
    table.append(rows(20, 30).append_column("day", _days(3)))
    opened: list[str] = []
    once = footers.read_footer
    monkeypatch.setattr(
        footers, "read_footer", lambda fs, path, *known: opened.append(path) or once(fs, path, *known)
    )
    for where, count in (("id >= 15", 2), ("day = '2026-01-02'", 1), ("season > 'zebra' or id < 3", 1)):
        opened.clear()
        manifest = read_manifest(str(table.folder), SCHEMA, where=where)
        assert len(opened) == count
        assert len(delivered(manifest, SCHEMA, reader)) == manifest.rows
    assert manifest.rows == 3


def _days(day: int) -> pa.Array:
    return pa.array([datetime(2026, 1, day).date()] * 10)


# Schema evolution ----------------------------------------------------------------------------------------


def test_column_that_came_later_is_null_in_older_files(lake: IcebergTable, reader: str) -> None:
    from pyiceberg.types import DoubleType

    with lake.table.update_schema() as update:
        update.add_column("wind", DoubleType())
    lake.append(rows(200, 210, wind=7.0))
    manifest = read_manifest(str(lake.folder), GROWN)
    assert delivered(manifest, GROWN, reader, "wind") == [0.0] * 200 + [3.0] * 10
    assert read_manifest(str(lake.folder), GROWN, where="wind is null").rows == 200


def test_renamed_column_is_refused_and_others_are_read(lake: IcebergTable, reader: str) -> None:
    with lake.table.update_schema() as update:
        update.rename_column("x", "y")
    lake.append(rows(200, 210).rename_columns(["id", "y", "season", "label"]))
    assert delivered(read_manifest(str(lake.folder), SCHEMA), SCHEMA, reader) == list(range(210))
    schema = with_feature("y")
    with pytest.raises(DataError, match=r"column 'y' was renamed.*data\.query"):
        read_manifest(str(lake.folder), schema)


def test_column_that_was_dropped_and_added_again_is_refused(lake: IcebergTable) -> None:
    """The values in the old files are not those of the new column."""
    from pyiceberg.types import DoubleType

    with lake.table.update_schema() as update:
        update.delete_column("x")
    with lake.table.update_schema() as update:
        update.add_column("x", DoubleType())
    lake.append(rows(200, 210))
    with pytest.raises(DataError, match="column 'x' was renamed, or dropped and added again"):
        read_manifest(str(lake.folder), with_feature("x"))


@pytest.mark.parametrize("renamed", [False, True])
def test_files_without_ids_are_read_by_name(lake: IcebergTable, tmp_path: Path, renamed: bool) -> None:
    """`add_files` registers files that another system wrote."""
    file = tmp_path / "other.parquet"
    pq.write_table(rows(500, 510), file)
    lake.add_file(file)
    if renamed:
        with lake.table.update_schema() as update:
            update.rename_column("x", "y")
        lake.append(rows(200, 210).rename_columns(["id", "y", "season", "label"]))
        with pytest.raises(DataError, match="column 'y' was renamed"):
            read_manifest(str(lake.folder), with_feature("y"))
        return
    assert read_manifest(str(lake.folder), with_feature("x")).rows == 210


def test_partition_value_of_some_files_only_is_not_taken_for_null(lake: IcebergTable) -> None:
    """The partition spec has changed, and a file leaves the column to the metadata."""
    with lake.table.update_spec() as update:
        update.add_identity("season")
    content = rows(200, 240).filter(pc.field("season") == "spring")
    lake.append(content)
    assert read_manifest(str(lake.folder), SCHEMA).rows == 210
    lake.append(content, without=["season"])
    with pytest.raises(DataError, match=r"column 'season' is missing.*data\.query"):
        read_manifest(str(lake.folder), SCHEMA)


def test_wider_type_is_read(lake: IcebergTable, tmp_path: Path, reader: str) -> None:
    from pyiceberg.types import LongType

    content = rows(0, 10).set_column(0, "id", pa.array(range(10), pa.int32()))
    table = IcebergTable(tmp_path / "narrow", content)
    with table.table.update_schema() as update:
        update.update_column("id", LongType())
    table.append(rows(10, 20))
    assert delivered(read_manifest(str(table.folder), SCHEMA), SCHEMA, reader) == list(range(20))


def with_feature(name: str) -> TableSchema:
    feature = Feature(name=name, kind=ColumnKind.NUMERIC, nulls=NullRule.FILL)
    return TableSchema(features=(feature, *SCHEMA.features), label=SCHEMA.label, encoding=Encoding.RAW)


# What only an engine can read ----------------------------------------------------------------------------


def test_delete_files_are_refused(lake: IcebergTable) -> None:
    before = lake.snapshot
    lake.delete_rows(min((lake.folder / "data").glob("*.parquet")), [3])
    with pytest.raises(DataError, match=r"deleted by delete files.*data\.query"):
        read_manifest(str(lake.folder), SCHEMA)
    assert read_manifest(str(lake.folder), SCHEMA, version=before).rows == 200


@pytest.mark.parametrize("newer", [3, 9])
def test_newer_format_is_refused(lake: IcebergTable, newer: int) -> None:
    place = Path(lake.table.metadata_location.removeprefix("file://"))
    record: dict[str, Any] = json.loads(place.read_text())
    place.write_text(json.dumps({**record, "format-version": newer, "next-row-id": 0}))
    with pytest.raises(DataError, match=str(lake.folder)):
        read_manifest(str(lake.folder), SCHEMA)
