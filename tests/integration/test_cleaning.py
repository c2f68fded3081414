"""Cleaning of untidy CSV files on a real Spark: conversions, and columns that are dropped."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import cli, prepare
from spark_hpo.data.schema import ColumnKind, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.errors import DataError
from spark_hpo.prepare.output import Prepared
from spark_hpo.trial import Split

pytestmark = pytest.mark.spark

DAYS = [date(2020, 1, 1) + timedelta(days=7 * i % 600) for i in range(178)]


@pytest.fixture(scope="module")
def wines() -> Any:
    """Return the 178 wines of scikit-learn."""
    from sklearn.datasets import load_wine

    return load_wine(as_frame=True).frame


@pytest.fixture(scope="module")
def export(spark: Any, wines: Any, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Write them as a German Excel does: semicolons, decimal commas, windows-1252, an index."""
    folder = tmp_path_factory.mktemp("export")
    names = ["alcohol", "hue", "proline", "magnesium"]
    grapes = ["Barolo", "Grünling", "Barbera"]
    header = [
        "",
        "bottle",
        *names,
        "tasted",
        "code",
        "cellar",
        "price",
        "share",
        "note",
        "empty",
        "wine_id",
        "grape",
    ]
    lines = [";".join(header)]
    for i, row in enumerate(wines.itertuples()):
        target = int(row.target)
        values = [
            *(str(i), f"W-{i:04d}"),
            *("NA" if i % 30 == 5 else f"{getattr(row, name):.2f}".replace(".", ",") for name in names),
            DAYS[i].strftime("%d.%m.%Y"),
            "GHB"[target],
            "Keller 1",
            f"{1 + i % 7}.{100 + i},50 €",
            f"{i % 40} %",
            f'"a ""fine"" wine,\nthe {i}th"',
            "",
            str(7_000_000 + i * 37 % 1009),
            "" if i % 60 == 7 else grapes[target],
        ]
        lines.append(";".join(values))
    (folder / "wines.csv").write_bytes("\r\n".join(lines).encode("windows-1252"))
    out = str(folder / "out")
    return prepare.csv(spark, out, input=str(folder / "wines.csv"), label="grape", clean=True)


def schema_of(prepared: Prepared) -> TableSchema:
    return TableSchema.from_json(json.loads((Path(prepared.output) / "schema.json").read_text()))


def remark_on(prepared: Prepared, column: str) -> str:
    [remark] = [remark for remark in prepared.remarks if f"column {column!r}" in remark]
    return remark


def test_csv_numbers_and_dates_become_numbers_in_any_notation(export: Prepared, wines: Any) -> None:
    features = {f.name: f for f in schema_of(export).features if not f.name.endswith("_missing")}
    assert list(features) == ["alcohol", "hue", "proline", "magnesium", "tasted", "price", "share"]
    assert {f.kind for f in features.values()} == {ColumnKind.NUMERIC}
    table = pq.read_table(Path(export.output) / "train")
    proline, tasted, price = (features[name] for name in ("proline", "tasted", "price"))
    written = np.asarray(table["proline"]) * proline.deviation + proline.mean
    assert set(np.round(written[np.asarray(table["proline_missing"]) == 0])) <= set(wines.proline)
    seconds = np.asarray(table["tasted"]) * tasted.deviation + tasted.mean
    known = {datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp() for d in DAYS}
    assert all(min(abs(s - k) for k in known) < 3600 for s in seconds)
    amounts = np.asarray(table["price"]) * price.deviation + price.mean
    assert 1_100 < amounts.min() < amounts.max() < 8_000
    assert any("a decimal comma: alcohol, hue, proline, magnesium, price" in r for r in export.remarks)
    assert any("dates, day.month.year: tasted" in r for r in export.remarks)


def test_csv_columns_without_information_are_dropped_with_a_message(export: Prepared) -> None:
    assert "numbers the rows, from 0 to 177" in remark_on(export, "_c0")
    assert (
        "different values in 178 rows, as ids and free text have (to prevent this: --keep bottle)"
        in remark_on(export, "bottle")
    )
    assert "as ids and free text have" in remark_on(export, "note")
    assert "is 'Keller 1' in every row" in remark_on(export, "cellar")
    assert "is empty" in remark_on(export, "empty")
    assert "is an id: an integer that differs in every row" in remark_on(export, "wine_id")


def test_csv_columns_that_reveal_the_label_are_dropped(export: Prepared) -> None:
    assert "is an alias of the label 'grape'" in remark_on(export, "code")


