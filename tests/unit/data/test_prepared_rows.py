"""Rows for a model of a prepared table: prepared ones pass, original ones are refused."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_wine

from spark_hpo.data.encoders import BadColumn
from spark_hpo.data.prepared_rows import check_prepared
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.stored_ranges import stored_ranges
from spark_hpo.data.table import Table, open_table
from spark_hpo.trial import Split

AGE = Feature(name="age", kind=ColumnKind.NUMERIC, mean=38.6, deviation=13.6, source="age")
WORK = Feature(name="work", kind=ColumnKind.CATEGORICAL, vocabulary=("private", "state"), source="work")
FLAG = Feature(name="flag", kind=ColumnKind.CATEGORICAL, vocabulary=("false", "true"), source="flag")
WORDS = Feature(name="words", kind=ColumnKind.SEQUENCE, shape=(3,), vocabulary=("a", "b"), source="words")
CHECK_AGE = partial(check_prepared, feature=AGE, span=(-1.6, 3.8))


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, pd.DataFrame]:
    """178 real wines, standardised as `prepare csv` does it, and the original rows."""
    folder, found = tmp_path_factory.mktemp("wine"), load_wine(as_frame=True)
    original = found.data
    mean, deviation = original.mean(), original.std(ddof=0)
    prepared = ((original - mean) / deviation).astype("float32").assign(kind=found.target)
    features = tuple(
        Feature(name=name, kind=ColumnKind.NUMERIC, mean=mean[name], deviation=deviation[name], source=name)
        for name in original
    )
    schema = TableSchema(features=features, label=Label(name="kind", classes=("0", "1", "2")))
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    for i, split in enumerate(Split):
        (folder / split).mkdir()
        rows = pa.Table.from_pandas(prepared.iloc[i::3], preserve_index=False)
        pq.write_table(rows, folder / split / "part-0.parquet", row_group_size=10)
    return open_table(str(folder)), original


def check_row(table: Table, row: pd.Series) -> None:
    ranges = stored_ranges(table)
    for feature in table.schema.features:
        check_prepared(pa.array([row[feature.name]]), feature, ranges[feature.name])


def test_stored_ranges_cover_every_split(wine: tuple[Table, pd.DataFrame]) -> None:
    table, original = wine
    scaled = (original - original.mean()) / original.std(ddof=0)
    for name, (low, high) in stored_ranges(table).items():
        assert (low, high) == pytest.approx((scaled[name].min(), scaled[name].max()))


def test_check_prepared_refuses_each_original_wine(wine: tuple[Table, pd.DataFrame]) -> None:
    table, original = wine
    for _, row in original.iterrows():
        with pytest.raises(BadColumn, match="is not a standardised number"):
            check_row(table, row)


def test_check_prepared_passes_the_prepared_wines(wine: tuple[Table, pd.DataFrame]) -> None:
    table, _ = wine
    for split in Split:
        for _, row in pq.read_table(f"{table.url}/{split}").to_pandas().iterrows():
            check_row(table, row)


@pytest.mark.parametrize("value", [-5.0, 9.0, 1e9, None])
def test_check_prepared_passes_numbers_that_the_original_column_never_had(value: float | None) -> None:
    CHECK_AGE(pa.array([0.5, value]))


def test_check_prepared_names_the_first_original_number_and_its_encoding() -> None:
    with pytest.raises(BadColumn, match=r"^39 is not .*\(value - 38\.6\) / 13\.6"):
        CHECK_AGE(pa.array([0, 39, 40]))


def test_check_prepared_needs_the_range_for_numbers() -> None:
    check_prepared(pa.array([39.0]), AGE, None)


def test_check_prepared_passes_a_constant_column() -> None:
    check_prepared(pa.array([38.6]), AGE, (0.0, 0.0))


@pytest.mark.parametrize("values", [["39"], [pd.Timestamp("2026-01-01")], [b"39"]])
def test_check_prepared_refuses_other_types_than_numbers(values: list[Any]) -> None:
    with pytest.raises(BadColumn, match="is not a standardised number"):
        check_prepared(pa.array(values), AGE, None)


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (WORK, ["private"]),
        (WORK, ["1"]),
        (WORK, [1, 3]),
        (WORK, [-1]),
        (WORK, [1.5]),
        (FLAG, [True]),
        (WORDS, [[1], ["a", "b"]][1:]),
        (WORDS, [[1, 2], [3]]),
    ],
)
def test_check_prepared_refuses_what_is_not_a_code(feature: Feature, values: list[Any]) -> None:
    with pytest.raises(BadColumn, match="is not a code from 0 to 2"):
        check_prepared(pa.array(values), feature, None)


@pytest.mark.parametrize(
    ("feature", "values"),
    [(WORK, [0, 1, 2]), (WORK, [1.0, np.nan]), (FLAG, [1]), (WORDS, [[1, 2], [], [0]])],
)
def test_check_prepared_passes_codes(feature: Feature, values: list[Any]) -> None:
    check_prepared(pa.Array.from_pandas(values), feature, None)
