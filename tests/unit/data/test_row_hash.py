"""Row hashes are those of Spark, whatever the batches and the encoding."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.data.filter.condition import select_rows
from spark_hpo.data.filter.row_hash import Key, RowHash
from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.errors import DataError

KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i16": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "i64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "u64": (pa.uint64(), st.integers(0, 2**63 - 1)),
    "flag": (pa.bool_(), st.booleans()),
    "f64": (pa.float64(), st.floats()),
    "text": (pa.string(), st.text(max_size=100)),
    "large": (pa.large_string(), st.text(max_size=40)),
    "day": (pa.date32(), st.dates(date(1900, 1, 1))),
    "local": (pa.timestamp("us"), st.datetimes(datetime(1900, 1, 1))),
    "zoned": (pa.timestamp("us", "UTC"), st.datetimes(datetime(1900, 1, 1))),
    "price": (pa.decimal128(12, 3), st.decimals(-(10**8), 10**8, places=3)),
    "wide": (pa.decimal128(38, 3), st.decimals(-(10**30), 10**30, places=3)),
}


def row_hash(*columns: str, **more: Any) -> RowHash:
    return RowHash(tuple(Key(column=name, **more) for name in columns), "hash")


def test_row_hash_equals_documented_values_of_spark() -> None:
    # https://spark.apache.org/docs/latest/api/python: pyspark.sql.functions.xxhash64
    table = pa.table({"c1": ["ABC"], "c2": ["DEF"]})
    assert row_hash("c1").of(table).to_pylist() == [4105715581806190027]
    assert row_hash("c1", "c2").of(table).to_pylist() == [3233247871021311208]


@pytest.mark.medium
@given(data=st.data())
def test_row_hash_does_not_depend_on_chunks(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    whole = pa.table(
        {
            name: pa.array(data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), kind)
            for name, (kind, values) in KINDS.items()
        }
    )
    cut = data.draw(st.integers(0, rows))
    parts = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    for name in KINDS:
        hashes = row_hash(name).of(whole).to_pylist()
        assert row_hash(name).of(parts).to_pylist() == hashes
        alone = [row_hash(name).of(whole.slice(i, 1)).to_pylist()[0] for i in range(rows)]
        assert alone == hashes
    packed = whole.set_column(whole.column_names.index("text"), "text", whole["text"].dictionary_encode())
    assert row_hash(*KINDS).of(packed).equals(row_hash(*KINDS).of(whole))


def test_row_hash_of_integers_as_bigint_does_not_depend_on_their_width() -> None:
    numbers = [-7, 0, 12, None]
    hashes = [
        row_hash("a", as_bigint=True).of(pa.table({"a": pa.array(numbers, kind)})).to_pylist()
        for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())
    ]
    assert hashes[1:] == hashes[:-1]


def test_row_hash_spreads_keys_evenly() -> None:
    table = pa.table({"a": pa.array(range(100_000)), "b": [f"customer {i}" for i in range(100_000)]})
    for name in ("a", "b"):
        hashes = row_hash(name).of(table).to_numpy()
        counts, _ = np.histogram(hashes.astype(float), bins=10, range=(-(2.0**63), 2.0**63))
        assert abs(counts - 10_000).max() < 500


def test_where_selects_by_a_hash(tmp_path: Path) -> None:
    table = pa.table({"customer id": pa.array(range(1000), pa.int32()), "x": np.arange(1000.0)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    call = "xxhash64(3, cast(`customer id` as bigint))"
    low, high = f"{call} < -5000000000000000000", f"{call} >= -5000000000000000000"
    types = {column.name: column.type for column in table.schema}
    selected = [select_rows(table, parse_where(text, None, types)) for text in (low, high)]
    assert sorted(selected[0]["x"].to_pylist() + selected[1]["x"].to_pylist()) == table["x"].to_pylist()
    assert selected[0].column_names == table.column_names
    manifests = [read_manifest(str(tmp_path), where=f"({text}) and x < 500") for text in (low, high)]
    assert [manifest.where_columns for manifest in manifests] == [("customer id", "x")] * 2
    assert manifests[0].rows + manifests[1].rows == 500
    assert manifests[0].rows == sum(x < 500 for x in selected[0]["x"].to_pylist())


@pytest.mark.parametrize(
    "text",
    [
        "xxhash64(0, nobody) < 1",
        "xxhash64(0, tags) < 1",
        "xxhash64(0, cast(name as bigint)) < 1",
        "xxhash64(0, name) < 1.5",
        "xxhash64(0, name) is null",
        "xxhash64('a', name) < 1",
        "md5(name) < 1",
    ],
)
def test_where_refuses_a_hash_that_has_no_value(text: str) -> None:
    types = {"name": pa.string(), "tags": pa.list_(pa.string()), "price": pa.decimal128(5, 2)}
    assert parse_where("xxhash64(0, price) < 1", None, types).columns == ("price",)
    with pytest.raises(DataError):
        parse_where(text, None, types)


def test_row_hash_of_a_decimal_is_that_of_its_unscaled_integer() -> None:
    table = pa.table(
        {"price": pa.array([Decimal("1.50"), Decimal("-2.00")], pa.decimal128(8, 2)), "cents": [150, -200]}
    )
    assert row_hash("price").of(table).equals(row_hash("cents").of(table))
