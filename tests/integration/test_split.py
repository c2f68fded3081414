"""Splits by hash, group, time, column and stratum, and kinds of columns, on a real Spark."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.data.filter.condition import select_rows
from spark_hpo.data.filter.row_hash import Key, RowHash
from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import Encoding
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.table_source import describe, schema_folder
from spark_hpo.errors import DataError
from spark_hpo.trial import Split
from tests.support.tables import clusters_study

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


ROWS = 600


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pa.Table]:
    rng = np.random.default_rng(1)
    start = datetime(2026, 1, 1, 3, 4, 5, 678901, tzinfo=UTC)
    table = pa.table(
        {
            "row": pa.array(range(ROWS), pa.int32()),
            "customer_id": pa.array(rng.integers(0, 40, ROWS), pa.int32()),
            "sold": pa.array(
                [start + timedelta(hours=int(h)) for h in rng.integers(0, 2000, ROWS)],
                pa.timestamp("us", "UTC"),
            ),
            "fold": pa.array([["train", "validation", "test"][n] for n in rng.integers(0, 3, ROWS)]),
            "returned": pa.array(["it's no" if draw < 0.2 else "yes" for draw in rng.random(ROWS)]),
        }
    )
    folder = tmp_path_factory.mktemp("sales")
    pq.write_table(table.sort_by("sold"), folder / "sales.parquet", row_group_size=100)
    return str(folder), table


def rows_of_copy(folder: Path) -> dict[Split, set[int]]:
    schema = open_table(str(folder)).schema
    (row,) = (feature for feature in schema.features if feature.name == "row")
    return {
        split: {
            round(value * row.deviation + row.mean)
            for path in (folder / split).glob("*.parquet")
            for value in pq.read_table(path)["row"].to_pylist()
        }
        for split in Split
    }


@pytest.mark.parametrize(
    "section",
    [
        {"key": ["customer_id", "sold"]},
        {"group": "customer_id", "seed": 5},
        {"time": "sold"},
        {"group": "customer_id", "time": "sold"},
        {"column": "fold"},
        {"stratify": "returned"},
    ],
    ids=lambda section: "+".join(section),
)
def test_split_is_the_same_in_a_copy_and_in_place(
    spark: Any, tmp_path: Path, sales: tuple[str, pa.Table], section: dict[str, Any]
) -> None:
    source, table = sales
    options = {"input": source, "label": "returned", "split": section}
    copy = prepare.csv(spark, str(tmp_path / "copy"), **options)
    in_place = prepare.csv(spark, str(tmp_path / "in_place"), in_place=True, **options)
    assert copy.rows == in_place.rows
    opened = open_table(str(tmp_path / "in_place"))
    types = {column.name: column.type for column in table.schema}
    selected = {
        split: set(
            select_rows(table, parse_where(opened.manifest(split).where, None, types))["row"].to_pylist()
        )
        for split in Split
    }
    assert rows_of_copy(tmp_path / "copy") == selected
    assert {split: opened.manifest(split).rows for split in Split} == {
        s: len(rows) for s, rows in selected.items()
    }
    names = {feature.name for feature in opened.schema.features}
    assert names.isdisjoint({section.get("group"), section.get("column")})
    assert open_table(str(tmp_path / "copy")).schema.splits == {
        split: source.where for split, source in opened.schema.sources.items()
    }
    if section == {"time": "sold"}:  # the table is in the order of time, so statistics rule out row groups
        assert [len(opened.manifest(split).row_groups) for split in Split] == [5, 2, 1]
        assert any("2026" in remark for remark in copy.remarks)


def test_split_by_time_reads_dates_that_are_text(spark: Any, tmp_path: Path) -> None:
    days = [(date(2026, 1, 1) + timedelta(i)).strftime("%d.%m.%Y") for i in range(100)]
    lines = [f"{day},{i % 7},{i * 0.5}" for i, day in enumerate(days)]
    (tmp_path / "sales.csv").write_text("\n".join(["day,weekday,price", *reversed(lines)]))
    prepared = prepare.csv(
        spark,
        str(tmp_path / "out"),
        input=str(tmp_path / "sales.csv"),
        label="price",
        clean=True,
        split={"time": "day", "fractions": [0.5, 0.3, 0.2]},
    )
    assert prepared.rows == {"train": 50, "validation": 30, "test": 20}
    prices = {s: pq.read_table(str(tmp_path / "out" / s))["price"].to_pylist() for s in Split}
    assert max(prices[Split.TRAIN]) < min(prices[Split.VALIDATION])
    assert max(prices[Split.VALIDATION]) < min(prices[Split.TEST])
    assert any("2026-02-20" in remark and "2026-03-22" in remark for remark in prepared.remarks)


def test_split_by_an_unknown_column_is_an_error(
    spark: Any, tmp_path: Path, sales: tuple[str, pa.Table]
) -> None:
    with pytest.raises(DataError, match="nobody"):
        prepare.csv(spark, str(tmp_path / "out"), input=sales[0], label="returned", split={"group": "nobody"})


def batch_of(folder: Path, split: Split) -> dict[str, np.ndarray[Any, Any]]:
    """All rows of a split, in the order of the column `row`."""
    table = open_table(str(folder))
    loader = Loader(table, split, rank=0, world_size=1, batch_size=1000, seed=0, shuffle_window=None)
    [batch] = next(loader.passes(0, 1))
    order = np.argsort(np.asarray(batch["row"]))
    return {name: np.asarray(values)[order] for name, values in batch.items()}


def test_kinds_of_columns_give_the_same_features_in_a_copy_and_in_place(spark: Any, tmp_path: Path) -> None:
    rows = range(300)
    table = pa.table(
        {
            "row": rows,
            "season": pa.array([i % 4 + 1 for i in rows], pa.int32()),
            "zone": pa.array([None if i % 11 == 0 else float(i % 3) for i in rows]),
            "amount": [f"{i}.5" if i % 9 else None for i in rows],
            "on": [i % 2 == 0 for i in rows],
            "day": [f"2026-01-{i % 28 + 1:02d}" for i in rows],
            "y": ["a" if i % 3 else "b" for i in rows],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    options = {
        "input": str(tmp_path / "in"),
        "label": "y",
        "categorical": ["season", "zone"],
        "numeric": ["amount", "on"],
        "time": ["day"],
        "clean": True,
        "keep": ["row"],
        "split": {"key": "row", "fractions": [0.6, 0.2, 0.2]},
    }
    for name, in_place in (("copy", False), ("in_place", True)):
        prepare.csv(spark, str(tmp_path / name), in_place=in_place, **options)
        features = {feature.name: feature for feature in open_table(str(tmp_path / name)).schema.features}
        assert {name for name, f in features.items() if f.vocabulary} == {"season", "zone"}
        assert sorted(features["season"].vocabulary) == ["1", "2", "3", "4"]
        assert sorted(features["zone"].vocabulary) == ["", "0", "1", "2"]
        assert features["day"].mean > datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    for split in Split:
        copied, read = (batch_of(tmp_path / name, split) for name in ("copy", "in_place"))
        assert copied.keys() == read.keys()
        for name, values in copied.items():
            np.testing.assert_array_equal(values, read[name], err_msg=name)


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ({"categorical": ["share"]}, "share"),
        ({"numeric": ["name"]}, "name"),
        ({"time": ["name"]}, "name"),
        ({"time": ["local_day"]}, "local_day"),
        ({"numeric": ["nobody"]}, "nobody"),
    ],
)
def test_kinds_in_place_name_a_column_that_readers_cannot_convert(
    spark: Any, tmp_path: Path, kinds: dict[str, list[str]], named: str
) -> None:
    table = pa.table(
        {
            "share": [0.5, 1.0, 2.0],
            "name": ["a", "1", "2"],
            "local_day": ["1.2.2026", "2.2.2026", "3.2.2026"],
            "tags": [["a"], [], []],
            "y": ["a", "b", "b"],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=1)
    where = {"where_train": "share=0.5", "where_validation": "share=1", "where_test": "share=2"}
    options = {"input": str(tmp_path / "in"), "label": "y", "in_place": True, **where, **kinds}
    with pytest.raises(DataError, match=named):
        prepare.csv(spark, str(tmp_path / "out"), **options)


@pytest.mark.parametrize("in_place", [False, True])
def test_folds_of_a_split_by_group_have_their_own_groups(
    spark: Any, tmp_path: Path, sales: tuple[str, pa.Table], in_place: bool
) -> None:
    out = str(tmp_path / "out")
    split = {"group": "customer_id"}
    prepare.csv(
        spark, out, input=sales[0], label="returned", keep=["customer_id"], split=split, in_place=in_place
    )
    held_out = []
    for training, validation in folds_of(out, "customer_id"):
        assert set(training).isdisjoint(validation)
        held_out.append(set(validation))
    assert sum(map(len, held_out)) == len(set().union(*held_out)) > 20


def test_folds_of_a_copied_split_by_stratum_have_equal_shares(
    spark: Any, tmp_path: Path, sales: tuple[str, pa.Table]
) -> None:
    out = str(tmp_path / "out")
    prepare.csv(spark, out, input=sales[0], label="returned", split={"stratify": "returned", "key": "row"})
    counts = [np.bincount(np.asarray(validation)) for _, validation in folds_of(out, "returned")]
    assert np.ptp(counts, axis=0).max() <= 1


def folds_of(folder: str, name: str, count: int = 4) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the values of a column in the training and the held-out rows of each fold, as integers."""
    table = open_table(folder).divided(count)
    known = {f.name: (f.mean, f.deviation) for f in table.schema.features}
    mean, deviation = known.get(name, (0.0, 1.0))

    def values(fold: Table, side: Split) -> list[int]:
        loader = Loader(fold, side, rank=0, world_size=1, batch_size=ROWS, seed=0, shuffle_window=None)
        [batch] = next(loader.passes(0, 1))
        return [round(value * deviation + mean) for value in np.asarray(batch[name]).tolist()]

    for number in range(1, count + 1):
        fold = table.fold(number, count, seed=0)
        yield values(fold, Split.TRAIN), values(fold, Split.VALIDATION)


def test_split_of_a_study_file_divides_a_table_in_place(
    spark: Any, tmp_path: Path, sales: tuple[str, pa.Table]
) -> None:
    data = {"path": sales[0], "label": "returned", "split": {"time": "sold"}}
    config = clusters_study(tmp_path, data=data)
    describe(config, lambda: spark)
    table = open_table(schema_folder(config))
    assert table.schema.encoding is Encoding.RAW
    assert all("`sold`" in source.where for source in table.schema.sources.values())
    assert table.rows == ROWS
