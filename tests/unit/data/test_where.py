"""Conditions mean what they mean in SQL, whatever decides them: statistics, counting, or reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.data.filter.condition import select_rows
from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.plan import pruning
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, NullRule, Source, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

TYPES = {
    "i": pa.int64(),
    "f": pa.float64(),
    "s": pa.string(),
    "b": pa.bool_(),
    "d": pa.date32(),
    "ts": pa.timestamp("us"),
    "tz": pa.timestamp("us", tz="UTC"),
    "dec": pa.decimal128(10, 2),
    "c": pa.dictionary(pa.int32(), pa.string()),
}
ROWS: dict[str, list[Any]] = {
    "i": [1, 2, None, 4, 5],
    "f": [1.0, float("nan"), None, 4.5, 5.0],
    "s": ["DE", "FR", None, "DE", "it's"],
    "b": [True, False, None, True, False],
    "d": [date(2026, 1, day) for day in (1, 2, 3, 4)] + [None],
    "ts": [datetime(2026, 1, day, 12) for day in (1, 2, 3, 4)] + [None],
    "tz": [datetime(2026, 1, day, 12, tzinfo=UTC) for day in (1, 2, 3, 4)] + [None],
    "dec": [Decimal("1.50"), Decimal("2.00"), None, Decimal("4.25"), Decimal("5.00")],
    "c": ["DE", "FR", None, "DE", "IT"],
}
TABLE = pa.table({name: pa.array(values, TYPES[name]) for name, values in ROWS.items()})


def matching(text: str, table: pa.Table = TABLE) -> list[int]:
    types = {column.name: column.type for column in table.schema}
    numbered = table.append_column("row", pa.array(range(len(table))))
    condition = parse_where(text, None, types)
    return list(numbered.filter(condition.expression()).column("row").to_pylist())


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("i >= 4", [3, 4]),
        ("4 <= i", [3, 4]),
        ("i > 1.5", [1, 3, 4]),
        ("i <> 4", [0, 1, 4]),
        ("i in (1, 5)", [0, 4]),
        ("i not in (1, 5)", [1, 3]),
        ("i between 2 and 4", [1, 3]),
        ("not i between 2 and 4", [0, 4]),
        ("i is null", [2]),
        ("i is not null and i != -1", [0, 1, 3, 4]),
        ("f > 1", [3, 4]),
        ("f != 1", [1, 3, 4]),
        ("s = 'DE' or s = 'it\\'s'", [0, 3, 4]),
        ("s != 'DE'", [1, 4]),
        ("b", [0, 3]),
        ("not b", [1, 4]),
        ("b = false", [1, 4]),
        ("d >= '2026-01-03'", [2, 3]),
        ("d < date '2026-01-02'", [0]),
        ("ts >= '2026-01-03'", [2, 3]),
        ("ts > '2026-01-03 12:00:00'", [3]),
        ("tz >= '2026-01-03T12:00:00+00:00'", [2, 3]),
        ("tz >= '2026-01-03T13:00:00+01:00'", [2, 3]),
        ("dec >= 2", [1, 3, 4]),
        ("dec = 4.25", [3]),
        ("dec > 1.999 and dec < 123456789012", [1, 3, 4]),
        ("ts >= '2026-01-03 11:59:59.999999'", [2, 3]),
        ("c = 'DE'", [0, 3]),
        ("(i = 1 or i is null) and (s is null or d = '2026-01-01')", [0, 2]),
    ],
)
def test_where_has_the_semantics_of_sql(text: str, rows: list[int]) -> None:
    assert matching(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i >", "where is 'i >': "),
        ("x = 1", "there is no column 'x'; the columns are i, f, s"),
        ("i = 'DE'", "column 'i' is int64 and cannot be compared with 'DE'"),
        ("s > 3", "column 's' is string and cannot be compared with 3"),
        ("d = 'yesterday'", "Invalid isoformat string: 'yesterday'"),
        ("i = f", "f must be a string"),
        ("lower(s) = 'de'", "must be a"),
        ("i + 1", "i \\+ 1 is not supported"),
        ("i in (select 1)", "is not supported"),
        ("s like 'D%'", "is not supported"),
        ("n.i = 1", "there is no column 'n.i'"),
        ("i = 1e999", "cannot convert float infinity"),
    ],
)
def test_where_refuses_an_invalid_condition(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_where(text, None, TYPES)


# Statistics ----------------------------------------------------------------------------------------------

Row = dict[str, Any]
Oracle = Callable[[Row], bool | None]


def compared(column: str, operator: Callable[[Any, Any], bool], value: Any) -> Oracle:
    return lambda row: None if row[column] is None else operator(row[column], value)


def both(left: Oracle, right: Oracle) -> Oracle:
    def oracle(row: Row) -> bool | None:
        pair = {left(row), right(row)}
        return False if False in pair else None if None in pair else True

    return oracle


def negated(inner: Oracle) -> Oracle:
    return lambda row: None if (value := inner(row)) is None else not value


def either(left: Oracle, right: Oracle) -> Oracle:
    return negated(both(negated(left), negated(right)))


# Where Arrow's own comparisons of integers with floats, and of decimals of two scales, would be wrong.
LITERALS = {
    "big": [-(2**63), -(2**63) - 1, 2**63 - 1, 2**63, -0.5, 16_777_216.5, 1e30, 7],
    "unsigned": [0, -1, 2**63, 2**64 - 1, 2**64, 0.5, 7],
    "price": [0, 1.25, 1.251, -7, 123456789],
}
SIGNS = {"=": eq, "<>": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["i", "f"]), st.sampled_from(list(SIGNS)), st.integers(-3, 3)).map(
        lambda t: (f"{t[0]} {t[1]} {t[2]}", compared(t[0], SIGNS[t[1]], t[2]))
    ),
    st.tuples(st.sampled_from(list(SIGNS)), st.sampled_from("abc")).map(
        lambda t: (f"s {t[0]} '{t[1]}'", compared("s", SIGNS[t[0]], t[1]))
    ),
    st.tuples(
        st.sampled_from([(name, value) for name, values in LITERALS.items() for value in values]),
        st.sampled_from(list(SIGNS)),
    ).map(
        lambda t: (
            f"{t[0][0]} {t[1]} {t[0][1]}",
            compared(t[0][0], SIGNS[t[1]], Decimal(str(t[0][1])) if t[0][0] == "price" else t[0][1]),
        )
    ),
    st.sampled_from(["i", "f", "s"]).map(lambda c: (f"{c} is null", lambda row: row[c] is None)),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} and {t[1][0]})", both(t[0][1], t[1][1]))),
        st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} or {t[1][0]})", either(t[0][1], t[1][1]))),
        inner.map(lambda t: (f"not ({t[0]})", negated(t[1]))),
    ),
    max_leaves=5,
)
VALUES = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-3, 3),
        "f": st.none() | st.sampled_from([-2.0, 0.0, 1.0, 2.5, float("nan")]),
        "s": st.none() | st.sampled_from("abc"),
        "big": st.none() | st.sampled_from([-(2**63), 2**63 - 1, 2**60, 16_777_216, 16_777_217, 7]),
        "unsigned": st.none() | st.sampled_from([0, 7, 2**63, 2**64 - 1]),
        "price": st.none() | st.sampled_from([Decimal("1.25"), Decimal("1.26"), Decimal("-7.00")]),
    }
)
SCHEMA = TableSchema(
    features=(Feature(name="row", kind=ColumnKind.NUMERIC),),
    label=Label(name="row"),
    encoding=Encoding.RAW,
)


@given(
    condition=CONDITIONS,
    rows=st.lists(VALUES, min_size=1, max_size=12),
    group_rows=st.integers(1, 5),
    statistics=st.booleans(),
)
def test_where_counts_and_reads_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    condition: tuple[str, Oracle],
    rows: list[Row],
    group_rows: int,
    statistics: bool,
) -> None:
    text, oracle = condition
    folder = tmp_path_factory.mktemp("where")
    kinds = {"i": pa.int64(), "f": pa.float64(), "s": pa.string(), "big": pa.int64()}
    kinds |= {"unsigned": pa.uint64(), "price": pa.decimal128(6, 2)}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    table = pa.table({**columns, "row": np.arange(len(rows), dtype="float32")})
    pq.write_table(table, folder / "a.parquet", row_group_size=group_rows, write_statistics=statistics)
    wanted = [i for i, row in enumerate(rows) if oracle(row) is True]
    if not wanted:
        with pytest.raises(DataError, match="no rows that match"):
            read_manifest(str(folder), SCHEMA, where=text)
        return
    manifest = read_manifest(str(folder), SCHEMA, where=text)
    assert manifest.rows == len(wanted)
    [shard] = plan_shards(manifest, 1, None)
    pieces = open_reader("arrow", manifest, SCHEMA).read(shard.segments)
    assert [int(i) for piece in pieces for i in piece["row"]] == wanted


def test_statistics_spare_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the one row group that the bounds leave open is looked into."""
    days = [date(2026, 1, 1 + i // 10) for i in range(100)]
    table = pa.table({"day": days, "row": np.arange(100, dtype="float32")})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=16)
    counted: list[int] = []
    count = pruning._by_counting
    monkeypatch.setattr(
        pruning,
        "_by_counting",
        lambda fs, candidate, decided: counted.append(candidate.index) or count(fs, candidate, decided),
    )
    manifest = read_manifest(str(tmp_path), SCHEMA, where="day >= '2026-01-06'")
    assert manifest.rows == 50
    assert counted == [3]
    assert [(g.index, g.rows, g.stored_rows) for g in manifest.row_groups] == [
        (3, 14, 16),
        (4, 16, 16),
        (5, 16, 16),
        (6, 4, 4),
    ]


def test_where_reads_no_pruned_row_group(tmp_path: Path) -> None:
    table = pa.table({"i": np.arange(100), "row": np.arange(100, dtype="float32")})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=50, compression="none", use_dictionary=False)
    end = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[4:end] = bytes(end - 4)  # the whole first row group
    path.write_bytes(damaged)
    manifest = read_manifest(str(tmp_path), SCHEMA, where="i >= 60")
    [shard] = plan_shards(manifest, 1, None)
    for reader in ("arrow", "petastorm"):
        if reader == "petastorm":
            pytest.importorskip("petastorm")
        pieces = open_reader(reader, manifest, SCHEMA).read(shard.segments)
        assert [int(i) for piece in pieces for i in piece["row"]] == list(range(60, 100))


