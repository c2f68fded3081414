"""Rows of the original table: encoded by the record in the schema, or refused with row, column and reason."""

from __future__ import annotations

import json
import random
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.decode import Decoder
from spark_hpo.data.encode import encode_rows
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.raw_rows import class_values, example_rows, inputs_of
from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    Feature,
    Label,
    NullRule,
    OriginalColumn,
    Source,
    TableSchema,
)
from spark_hpo.data.table import first_rows, open_table
from spark_hpo.data.text_forms import TextForm
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

DAY_S = 86_400.0


def schema_of(
    *columns: tuple[OriginalColumn, Feature], label: Label | None = None, **more: Any
) -> TableSchema:
    label = label or Label(name="y")
    original = [column for column, _ in columns]
    if label.name not in [column.name for column in original]:
        original.append(OriginalColumn(name=label.name, type="double"))
    return TableSchema(
        features=tuple(feature for _, feature in columns),
        label=label,
        original=tuple(original),
        **{"null_values": ("NA", "?"), **more},
    )


def number(
    kind: str, form: TextForm = TextForm.NONE, *, is_optional: bool = False
) -> tuple[OriginalColumn, Feature]:
    column = OriginalColumn(name="x", type=kind, form=form, is_optional=is_optional)
    return column, Feature(name="x", kind=ColumnKind.NUMERIC, source="x", mean=1.0, deviation=1.0)


def category(kind: str, *vocabulary: str) -> tuple[OriginalColumn, Feature]:
    column = OriginalColumn(name="x", type=kind, is_optional="" in vocabulary)
    return column, Feature(name="x", kind=ColumnKind.CATEGORICAL, source="x", vocabulary=vocabulary)


def encoded(column: tuple[OriginalColumn, Feature], *values: Any) -> list[Any]:
    rows = pd.DataFrame({"x": pd.Series(list(values), dtype=None)})
    return encode_rows(rows, schema_of(column), {})["x"].tolist()


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (TextForm.NUMBER, " 1.5e1\u00a0", 15.0),
        (TextForm.NUMBER, "+.5", 0.5),
        (TextForm.NUMBER, "?", 1.0),
        (TextForm.NUMBER_OR_WORD, "about five", 1.0),
        (TextForm.SIGNS, "$1,200.50", 1200.5),
        (TextForm.SIGNS, "-12 %", -12.0),
        (TextForm.COMMA, "1.200,50 €", 1200.5),
        (TextForm.ISO, "1970-01-02", DAY_S),
        (TextForm.ISO, "1970-1-2T01:00:00.5", DAY_S + 3600.5),
        (TextForm.ISO, "1970-01-02 01:00+01:00", DAY_S),
        (TextForm.ISO, "1970-01-02 01:00:00-0100", DAY_S + 7200),
        (TextForm.DAY_MONTH_YEAR, "2.1.1970", DAY_S),
        (TextForm.MONTH_DAY_YEAR, "1/2/1970", DAY_S),
        (TextForm.DAY_SLASH_MONTH, "02/01/1970", DAY_S),
    ],
)
def test_encode_rows_reads_text_by_its_form(form: TextForm, text: str, expected: float) -> None:
    assert encoded(number("string", form), text) == [np.float32(expected - 1.0)]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (TextForm.NUMBER, "five"),
        (TextForm.NUMBER, "0x10"),
        (TextForm.SIGNS, "1,20"),
        (TextForm.COMMA, "1,200.50"),
        (TextForm.ISO, "31.1.2024"),
        (TextForm.ISO, "2023-02-29"),
        (TextForm.ISO, "2024-01-31Z"),
        (TextForm.ISO, "2024-01-31 24:00"),
        (TextForm.DAY_MONTH_YEAR, "31.2.2024"),
        (TextForm.MONTH_DAY_YEAR, "31/1/2024"),
        (TextForm.DAY_SLASH_MONTH, "1/31/2024"),
    ],
)
def test_encode_rows_names_row_column_and_value_of_other_text(form: TextForm, text: str) -> None:
    good = {TextForm.ISO: "2024-01-31", TextForm.DAY_MONTH_YEAR: "1.1.2024"}.get(form, "1/1/2024")
    good = good if form.is_date else "1"
    with pytest.raises(DataError, match=rf"row 1, column 'x': {text!r}"):
        encoded(number("string", form), good, text)


