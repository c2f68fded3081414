"""Rows of a table through the model give what `prepare` wrote for them, to the last bit, for each type."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.data.encode import encode_rows
from spark_hpo.data.table import first_rows, open_table
from spark_hpo.trial import Split

pytestmark = pytest.mark.spark
ROWS = 400


def values_of_texts(rng: random.Random) -> dict[str, list[str]]:
    """Columns of a CSV, by the form that `prepare` finds in them."""

    def maybe(text: str, share: float = 0.1) -> str:
        return rng.choice(["", "NA", "?", " null "]) if rng.random() < share else text

    def moment() -> str:
        at = datetime(1950, 1, 1) + timedelta(seconds=rng.randrange(4_000_000_000))
        forms = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]
        ends = ["", "", rng.choice([".5", ".123456", ".1234567", "Z", ".25+02:00", "-0330"]), ""]
        pick = rng.randrange(4)
        return at.strftime(forms[pick]) + ends[pick]

    def whole() -> str:
        return str(rng.randrange(-1000, 10**6))

    numbers = [lambda: f"{rng.gauss(0, 1e3):.17g}", lambda: f"{rng.random():.3e}", whole, lambda: ".5"]
    makers = {
        "number": lambda: maybe(f" {rng.choice(['+', '', ''])}{abs(float(rng.choice(numbers)()))} "),
        "mixed": lambda: rng.choice(["n. a. today", whole(), whole(), *(whole() for _ in range(20))]),
        "signs": lambda: maybe(rng.choice([f"${rng.randrange(10**6):,}.25", f"{rng.randrange(99)} %", "+7"])),
        "comma": lambda: maybe(f"{rng.randrange(1000)},{rng.randrange(10**6)} €"),
        "iso": lambda: maybe(moment()),
        "german": lambda: maybe(
            f"{rng.randrange(13, 29)}.{rng.randrange(1, 13)}.{rng.randrange(1900, 2100)}"
        ),
        "us": lambda: f"{rng.randrange(1, 13)}/{rng.randrange(1, 29)}/{rng.randrange(1900, 2100)}",
        "slashed": lambda: f"{rng.randrange(13, 29)}/{rng.randrange(1, 13)}/{rng.randrange(1900, 2100)}",
        "city": lambda: maybe(rng.choice(["Rome", " Oslo\u00a0", "São Paulo", "a,b", f"rare {whole()}"])),
        "flag": lambda: rng.choice(["True", "False"]),
    }
    columns = {name: [make() for _ in range(ROWS)] for name, make in makers.items()}
    return columns | {"label": [rng.choice(["yes", "no"]) for _ in range(ROWS)]}


def parquet(rng: random.Random) -> pa.Table:
    def column(make: Any, kind: pa.DataType, nulls: float = 0.1) -> pa.Array:
        return pa.array([None if rng.random() < nulls else make() for _ in range(ROWS)], kind)

    def moment() -> datetime:
        return datetime(1950, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(4 * 10**15))

    def words() -> list[str]:
        return [rng.choice(["red ", "blue", "NULL", "", "green"]) for _ in range(rng.randrange(4))]

    def clicks() -> list[int]:
        return [rng.randrange(2**40) for _ in range(rng.randrange(5))]

    cent = Decimal("0.01")
    return pa.table(
        {
            "whole": column(lambda: rng.randrange(2**60), pa.int64(), 0),
            "small": column(lambda: rng.randrange(-100, 100), pa.int8()),
            "half": column(lambda: rng.gauss(0, 3), pa.float32()),
            "double": column(lambda: rng.choice([rng.gauss(5, 1e6), float("nan")]), pa.float64()),
            "price": column(lambda: rng.randrange(10**17) * cent, pa.decimal128(19, 2)),
            "digits": column(lambda: f" {rng.gauss(0, 1)!r}", pa.string()),
            "day": column(lambda: date(1960, 1, 1) + timedelta(days=rng.randrange(30_000)), pa.date32()),
            "moment": column(moment, pa.timestamp("us", "UTC")),
            "naive": column(lambda: moment().replace(tzinfo=None), pa.timestamp("us")),
            "on": column(lambda: rng.random() < 0.3, pa.bool_()),
            "color": column(lambda: rng.choice(["red", "blue ", "NULL", f"x{rng.random()}"]), pa.string()),
            "image": column(lambda: [rng.gauss(0, 1) for _ in range(4)], pa.list_(pa.float64()), 0),
            "clicks": column(clicks, pa.list_(pa.int64())),
            "cents": column(lambda: [rng.randrange(10**9) * cent], pa.list_(pa.decimal128(12, 2)), 0),
            "words": column(words, pa.list_(pa.string())),
            "blob": column(lambda: rng.randbytes(4), pa.binary(), 0),
            "label": column(lambda: rng.randrange(3), pa.int32(), 0),
        }
    )  # fmt: skip


def decode(data: bytes) -> np.ndarray[Any, Any]:
    """A user's transform."""
    return np.frombuffer(data, np.uint8) / 255.0


