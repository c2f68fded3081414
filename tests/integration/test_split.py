"""Splits by hash, group, time, column and stratum, on a real Spark."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.filter.row_hash import Key, RowHash

pytestmark = pytest.mark.spark

EPOCH = datetime(1970, 1, 1)


def keys(rows: int) -> pa.Table:
    """A column of every type that can be a key, with nulls and edge cases."""
    rng = np.random.default_rng(0)

    def some(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.1 else values[rng.integers(len(values))] for _ in range(rows)]

    texts = ["", "a", "abc", "ü€😀", "x" * 31, "y" * 32, "z" * 33, "word " * 40, "12345678", "1234567890123"]
    seconds = [int(s) for s in rng.integers(-(2**31), 2**31, 50)]
    moments = [EPOCH + timedelta(seconds=s, microseconds=abs(s) % 1_000_000) for s in seconds]
    longs = [int(n) for n in rng.integers(-(2**63), 2**63 - 1, 50)] + [0, -1, 2**63 - 1, -(2**63)]
    floats = [0.0, -0.0, 1.5, float("nan"), float("inf"), -2.25e-10]
    return pa.table(
        {
            "i8": pa.array(some([-128, 0, 127, 5]), pa.int8()),
            "i32": pa.array(some([-(2**31), 2**31 - 1, 0, 17]), pa.int32()),
            "i64": pa.array(some(longs), pa.int64()),
            "u32": pa.array(some([0, 2**32 - 1, 5]), pa.uint32()),
            "flag": pa.array(some([True, False]), pa.bool_()),
            "f32": pa.array(some(floats), pa.float32()),
            "f64": pa.array(some(floats), pa.float64()),
            "text": pa.array(some(texts), pa.string()),
            "packed": pa.array(some(texts), pa.string()).dictionary_encode(),
            "bytes": pa.array(some([b"", b"\x00\xff", b"abcdefghi"]), pa.binary()),
            "day": pa.array(some([date(1969, 12, 31), date(2026, 1, 1)]), pa.date32()),
            "local": pa.array(some(moments), pa.timestamp("us")),
            "zoned": pa.array(some([m.replace(tzinfo=UTC) for m in moments]), pa.timestamp("us", "UTC")),
            "millis": pa.array(some([EPOCH, datetime(2026, 1, 1, 3)]), pa.timestamp("ms", "UTC")),
            "price": pa.array(
                some([Decimal("-1.50"), Decimal("0.00"), Decimal("99.99")]), pa.decimal128(8, 2)
            ),
            "wide": pa.array(
                some([Decimal(n).scaleb(-4) for n in (0, -1, 127, 128, -128, -129, 10**25, -(10**25))]),
                pa.decimal128(30, 4),
            ),
        }
    )


def test_row_hash_equals_that_of_spark(spark: Any, tmp_path: Path) -> None:
    table = keys(500).append_column("row", pa.array(range(500)))
    pq.write_table(table, tmp_path / "keys.parquet", row_group_size=70)
    frame = spark.read.parquet(str(tmp_path))
    names = [name for name in table.column_names if name != "row"]
    integers = [name for name in names if pa.types.is_integer(table.schema.field(name).type)]
    calls = {name: RowHash((Key(value=7), Key(column=name)), name) for name in names}
    calls |= {f"{n}_big": RowHash((Key(value=3 * 10**9), Key(column=n, as_bigint=True)), n) for n in integers}
    calls["all"] = RowHash(tuple(Key(column=name) for name in names), "all")
    sql = [f"xxhash64(7, {name}) as {name}" for name in names]
    sql += [f"xxhash64(3000000000, cast({name} as bigint)) as {name}_big" for name in integers]
    of_spark = frame.selectExpr("row", *sql, f"xxhash64({', '.join(names)}) as all").orderBy("row").toPandas()
    for name, row_hash in calls.items():
        assert row_hash.of(table).to_pylist() == of_spark[name].tolist(), name