# A prepared table, in the original values ---------------------------------------------------------------


def prepared(folder: Path) -> tuple[Manifest, TableSchema]:
    """ages 20, 30, (missing), 50; countries DE, FR, (missing), FR."""
    schema = TableSchema(
        features=(
            Feature(name="age", kind=ColumnKind.NUMERIC, mean=30.0, deviation=10.0, source="age"),
            Feature(name="age_missing", kind=ColumnKind.NUMERIC, source="age"),
            Feature(name="land", kind=ColumnKind.CATEGORICAL, vocabulary=("FR", "DE", ""), source="land"),
        ),
        label=Label(name="rich", classes=("no", "yes")),
    )
    table = pa.table(
        {
            "age": np.array([-1, 0, 0, 2], "float32"),
            "age_missing": np.array([0, 0, 1, 0], "float32"),
            "land": [2, 1, 3, 1],
            "rich": [0, 1, 0, 1],
        }
    )
    pq.write_table(table, folder / "a.parquet")
    return read_manifest(str(folder), schema), schema


@pytest.mark.parametrize(
    ("text", "ages"),
    [
        ("age >= 30", [0, 2]),
        ("age = 30", [0]),
        ("age is null", [0]),
        ("age < 100", [-1, 0, 2]),
        ("land = 'FR'", [0, 2]),
        ("land != 'FR'", [-1]),
        ("land is null", [0]),
        ("rich = 'yes' and land in ('DE', 'FR')", [0, 2]),
    ],
)
def test_where_compares_original_values_of_a_prepared_table(
    tmp_path: Path, text: str, ages: list[float]
) -> None:
    _, schema = prepared(tmp_path)
    manifest = read_manifest(str(tmp_path), schema, where=text)
    [shard] = plan_shards(manifest, 1, None)
    [piece] = open_reader("arrow", manifest, schema).read(shard.segments)
    assert piece["age"].tolist() == ages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("land = 'US'", "column 'land' has no code for 'US' in schema.json"),
        ("land < 'FR'", "column 'land' holds categories: use =, != or in"),
        ("rich > 'no'", "the label 'rich' holds classes"),
        ("age = 'old'", "column 'age' holds numbers"),
    ],
)
def test_where_reports_an_unknown_category_code(tmp_path: Path, text: str, message: str) -> None:
    _, schema = prepared(tmp_path)
    with pytest.raises(DataError, match=message):
        read_manifest(str(tmp_path), schema, where=text)