def by_key(table: Path, columns: dict[str, np.ndarray[Any, Any]]) -> list[bytes]:
    """The rows, each as bytes, in an order that does not depend on the table's."""
    arrays = [np.ascontiguousarray(columns[name]) for name in sorted(columns)]
    return sorted(b"|".join(array[i].tobytes() for array in arrays) for i in range(len(arrays[0])))


def check_equal(output: Path, rows: pd.DataFrame, transforms: dict[str, str] | None = None) -> None:
    """Compare the encoded raw rows with all rows that `prepare` wrote."""
    from spark_hpo.data.decode import Decoder
    from spark_hpo.data.plan.shards import Segment

    table = open_table(str(output), transforms=transforms)
    features: list[dict[str, Any]] = []
    for split in Split:
        manifest = table.manifest(split)
        decoder = Decoder(manifest, table.schema)
        for group in manifest.row_groups:
            content = pq.ParquetFile(manifest.files[group.file].path).read_row_group(group.index)
            segment = Segment(group.file, group.index, 0, group.rows)
            features.append(decoder.decode(content, segment))
    written = {
        name: np.concatenate([part[name] for part in features])
        for name in features[0]
        if name != table.schema.label.name
    }
    encoded = dict(encode_rows(rows, table.schema, {}))
    assert encoded.keys() == written.keys()
    for name in written:
        assert encoded[name].dtype == written[name].dtype, name
        assert by_key(output, {name: encoded[name]}) == by_key(output, {name: written[name]}), name
    assert by_key(output, encoded) == by_key(output, written)


def test_rows_of_a_csv_are_encoded_as_prepared(spark: Any, tmp_path: Path) -> None:
    columns = values_of_texts(random.Random(1))
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False, sep=";")
    prepare.csv(
        spark,
        str(tmp_path / "out"),
        input=str(tmp_path / "t.csv"),
        label="label",
        clean=True,
        max_vocabulary=4,
        null_values=[*prepare_defaults(), "?"],
        keep=["city"],
    )
    forms = {c.name: str(c.form) for c in open_table(str(tmp_path / "out")).schema.original if c.form}
    assert forms == {
        "number": "number",
        "mixed": "number_or_word",
        "signs": "signs",
        "comma": "comma",
        "iso": "iso",
        "german": "day_month_year",
        "us": "month_day_year",
        "slashed": "day_slash_month",
    }
    check_equal(tmp_path / "out", pd.DataFrame(columns).drop(columns="label"))
    # As pandas reads it: numbers and booleans instead of texts, NaN for missing values.
    check_equal(tmp_path / "out", pd.read_csv(tmp_path / "t.csv", sep=";").drop(columns="label"))
    example = first_rows(open_table(str(tmp_path / "out")), Split.TEST, 5)
    assert example is not None
    assert list(example) == list(columns)[:-1]


def test_rows_of_parquet_are_encoded_as_prepared(spark: Any, tmp_path: Path) -> None:
    content = parquet(random.Random(2))
    (tmp_path / "in").mkdir()
    pq.write_table(content, tmp_path / "in" / "a.parquet")
    options: dict[str, Any] = {"input": str(tmp_path / "in"), "label": "label", "max_vocabulary": 3}
    prepare.csv(spark, str(tmp_path / "out"), **options)
    transforms = {"blob": f"{__name__}:decode"}
    rows = content.drop(["label"]).to_pandas()
    check_equal(tmp_path / "out", rows, transforms)
    check_equal(tmp_path / "out", rows.astype({"moment": "datetime64[us, UTC]"}), transforms)
    table = open_table(str(tmp_path / "out"), transforms=transforms)
    example = first_rows(table, Split.TEST, 5)
    assert example is not None
    assert len(encode_rows(example, table.schema, {})["whole"]) == 5
    optional = {c.name for c in table.schema.original if c.is_optional}
    assert "half" in optional
    assert optional.isdisjoint({"whole", "image", "blob", "label"})
    assert json.loads((tmp_path / "out" / "schema.json").read_text())["null_values"]


def prepare_defaults() -> tuple[str, ...]:
    from spark_hpo.prepare.csv_request import DEFAULT_NULL_VALUES

    return DEFAULT_NULL_VALUES