@pytest.mark.parametrize(
    "given",
    [
        [pd.Timestamp("1970-01-02")],
        [pd.Timestamp("1970-01-02T01:00+01:00")],
        [datetime(1970, 1, 2)],
        [date(1970, 1, 2)],
        ["1970-01-02"],
        [np.datetime64("1970-01-02", "s")],
    ],
)
@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamp_ntz"])
def test_encode_rows_takes_dates_as_pandas_and_json_hold_them(kind: str, given: list[Any]) -> None:
    assert encoded(number(kind), *given) == [np.float32(DAY_S - 1)]


@pytest.mark.parametrize("given", [3, 3.0, np.int8(3), Decimal(3), "3", True + 2])
@pytest.mark.parametrize("kind", ["double", "float", "bigint", "decimal(10,2)"])
def test_encode_rows_takes_numbers_of_other_types(kind: str, given: Any) -> None:
    assert encoded(number(kind), given) == [2.0]


def test_encode_rows_takes_numbers_and_texts_in_one_column() -> None:
    assert encoded(number("double", TextForm.NUMBER), 3, " 4.5 ", "?", None) == [2.0, 3.5, 0.0, 0.0]


def test_encode_rows_rounds_to_the_type_of_the_original_column() -> None:
    mean = number("float")[1]
    column = (
        OriginalColumn(name="x", type="float"),
        Feature(name="x", kind=mean.kind, source="x", mean=0.0, deviation=1e-9),
    )
    assert encoded(column, 0.1) == [np.float32(np.float64(np.float32(0.1)) / 1e-9)]