def test_nulls_that_are_filled_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"x": pa.array([1.0, None, None]), "y": [1.0, 2.0, 3.0]}), tmp_path / "a.parquet")
    feature = Feature(name="x", kind=ColumnKind.NUMERIC, mean=7.0, deviation=2.0, nulls=NullRule.FILL)
    schema = TableSchema(features=(feature,), label=Label(name="y"), encoding=Encoding.RAW)
    with caplog.at_level("INFO", logger="spark_hpo"):
        manifest = read_manifest(str(tmp_path), schema)
    assert "column 'x': filling 2 nulls" in caplog.text
    [shard] = plan_shards(manifest, 1, None)
    [piece] = open_reader("arrow", manifest, schema).read(shard.segments)
    assert piece["x"].tolist() == [-3.0, 0.0, 0.0]


def test_where_reads_a_name_with_a_dot_as_one_name() -> None:
    table = pa.table({"a.b": [1, 2, 3], "b": [2, 2, 2]})
    assert matching("a.b = 2", table) == matching("`a.b` = 2", table) == [1]


def test_nulls_that_the_filter_leaves_out_do_no_harm(tmp_path: Path) -> None:
    columns = {"x": [1.0, None, 3.0, 4.0], "l": [[1], [2], None, []], "y": [0.0, 1.0, None, 3.0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    features = (
        Feature(name="x", kind=ColumnKind.NUMERIC),
        Feature(name="l", kind=ColumnKind.SEQUENCE, shape=(1,)),
    )
    schema = TableSchema(features=features, label=Label(name="y"), encoding=Encoding.RAW)
    with pytest.raises(DataError, match=r'data\.nulls: \{x: fill\}\), or .*data\.where: "x is not null"'):
        read_manifest(str(tmp_path), schema)
    manifest = read_manifest(str(tmp_path), schema, where="x is not null and y is not null and l is not null")
    [shard] = plan_shards(manifest, 1, None)
    [piece] = open_reader("arrow", manifest, schema).read(shard.segments)
    assert piece["y"].tolist() == [0.0, 3.0]


def test_nulls_of_row_groups_that_are_not_read_do_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"x": [1.0, 2.0, None, 4.0], "y": [0.0, 1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    refusing = Feature(name="x", kind=ColumnKind.NUMERIC)
    schema = TableSchema(features=(refusing,), label=Label(name="y"), encoding=Encoding.RAW)
    assert read_manifest(str(tmp_path), schema, where="y < 2").rows == 2
    with pytest.raises(DataError, match="column 'x' has 1 nulls in row group 1"):
        read_manifest(str(tmp_path), schema, where="y >= 2")
    filling = TableSchema(
        features=(Feature(name="x", kind=ColumnKind.NUMERIC, nulls=NullRule.FILL),),
        label=Label(name="y"),
        encoding=Encoding.RAW,
    )
    with caplog.at_level("INFO", logger="spark_hpo"):
        read_manifest(str(tmp_path), filling, where="y > 2")
    assert "column 'x': filling at most 1 nulls" in caplog.text


def test_table_reads_the_key_of_a_split_once_for_all_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"id": np.arange(1000), "row": np.arange(1000, dtype="float32"), "y": ["a", "b"] * 500})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    call = "xxhash64(0, cast(id as bigint))"
    wheres = (
        f"{call} < 0",
        f"{call} >= 0 and {call} < 4611686018427387904",
        f"{call} >= 4611686018427387904",
    )
    schema = TableSchema(
        features=(Feature(name="row", kind=ColumnKind.NUMERIC),),
        label=Label(name="y", classes=("a", "b")),
        encoding=Encoding.RAW,
        sources={
            split: Source(url=str(tmp_path / "a.parquet"), where=where)
            for split, where in zip(Split, wheres, strict=True)
        },
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "schema.json").write_text(json.dumps(schema.to_json()))
    read: list[int] = []
    count = pruning._by_counting
    monkeypatch.setattr(
        pruning,
        "_by_counting",
        lambda fs, candidate, decided: read.append(candidate.index) or count(fs, candidate, decided),
    )
    opened = open_table(str(tmp_path / "out"))
    assert sorted(read) == list(range(10))
    types = {column.name: column.type for column in table.schema}
    for split, where in zip(Split, wheres, strict=True):
        assert opened.manifest(split).where == f"({where})"
        assert opened.manifest(split).rows == len(select_rows(table, parse_where(where, None, types)))
    assert opened.rows == 1000
