"""This process prepares tables as Spark does: the same schema.json, splits and rows, to the last bit."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.errors import DataError
from spark_hpo.prepare.distinct_count import DistinctCount
from spark_hpo.prepare.sources import prepare

pytestmark = pytest.mark.spark

ROWS = 400
Table = Callable[[Path], Path]


def never() -> Any:
    pytest.fail("Spark was started")


def content(folder: Path, *, is_one_file: bool) -> Iterator[tuple[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name == "example.json" and not is_one_file:
            continue  # Spark begins with the largest file
        if path.suffix == ".json":
            yield name, json.loads(path.read_text())
        else:
            rows = pq.read_table(path, partitioning=None)
            yield name, (str(rows.schema), rows.to_pylist())


def mixed() -> pa.Table:
    """Columns of all types that Parquet has, with nulls, NaN and values that are hard to round."""
    rng = np.random.default_rng(0)

    def holes(values: Any, kind: pa.DataType, share: float = 0.1) -> pa.Array:
        return pa.array(values, kind, mask=rng.random(ROWS) < share)

    floats = rng.normal(0, 1e-3, ROWS)
    floats[::50] = np.nan
    floats[1], floats[2] = -0.0, 1e300
    moments = [datetime(1969, 12, 30) + timedelta(microseconds=int(n)) for n in rng.integers(0, 1e15, ROWS)]
    words = ["é", "z", "a b", " padded ", "NULL", "", "true", "漢字"]
    texts = rng.choice(words, ROWS, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    days = [date(1969, 12, 1) + timedelta(days=int(n)) for n in rng.integers(0, 9000, ROWS)]
    many = [f"city {n}" for n in np.minimum(rng.geometric(0.02, ROWS), 150)]
    tags = [list(rng.choice(words, n)) for n in rng.integers(0, 4, ROWS)]

    def decimals(most: int) -> list[Decimal]:
        return [Decimal(int(n)) / 100 for n in rng.integers(-most, most, ROWS)]

    return pa.table(
        {
            "target": pa.array(rng.normal(0, 1e9, ROWS)),
            "label": pa.array(rng.choice(["yes", "no", "perhaps"], ROWS)),
            "tiny": holes(rng.integers(-100, 100, ROWS), pa.int8()),
            "unsigned": holes(rng.integers(0, 2**32, ROWS, dtype=np.int64), pa.uint32()),
            "huge": pa.array(rng.integers(0, 2**64, ROWS, dtype=np.uint64)),
            "long": pa.array(rng.integers(-(2**60), 2**60, ROWS)),
            "float": holes(rng.normal(0, 3, ROWS).astype(np.float32), pa.float32()),
            "double": holes(floats, pa.float64()),
            "price": holes(decimals(10**6) , pa.decimal128(10, 2)),
            "wide": pa.array(decimals(10**14), pa.decimal128(30, 5)),
            "flag": holes(rng.random(ROWS) < 0.3, pa.bool_()),
            "word": holes(texts, pa.string(), 0.2),
            "city": pa.array(many).dictionary_encode(),
            "day": holes(days, pa.date32()),
            "moment": holes(moments, pa.timestamp("us")),
            "zoned": pa.array([m.replace(tzinfo=UTC) for m in moments], pa.timestamp("ms", "UTC")),
            "nanos": pa.array(rng.integers(-(10**18), 10**18, ROWS)).cast(pa.timestamp("ns")),
            "pixels": pa.array(rng.random((ROWS, 4)).tolist(), pa.list_(pa.float32(), 4)),
            "visits": holes([list(range(n)) for n in rng.integers(0, 6, ROWS)], pa.list_(pa.int64())),
            "tags": holes(tags, pa.list_(pa.string())),
            "image": pa.array([bytes(rng.integers(0, 256, 5, dtype=np.uint8)) for _ in range(ROWS)]),
            "nothing": pa.nulls(ROWS),
            "parts": pa.array([{"a": 1, "b": "x"}] * ROWS),
            "customer": pa.array(rng.integers(0, 60, ROWS)),
            "row number": pa.array(range(ROWS)),
            "copy of label": pa.array(["A"] * ROWS),
        }
    )  # fmt: skip


def parquet(rows_per_group: int) -> Table:
    def write(folder: Path) -> Path:
        pq.write_table(mixed(), folder / "in.parquet", row_group_size=rows_per_group)
        return folder / "in.parquet"

    return write


def partitioned(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    for country in ("DE", "a%2Fb", "__HIVE_DEFAULT_PARTITION__"):
        for year in (2024, 2025):
            place = folder / "in" / f"country={country}" / f"year={year}"
            place.mkdir(parents=True)
            rows = pa.table({"x": rng.normal(year, 1, 60), "label": rng.normal(0, 1, 60)})
            pq.write_table(rows, place / "part.parquet", row_group_size=10)
    return folder / "in"


def untidy(folder: Path) -> Path:
    """A CSV from a spreadsheet: several forms of dates and numbers, quotes, words for missing values."""
    rng = np.random.default_rng(2)
    lines = [" name ;joined;born;paid;when;share;score;size;note;flag;label"]
    for i in range(ROWS):
        day = date(2020, 1, 1) + timedelta(days=int(rng.integers(0, 900)))
        fields = [
            f'"person ""{i}"""',
            f"{day:%d.%m.%Y}",
            f"{day:%m/%d/%Y}",
            f'"${rng.integers(1, 99)},{rng.integers(100, 999)}.50"',
            f"{day}T{rng.integers(0, 24):02d}:30:00.25+02:00",
            f"{rng.integers(0, 99)},{rng.integers(0, 99)} %",
            "unknown" if i % 40 == 0 else f"{rng.normal(0, 1):.{rng.integers(1, 17)}g}",
            f" {rng.choice(['', 'NA', 'small', 'large'])} ",
            '"a\nb"' if i % 9 else "ab",
            rng.choice(["True", "False"]),
            str(rng.integers(0, 3)),
        ]
        lines.append(";".join(fields))
    path = folder / "in.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def plain(folder: Path) -> Path:
    """Two CSV without names in windows-1252, one of them empty."""
    rng = np.random.default_rng(3)
    (folder / "in").mkdir()
    rows = [
        f"{rng.choice(['Köln', 'Paris', ''])},{rng.integers(0, 9)},{rng.random():.3f}" for _ in range(ROWS)
    ]
    (folder / "in" / "a.csv").write_bytes("\r\n".join(rows).encode("windows-1252"))
    (folder / "in" / "b.csv").write_bytes(b"")
    return folder / "in"