def test_csv_rows_without_a_label_are_dropped(export: Prepared) -> None:
    label = schema_of(export).label
    assert label.classes == ("Barbera", "Barolo", "Grünling")
    assert sum(export.rows.values()) == 175
    assert "3 of 178 rows are left out: 'grape' is missing" in export.remarks


def test_small_table_holds_out_a_larger_share(export: Prepared) -> None:
    assert min(export.rows[split] for split in ("validation", "test")) > 20


def test_second_prepare_repeats_the_messages_of_the_first(spark: Any, export: Prepared) -> None:
    source = str(Path(export.output).parent / "wines.csv")
    again = prepare.csv(spark, export.output, input=source, label="grape", clean=True)
    assert not again.fresh
    assert list(again.remarks) == list(export.remarks)


def test_prepare_keeps_the_columns_of_keep(spark: Any, tmp_path: Path) -> None:
    lines = [
        "row|when|amount|word|size|y",
        *(
            f"{i}|2024-01-{1 + i % 28:02d}|$1,{i:03d}.50|w{i}|{'tall' if i % 40 == 3 else i % 97}|{i % 7 / 2}"
            for i in range(200)
        ),
    ]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("\n".join(lines))
    options = {"input": str(tmp_path / "t.csv.gz"), "label": "y", "label_type": "number", "clean": True}
    found = prepare.csv(spark, str(tmp_path / "out"), **options, keep=["row", "word"])
    kinds = {f.name: f.kind for f in schema_of(found).features}
    assert kinds.pop("word") is ColumnKind.CATEGORICAL
    assert set(kinds) == {"row", "when", "amount", "size", "size_missing"}
    assert set(kinds.values()) == {ColumnKind.NUMERIC}
    assert "5 of 200 values are not numbers, such as 'tall', and count as missing" in remark_on(found, "size")
    assert any("dates, year-month-day: when" in r for r in found.remarks)
    assert any("thousands separators: amount" in r for r in found.remarks)


def test_prepare_reads_a_csv_without_a_header_and_drops_a_copy_of_the_label(
    spark: Any, tmp_path: Path
) -> None:
    (tmp_path / "t.tsv").write_text(
        "".join(f"{i % 13}\t{i * 0.37:.2f}\t{i * 0.37:.3f}\n" for i in range(200))
    )
    options = {"input": str(tmp_path / "t.tsv"), "label": "column2", "clean": True, "header": False}
    found = prepare.csv(spark, str(tmp_path / "out"), **options)
    assert [f.name for f in schema_of(found).features] == ["column1"]
    assert "is a copy of the label 'column2'" in remark_on(found, "column3")
    assert schema_of(found).label.is_regression


def test_prepare_in_place_drops_columns_from_the_schema_only(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    columns = {
        "id": pa.array(range(300)),
        "x": pa.array([i % 17 / 4 for i in range(300)]),
        "m": pa.array([[("k", i)] for i in range(300)], pa.map_(pa.string(), pa.int64())),
        "y": pa.array([i % 2 for i in range(300)]),
    }
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet", row_group_size=5)
    options = {"input": str(tmp_path / "in"), "label": "y", "clean": True, "in_place": True}
    found = prepare.csv(spark, str(tmp_path / "out"), **options)
    table = open_table(str(tmp_path / "out"))
    assert [f.name for f in table.schema.features] == ["x"]
    assert "is map<string,bigint>, which is neither text nor numbers" in remark_on(found, "m")
    assert sum(table.manifest(split).rows for split in Split) == 300


def test_prepare_refuses_a_constant_label(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i % 9},yes\n" for i in range(100)))
    with pytest.raises(DataError, match="the label 'y' is 'yes' in every row"):
        prepare.csv(spark, str(tmp_path / "out"), input=str(tmp_path / "t.csv"), label="y", clean=True)


@pytest.mark.parametrize("in_place", [False, True])
def test_prepare_warns_of_columns_that_give_the_label_away(
    spark: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], in_place: bool
) -> None:
    rng = np.random.default_rng(2)
    casual, registered = rng.poisson(20, 3000), rng.poisson(90, 3000)
    rides = {
        "wind": rng.normal(size=3000),
        "casual": casual,
        "registered": registered,
        "cnt": casual + registered,
    }
    pq.write_table(pa.table(rides), tmp_path / "rides.parquet", row_group_size=50)
    words = ["--input", str(tmp_path / "rides.parquet"), "--label", "cnt", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", "csv", *words, "--json", *(["--in-place"] if in_place else [])])
    assert ended.value.code == 0
    printed = capfd.readouterr()
    [warning] = json.loads(printed.out.splitlines()[-1])["warnings"]
    assert "casual" in warning
    assert "registered" in warning
    assert "writing" not in printed.err  # phases are for people
