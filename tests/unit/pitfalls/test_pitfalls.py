"""What spoils a result is found, and tables without these faults are left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import datasets

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.pitfalls import Pitfall, find_pitfalls, find_pitfalls_of_rows
from spark_hpo.pitfalls.pitfall import PitfallKind
from spark_hpo.trial import Split

ROWS = 4_000
DAY_S = 86_400


def numeric(name: str, values: Any = (0.0, 1.0), *, source: str = "") -> Feature:
    return Feature(
        name=name,
        kind=ColumnKind.NUMERIC,
        mean=float(np.mean(values)),
        deviation=float(np.std(values)) or 1.0,
        source=source or name,
    )


def write(folder: Path, schema: TableSchema, **splits: dict[str, Any]) -> None:
    for split, columns in splits.items():
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / split / "a.parquet", row_group_size=500)
    folder.mkdir(exist_ok=True)
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))


def prepared(folder: Path, columns: dict[str, Any], label: np.ndarray, splits: np.ndarray) -> list[Pitfall]:
    """The pitfalls of a table of numbers that is copied and standardised."""
    features = [numeric(name, values) for name, values in columns.items()]
    is_class = label.dtype.kind == "i"
    schema = TableSchema(
        features=tuple(features),
        label=Label(name="y", classes=tuple(map(str, range(label.max() + 1))) if is_class else ()),
    )
    stored = {f.name: ((columns[f.name] - f.mean) / f.deviation).astype("float32") for f in features} | {
        "y": label if is_class else label.astype("float32")
    }
    parts = {
        str(split): {name: values[splits == i] for name, values in stored.items()}
        for i, split in enumerate(Split)
    }
    write(folder, schema, **parts)
    return find_pitfalls(open_table(str(folder)))


def at_random(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    return rng.choice(3, rows, p=[0.6, 0.2, 0.2])


def kinds(found: list[Pitfall]) -> dict[PitfallKind, tuple[str, ...]]:
    return {pitfall.kind: pitfall.columns for pitfall in found}


def of_rows(label: str = "y", **columns: Any) -> list[Pitfall]:
    return find_pitfalls_of_rows(pa.Table.from_pandas(pd.DataFrame(columns)), label)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_pitfalls_name_a_column_that_is_missing_where_the_label_is_positive(rng: np.random.Generator) -> None:
    cancelled = rng.random(ROWS) < 0.03
    departed = np.where(cancelled & (rng.random(ROWS) < 0.95), np.nan, rng.integers(0, 2400, ROWS))
    by_chance = np.where(rng.random(ROWS) < 0.03, np.nan, rng.normal(size=ROWS))
    [found] = of_rows(y=cancelled.astype(int), departed=departed, by_chance=by_chance)
    assert (found.kind, found.columns) == (PitfallKind.MISSING_WITH_LABEL, ("departed",))
    assert "--drop departed" in found.cure


def test_pitfalls_name_a_column_that_is_nearly_always_missing(rng: np.random.Generator) -> None:
    rare = np.where(rng.random(ROWS) < 0.995, np.nan, 1.0)
    often = np.where(rng.random(ROWS) < 0.9, np.nan, 1.0)
    assert kinds(of_rows(y=rng.integers(0, 2, ROWS), rare=rare, often=often)) == {
        PitfallKind.MOSTLY_MISSING: ("rare",)
    }


def test_pitfalls_name_the_columns_whose_sum_is_the_label(rng: np.random.Generator) -> None:
    casual, registered, weather = rng.poisson(20, ROWS), rng.poisson(90, ROWS), rng.normal(size=ROWS)
    [found] = of_rows("cnt", weather=weather, casual=casual, registered=registered, cnt=casual + registered)
    assert (found.kind, set(found.columns)) == (PitfallKind.LEAK, {"casual", "registered"})
    noise = rng.normal(size=ROWS) * 5
    assert of_rows("cnt", weather=weather, casual=casual, registered=registered, cnt=casual + noise) == []


@pytest.mark.parametrize("stored", ["text", "number"])
def test_pitfalls_name_a_column_that_predicts_the_label_alone(rng: np.random.Generator, stored: str) -> None:
    label = rng.integers(0, 2, ROWS)
    reason = np.where(label, "late", "none") if stored == "text" else label * 7.5 + rng.random(ROWS)
    strong = label + rng.normal(size=ROWS)  # an AUC of 0.76
    [found] = of_rows(y=label, reason=reason, strong=strong)
    assert (found.kind, found.columns) == (PitfallKind.LEAK, ("reason",))
    assert "AUC 1.000" in found.message


def test_pitfalls_name_a_copy_of_a_number(rng: np.random.Generator) -> None:
    price = rng.lognormal(3, 1, ROWS)
    found = of_rows(
        "price", price=price, cents=np.round(price * 100), size=price + rng.normal(size=ROWS) * 20
    )
    assert kinds(found) == {PitfallKind.LEAK: ("cents",)}


def test_pitfalls_name_a_label_with_a_class_for_every_row(rng: np.random.Generator) -> None:
    names = [f"person {i}" for i in range(ROWS)]
    assert PitfallKind.LABEL_PER_ROW in kinds(of_rows(y=names, x=rng.normal(size=ROWS)))


def test_pitfalls_name_a_split_without_a_class(tmp_path: Path, rng: np.random.Generator) -> None:
    splits, label = at_random(rng), rng.integers(0, 2, ROWS)
    label[splits == 2] = 0
    assert PitfallKind.ABSENT_CLASS in kinds(prepared(tmp_path, {"x": rng.normal(size=ROWS)}, label, splits))


def test_pitfalls_name_a_test_split_that_is_mostly_noise(tmp_path: Path, rng: np.random.Generator) -> None:
    columns, label = {"x": rng.normal(size=500)}, rng.integers(0, 2, 500)
    few = np.repeat([0, 1, 2], [300, 100, 100])
    assert PitfallKind.SMALL_TEST in kinds(prepared(tmp_path / "few", columns, label, few))
    large = at_random(rng)
    columns, label = {"x": rng.normal(size=ROWS)}, rng.integers(0, 2, ROWS)
    assert prepared(tmp_path / "large", columns, label, large) == []


def test_pitfalls_name_a_time_by_which_sides_alternate(tmp_path: Path, rng: np.random.Generator) -> None:
    when = 1.6e9 + np.arange(ROWS) * 3600.0
    label = np.cumsum(rng.normal(size=ROWS))  # similar from hour to hour
    at = {"random": at_random(rng), "time": np.repeat([0, 1, 2], [2400, 800, 800])}
    found = {name: kinds(prepared(tmp_path / name, {"when": when}, label, at[name])) for name in at}
    assert found == {"random": {PitfallKind.TIME_ORDER: ("when",)}, "time": {}}
    # A date of birth says nothing about the rows next to it.
    born, label = rng.normal(4e8, 1e8, ROWS), rng.normal(size=ROWS)
    assert prepared(tmp_path / "born", {"born": born}, label, at["random"]) == []


def test_pitfalls_name_an_id_that_is_on_two_sides(tmp_path: Path, rng: np.random.Generator) -> None:
    patient = rng.integers(0, ROWS // 10, ROWS)
    health = rng.normal(size=ROWS // 10)[patient] + 0.5 * rng.normal(size=ROWS)
    by_patient = np.digitize(rng.random(ROWS // 10), [0.6, 0.8])[patient]
    at = {"random": at_random(rng), "group": by_patient}
    columns = {"patient_id": patient.astype(float), "x": rng.normal(size=ROWS)}
    found = {name: kinds(prepared(tmp_path / name, columns, health, at[name])) for name in at}
    assert found == {"random": {PitfallKind.SHARED_GROUP: ("patient_id",)}, "group": {}}
    # An id that tells nothing about the label may be on all sides.
    assert prepared(tmp_path / "unrelated", columns, rng.normal(size=ROWS), at["random"]) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_pitfalls_name_a_table_in_order_of_time_that_is_split_by_row_groups(
    tmp_path: Path, rng: np.random.Generator, ordered: bool
) -> None:
    when = pd.date_range("2020-01-01", periods=20_000, freq="h")
    order = np.arange(20_000) if ordered else rng.permutation(20_000)
    rows = pa.table({"when": pa.array(when[order]), "y": rng.normal(size=20_000)})
    (tmp_path / "lake").mkdir()
    pq.write_table(rows, tmp_path / "lake/a.parquet", row_group_size=500)
    seconds = rows["when"].to_pandas().astype("int64") / 1e9
    schema = TableSchema(
        features=(replace(numeric("when", seconds)),), label=Label(name="y"), encoding=Encoding.RAW
    )
    shares = zip(Split, ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0)), strict=True)
    sources = {str(split): Source(url=str(tmp_path / "lake"), share=share) for split, share in shares}
    write(tmp_path / "out", replace(schema, sources=sources))
    found = kinds(find_pitfalls(open_table(str(tmp_path / "out"))))
    assert found == ({PitfallKind.TIME_ORDER: ("when",)} if ordered else {})


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes", "digits"])
def test_pitfalls_leave_honest_tables_alone(name: str) -> None:
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    assert find_pitfalls_of_rows(pa.Table.from_pandas(frame), "target") == []


def test_pitfalls_of_a_table_without_splits_are_those_of_a_random_one(rng: np.random.Generator) -> None:
    when = pd.date_range("2020-01-01", periods=ROWS, freq="h")
    found = of_rows(when=when, y=np.cumsum(rng.normal(size=ROWS)))
    assert kinds(found) == {PitfallKind.TIME_ORDER: ("when",)}
    assert "time: when" in found[0].cure
    patient = rng.integers(0, ROWS // 10, ROWS)
    health = rng.normal(size=ROWS // 10)[patient] + 0.5 * rng.normal(size=ROWS)
    assert kinds(of_rows(patient_id=patient, y=health)) == {PitfallKind.SHARED_GROUP: ("patient_id",)}
