"""The format of a table, from the files beside its data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import ConfigError, DataError

METADATA = {
    TableFormat.DELTA: "_delta_log/00000000000000000000.json",
    TableFormat.ICEBERG: "metadata/00000-0b4c.metadata.json",
    "Hudi": ".hoodie/hoodie.properties",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("part-0.parquet", "day=1/hour=2/part-0.parquet", "data/day=1/part-0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def add(folder: Path, format: str) -> None:
    (folder / METADATA[format]).parent.mkdir()
    (folder / METADATA[format]).touch()


@pytest.mark.parametrize("format", [TableFormat.DELTA, TableFormat.ICEBERG])
def test_format_is_that_of_the_log(folder: Path, format: TableFormat) -> None:
    assert table_format(str(folder)) is TableFormat.PARQUET
    add(folder, format)
    assert table_format(str(folder)) is format
    assert table_format(f"{folder}/") is format


@pytest.mark.parametrize("format", METADATA)
@pytest.mark.parametrize(
    "part", ["part-0.parquet", "day=1", "day=1/hour=2/part-0.parquet", "data", "data/day=1/part-0.parquet"]
)
def test_part_of_a_table_is_refused(folder: Path, format: str, part: str) -> None:
    """Its files may hold rows that the table has deleted."""
    add(folder, format)
    with pytest.raises(DataError, match=format):
        table_format(str(folder / part))


def test_hudi_is_refused(folder: Path) -> None:
    add(folder, "Hudi")
    with pytest.raises(DataError, match="is a Hudi table"):
        table_format(str(folder))


def test_iceberg_metadata_file_is_a_table(folder: Path) -> None:
    add(folder, TableFormat.ICEBERG)
    assert table_format(str(folder / METADATA[TableFormat.ICEBERG])) is TableFormat.ICEBERG


def test_parquet_has_no_versions(folder: Path) -> None:
    assert find_version(str(folder), TableFormat.PARQUET) is None
    with pytest.raises(ConfigError, match="is Parquet") as wrong:
        find_version(str(folder), TableFormat.PARQUET, 3)
    assert wrong.value.key == "version"


@pytest.mark.parametrize(
    ("format", "package"), [(TableFormat.DELTA, "deltalake"), (TableFormat.ICEBERG, "pyiceberg")]
)
def test_missing_package_is_named_with_its_extra(
    folder: Path, format: TableFormat, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, format)
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{package}.*spark_hpo\[{format}\]"):
        find_version(str(folder), format)
