"""Delta and Iceberg tables, prepared with Spark at one version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_hpo import prepare
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import TableFormat, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.trial import Split
from tests.support.lakes import IcebergTable, rows, write_delta

OPTIONS = {"label": "label", "clean": False, "fractions": (0.5, 0.25, 0.25)}


def schema_at(folder: Path) -> TableSchema:
    return TableSchema.from_json(json.loads((folder / "schema.json").read_text()))


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """Partitions that Spark could take for patterns, deleted rows, and a column that came later."""
    deltalake = pytest.importorskip("deltalake")
    place = tmp_path / "a + ä"
    # The names of files are random, and with them the splits of row groups: 60 reach all of them.
    groups = deltalake.WriterProperties(max_row_group_size=2)
    for number in range(12):
        content = rows(number * 10, number * 10 + 10, place="a b/[c]" if number % 2 else "{ü}*")
        content = content if number < 6 else content.append_column("wind", content.column("x"))
        mode = {"mode": "append", "schema_mode": "merge"} if number else {}
        write_delta(place, content, writer_properties=groups, partition_by=["place"], **mode)
    deltalake.DeltaTable(str(place)).delete("id < 5 or id = 77")
    return place


@pytest.mark.parametrize("in_place", [True, False])
def test_prepared_delta_table_keeps_its_version(
    spark: Any, delta: Path, tmp_path: Path, in_place: bool
) -> None:
    options = {**OPTIONS, "input": str(delta), "in_place": in_place, "seed": 1}
    prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
    assert sum(prepared.rows.values()) == 114
    schema = schema_at(tmp_path / "out")
    by_name = {feature.name: feature for feature in schema.features}
    assert set(by_name["place"].vocabulary) == {"a b/[c]", "{ü}*"}
    assert "wind_missing" in by_name
    write_delta(delta, rows(1000, 1010, place="x"), mode="overwrite", schema_mode="overwrite")
    again = prepare.csv(spark, str(tmp_path / "out"), **options)
    assert (again.fresh, again.rows) == (False, prepared.rows)
    table = open_table(str(tmp_path / "out"))
    assert {split: table.manifest(split).rows for split in Split} == prepared.rows
    assert (table.source["url"], table.source["version"]) == (str(delta), 12)
    if in_place:
        assert {(s.format, s.version) for s in schema.sources.values()} == {(TableFormat.DELTA, 12)}
        # The statistics are those of the training rows that readers find.
        train = table.manifest(Split.TRAIN)
        [shard] = plan_shards(train, 1, None)
        pieces = list(open_reader("arrow", train, table.schema).read(shard.segments))
        wind, missing = (
            np.concatenate([piece[name] for piece in pieces]) for name in ("wind", "wind_missing")
        )
        assert 0 < missing.sum() < len(missing)
        assert wind[missing == 0].mean() == pytest.approx(0, abs=1e-5)


def test_older_version_by_conditions(spark: Any, delta: Path, tmp_path: Path) -> None:
    where = {"where_train": "id < 30", "where_validation": "id between 30 and 39", "where_test": "id >= 40"}
    options = {"label": "label", "clean": False, "input": str(delta), "in_place": True, **where}
    prepared = prepare.csv(spark, str(tmp_path / "out"), **options, version=5)
    assert prepared.rows == {"train": 30, "validation": 10, "test": 20}
    assert "wind" not in {feature.name for feature in schema_at(tmp_path / "out").features}
    with pytest.raises(ConfigError, match="another version"):
        prepare.csv(spark, str(tmp_path / "out"), **options, version=6)
    with pytest.raises(DataError, match="no version 99"):
        prepare.csv(spark, str(tmp_path / "other"), **options, version=99)


def test_prepared_iceberg_table_keeps_its_snapshot(spark: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg")
    table = IcebergTable(tmp_path / "lake", rows(0, 10), partition_by=None)
    for number in range(1, 12):
        table.append(rows(number * 10, number * 10 + 10))
    options = {**OPTIONS, "input": str(table.folder), "in_place": True, "seed": 1}
    prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
    pinned = table.snapshot
    table.append(rows(500, 600))
    assert sum(prepared.rows.values()) == 120
    sources = schema_at(tmp_path / "out").sources
    assert {(s.format, s.version) for s in sources.values()} == {(TableFormat.ICEBERG, pinned)}
    opened = open_table(str(tmp_path / "out"))
    assert {split: opened.manifest(split).rows for split in Split} == prepared.rows