def test_encode_rows_rounds_times_to_microseconds_as_spark_does() -> None:
    nanos = pd.Timestamp("2024-01-31T12:00:00.123456789")
    micros = (nanos.value // 1000) / 1e6
    column = (
        OriginalColumn(name="x", type="timestamp"),
        Feature(name="x", kind=ColumnKind.NUMERIC, source="x", mean=micros, deviation=1e-9),
    )
    assert encoded(column, nanos) == [0.0]


@pytest.mark.parametrize(
    ("kind", "vocabulary", "given", "code"),
    [
        ("string", ("a", "", "b"), " b ", 3),
        ("string", ("a", "", "b"), "NA", 2),
        ("string", ("a", "", "b"), None, 2),
        ("string", ("a", "b"), None, 0),
        ("string", ("a", "b"), "c", 0),
        ("string", ("7", "8"), 8.0, 2),
        ("boolean", ("true", "false"), False, 2),
        ("string", ("True", "False"), False, 2),
    ],
)
def test_encode_rows_looks_up_categories(
    kind: str, vocabulary: tuple[str, ...], given: object, code: int
) -> None:
    assert encoded(category(kind, *vocabulary), given) == [code]


def test_encode_rows_marks_missing_numbers_and_fills_columns_that_are_left_out() -> None:
    column, feature = number("double", is_optional=True)
    flag = Feature(name="x_missing", kind=ColumnKind.NUMERIC, source="x")
    schema = TableSchema(
        features=(feature, flag),
        label=Label(name="y"),
        original=(column, OriginalColumn(name="y", type="double")),
    )
    for rows in (pd.DataFrame({"x": [3.0, None]}), pd.DataFrame({"z": [1, 2]})):
        columns = encode_rows(rows, schema, {})
        assert columns["x"].tolist() == [2.0 if "x" in rows else 0.0, 0.0]
        assert columns["x_missing"].tolist() == [0.0 if "x" in rows else 1.0, 1.0]


def test_encode_rows_names_a_column_that_is_required() -> None:
    with pytest.raises(DataError, match="no column x"):
        encode_rows(pd.DataFrame({"z": [1]}), schema_of(number("double")), {})


def test_encode_rows_names_the_label_of_the_row_in_an_index() -> None:
    rows = pd.DataFrame({"x": ["1", "much"]}, index=["first", "second"])
    with pytest.raises(DataError, match="row second, column 'x': 'much' is not a number"):
        encode_rows(rows, schema_of(number("string", TextForm.NUMBER)), {})


@pytest.mark.parametrize("given", [float("inf"), b"1", [1.0], datetime(2024, 1, 1)])
def test_encode_rows_refuses_what_is_not_a_number(given: object) -> None:
    with pytest.raises(DataError, match="row 0, column 'x'"):
        encoded(number("double"), given)


def test_encode_rows_refuses_a_number_for_a_date() -> None:
    with pytest.raises(DataError, match="row 0, column 'x': 5 is not a date"):
        encoded(number("date"), 5)


def test_encode_rows_pads_lists_and_names_the_row_of_one_that_is_too_long() -> None:
    words = (
        OriginalColumn(name="x", type="array<string>", is_optional=True),
        Feature(name="x", kind=ColumnKind.SEQUENCE, source="x", shape=(3,), vocabulary=("a", "", "b")),
    )
    rows = pd.DataFrame({"x": [[" b", "NA", "c"], None, []]})
    columns = encode_rows(rows, schema_of(words), {})
    assert columns["x"].tolist() == [[3, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert columns["x.length"].tolist() == [3, 0, 0]
    with pytest.raises(DataError, match="row 1, column 'x'"):
        encode_rows(pd.DataFrame({"x": [["a"], ["a"] * 4]}), schema_of(words), {})


def test_encode_rows_of_a_table_in_place_reads_dates_in_json() -> None:
    column, feature = number("timestamp")
    schema = schema_of(
        (column, Feature(name="x", kind=feature.kind, source="x", nulls=NullRule.FILL)),
        encoding=Encoding.RAW,
    )
    assert encode_rows(pd.DataFrame({"x": ["1970-01-02", None]}), schema, {})["x"].tolist() == [DAY_S, 0.0]


def test_encode_rows_gives_what_readers_give_for_each_type_of_a_table_in_place(tmp_path: Path) -> None:
    rng, count = random.Random(1), 60

    def column(kind: pa.DataType, make: Any, nulls: float = 0.2) -> pa.Array:
        return pa.array([None if rng.random() < nulls else make() for _ in range(count)], kind)

    def nanos() -> int:
        return rng.randrange(4 * 10**18)

    columns = {
        "double": ("double", column(pa.float64(), lambda: rng.gauss(0, 1e6))),
        "float": ("float", column(pa.float32(), rng.random)),
        "long": ("bigint", column(pa.int64(), lambda: rng.randrange(2**50), 0)),
        "price": ("decimal(10,2)", column(pa.decimal128(10, 2), lambda: Decimal(rng.randrange(10**9)) / 100)),
        "digits": ("string", column(pa.string(), lambda: f" {rng.random()!r}")),
        "day": ("date", column(pa.date32(), lambda: date(1970 + rng.randrange(50), 2, 3))),
        "micros": ("timestamp", column(pa.timestamp("us", "UTC"), lambda: nanos() // 1000)),
        "nanos": ("timestamp", column(pa.timestamp("ns"), nanos)),
        "flag": ("boolean", column(pa.bool_(), lambda: rng.random() < 0.5)),
        "city": ("string", column(pa.string(), lambda: rng.choice(["Rome", " Oslo", "NULL", "Lima"]))),
        "zip": ("bigint", column(pa.int64(), lambda: rng.randrange(3))),
        "image": ("array<double>", column(pa.list_(pa.float64()), lambda: [rng.random(), 1.0], 0)),
        "words": ("array<string>", column(pa.list_(pa.string()), lambda: ["Rome ", "x"][: rng.randrange(3)])),
        "blob": ("binary", column(pa.binary(), lambda: rng.randbytes(2), 0)),
    }
    kinds = dict.fromkeys(("flag", "city", "zip"), ColumnKind.CATEGORICAL)
    kinds |= {"image": ColumnKind.ARRAY, "words": ColumnKind.SEQUENCE, "blob": ColumnKind.BINARY}
    shapes = {"image": (2,), "words": (2,)}
    vocabularies = {"flag": ("true", "false"), "zip": ("1", "0"), "city": ("Rome", ""), "words": ("Rome",)}
    (tmp_path / "in").mkdir()
    label = pa.array([float(i) for i in range(count)])
    content = pa.table({**{name: values for name, (_, values) in columns.items()}, "y": label})
    pq.write_table(content, tmp_path / "in" / "a.parquet", row_group_size=20)
    schema = TableSchema(
        features=tuple(
            Feature(
                name=name,
                kind=kinds.get(name, ColumnKind.NUMERIC),
                source=name,
                mean=0.1,
                deviation=3.0,
                shape=shapes.get(name, ()),
                vocabulary=vocabularies.get(name, ()),
                nulls=NullRule.FILL,
            )
            for name in columns
        ),
        label=Label(name="y"),
        encoding=Encoding.RAW,
        sources={split: Source(url=str(tmp_path / "in")) for split in Split},
        original=(
            *(OriginalColumn(name=name, type=kind, is_optional=True) for name, (kind, _) in columns.items()),
            OriginalColumn(name="y", type="double"),
        ),
    )
    (tmp_path / "schema.json").write_text(json.dumps(schema.to_json()))
    table = open_table(str(tmp_path), transforms={"blob": f"{__name__}:decode"})
    manifest = table.manifest(Split.TRAIN)
    decoder = Decoder(manifest, table.schema)
    stored = pq.ParquetFile(tmp_path / "in" / "a.parquet")
    parts = [decoder.decode(stored.read_row_group(i), Segment(0, i, 0, 20)) for i in range(3)]
    encoded = encode_rows(content.to_pandas(), table.schema, {})
    assert {*encoded, "y"} == {*parts[0]}
    for name, values in encoded.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]), name)
        assert values.dtype == parts[0][name].dtype
    example = first_rows(table, Split.TEST, 5)
    assert example is not None
    assert len(encode_rows(example, table.schema, {})["nanos"]) == 5


def decode(data: bytes) -> np.ndarray[Any, Any]:
    """A user's transform."""
    return np.frombuffer(data, np.uint8) / 255.0


def test_inputs_of_have_original_types_without_label_and_dropped_columns() -> None:
    pairs = {
        "whole": ("bigint", TextForm.NONE, "long"),
        "price": ("decimal(10,2)", TextForm.NONE, "number"),
        "spelled": ("string", TextForm.SIGNS, "string"),
        "mixed": ("string", TextForm.NUMBER_OR_WORD, "any"),
        "day": ("date", TextForm.NONE, "datetime"),
    }
    season = Feature(name="season", kind=ColumnKind.CATEGORICAL, source="season", vocabulary=("1", "2", ""))
    original = [OriginalColumn(name=n, type=kind, form=form) for n, (kind, form, _) in pairs.items()]
    original += [
        OriginalColumn(name="season", type="string"),
        OriginalColumn(name="y", type="bigint"),
        OriginalColumn(name="row", type="bigint", dropped="numbers the rows"),
    ]
    schema = TableSchema(
        features=(*(Feature(name=n, kind=ColumnKind.NUMERIC, source=n) for n in pairs), season),
        label=Label(name="y", classes=("0", "1")),
        original=tuple(original),
    )
    types = {i.name: i.type for i in inputs_of(schema)}
    assert types == {"season": "any", **{n: kind for n, (*_, kind) in pairs.items()}}
    assert TableSchema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize(
    ("kind", "classes", "values"),
    [
        ("string", ("no", "yes"), ["no", "yes"]),
        ("string", ("0", "1"), ["0", "1"]),
        ("int", ("0", "1"), [0, 1]),
        ("double", ("0", "2.5"), [0.0, 2.5]),
        ("boolean", ("false", "true"), [False, True]),
    ],
)
def test_class_values_have_the_type_of_the_label(
    kind: str, classes: tuple[str, ...], values: list[Any]
) -> None:
    label = Label(name="y", classes=classes)
    schema = TableSchema(features=(), label=label, original=(OriginalColumn(name="y", type=kind),))
    assert class_values(schema) == values
    assert [type(value) for value in class_values(schema)] == [type(value) for value in values]


def test_example_rows_have_the_types_of_the_inputs() -> None:
    column = OriginalColumn(name="x", type="double", form=TextForm.NUMBER, is_optional=True)
    example = example_rows([{"x": " 7 "}, {"x": "NA"}], schema_of((column, number("double")[1])))
    assert example["x"].tolist()[0] == 7.0
    assert np.isnan(example["x"][1])


def test_to_json_leaves_out_what_older_tables_lack() -> None:
    schema = TableSchema(features=(), label=Label(name="y"))
    assert "original" not in schema.to_json()
    assert not TableSchema.from_json(schema.to_json()).takes_raw_rows


def test_lists_of_integers_with_a_vocabulary_are_looked_up() -> None:
    column = OriginalColumn(name="x", type="array<bigint>", is_optional=True)
    feature = Feature(name="x", kind=ColumnKind.SEQUENCE, source="x", shape=(3,), vocabulary=("7", "50"))
    assert encoded((column, feature), [50, 7], [8], None) == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]
    rows = pd.DataFrame({"x": [None]})
    assert encode_rows(rows, schema_of((column, feature)), {})["x.length"].tolist() == [0]


@pytest.mark.parametrize("encoding", list(Encoding))
def test_texts_are_trimmed_and_cut(encoding: Encoding) -> None:
    column = OriginalColumn(name="x", type="string", is_optional=True)
    feature = Feature(name="x", kind=ColumnKind.TEXT, source="x", shape=(4,), nulls=NullRule.FILL)
    rows = pd.DataFrame({"x": [" long text ", "ä", None]})
    columns = encode_rows(rows, schema_of((column, feature), encoding=encoding), {})
    assert columns["x"].tolist() == [[*b"long"], [*"ä".encode(), 0, 0], [0, 0, 0, 0]]
    assert columns["x.length"].tolist() == [4, 2, 0]