COLUMNS: dict[str, Any] = {"label": "label", "keep": ["word"]}
CASES: list[Any] = [
    pytest.param(parquet(ROWS), COLUMNS, id="types"),
    pytest.param(parquet(12), {**COLUMNS, "in_place": True}, id="types in place"),
    pytest.param(untidy, {"label": "label"}, id="untidy csv"),
    pytest.param(partitioned, {"label": "label", "in_place": True}, id="partitions in place"),
]
SPLITS: dict[str, dict[str, Any]] = {
    "key": {"key": ["long", "word", "wide", "day", "moment", "zoned", "flag", "float", "image"]},
    "group": {"group": ["customer"]},
    "time": {"time": "zoned"},
    "stratify": {"stratify": "word"},
    "group and time": {"group": ["city"], "time": "zoned"},
    "column": {"column": "label", "values": {"train": ["yes"], "validation": ["no"], "test": ["perhaps"]}},
}
SLOW_CASES: list[Any] = [
    pytest.param(plain, {"label": "column3", "header": False, "seed": 2**33}, id="plain csv"),
    pytest.param(partitioned, {"label": "label"}, id="partitions"),
    pytest.param(parquet(50), {**COLUMNS, "row_group_rows": 2, "max_vocabulary": 7}, id="several files"),
    pytest.param(
        parquet(50),
        {"label": "target", "clean": False, "drop": ["parts", "tags", "double"]},
        id="as is",
    ),
    pytest.param(
        parquet(50),
        {
            "label": "target",
            "categorical": ["price", "tiny", "visits", "float"],
            "numeric": ["flag"],
            "text": ["city"],
        },
        id="kinds",
    ),
    pytest.param(untidy, {"label": "score", "split": {"time": "born"}}, id="untidy, by time"),
    pytest.param(untidy, {"label": "label", "time": ["when"], "categorical": ["share"]}, id="untidy, kinds"),
    *(
        pytest.param(
            parquet(40), {**COLUMNS, "split": split, "in_place": place}, id=f"{name}, in place: {place}"
        )
        for (name, split), place in zip(SPLITS.items(), itertools.cycle((False, True)), strict=False)
    ),
]  # fmt: skip


def check(spark: Any, folder: Path, table: Table, options: dict[str, Any]) -> None:
    path = table(folder)
    options = {"input": str(path), **options}
    expected = prepare("csv", str(folder / "out"), options, lambda: spark)
    written = dict(content(folder / "out", is_one_file=path.is_file()))
    alone = prepare("csv", str(folder / "out"), {**options, "overwrite": True}, never, on_spark=False)
    assert dict(content(folder / "out", is_one_file=path.is_file())) == written
    assert (alone.rows, alone.remarks) == (expected.rows, expected.remarks)


@pytest.mark.medium
@pytest.mark.parametrize(("table", "options"), CASES)
def test_tables_are_those_of_spark(spark: Any, tmp_path: Path, table: Table, options: dict[str, Any]) -> None:
    check(spark, tmp_path, table, options)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "options"), SLOW_CASES)
def test_more_tables_are_those_of_spark(
    spark: Any, tmp_path: Path, table: Table, options: dict[str, Any]
) -> None:
    check(spark, tmp_path, table, options)


@pytest.mark.medium
def test_distinct_count_is_the_estimate_of_spark(spark: Any) -> None:
    """Except where Spark corrects a bias: there, the count is exact."""
    from pyspark.sql import functions as F

    sizes = [0, 1, 50, 2_900, 30_000, 200_000]
    columns = [F.approx_count_distinct(F.when(F.col("id") < n, F.col("id")), 0.02) for n in sizes]
    expected = list(spark.range(200_000, numPartitions=1).agg(*columns).collect()[0])
    for size, estimate in zip(sizes, expected, strict=True):
        count = DistinctCount(is_exact=False)
        count.add(pa.array(range(size), pa.int64()))
        assert count.count == estimate
    exact = DistinctCount(is_exact=False)
    exact.add(pa.array(range(10_000), pa.int64()))
    assert exact.count == 10_000


def test_bad_lines_of_a_csv_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x,label\n1,2\n1,2,3\n" + "1,2\n" * 50)
    options = {"input": str(tmp_path / "in.csv"), "label": "label"}
    with pytest.raises(DataError, match=r"in\.csv: .*more or fewer fields"):
        prepare("csv", str(tmp_path / "out"), options, never, on_spark=False)
    assert not (tmp_path / "out").exists()


def test_text_without_a_number_cannot_be_numeric(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("age,job,label\n" + "".join(f"{n},cook,{n % 7}\n" for n in range(100)))
    options = {"input": str(tmp_path / "in.csv"), "label": "label", "numeric": ("job",)}
    with pytest.raises(DataError, match="column 'job' is text without a single number"):
        prepare("csv", str(tmp_path / "out"), options, never, on_spark=False)
    assert not (tmp_path / "out").exists()
