"""Preparing tables on a real Spark, and reading them with the loader."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.cli import main
from spark_hpo.data.loader import Loader
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.schema import ColumnKind, Encoding, NullRule, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.from_synthetic import teacher
from spark_hpo.prepare.sources import own_session
from spark_hpo.train.predictor import Predictor
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.trial import Split
from tests.support.command_line import output, run_in_process

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
ADULT = ROOT / ".." / "shared" / "data" / "adult" / "adult.csv"


def frame(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Return all columns of a split in the order of the files."""
    table = pq.read_table(sorted((folder / split).glob("*.parquet")))
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}


def row_groups(path: Path) -> list[int]:
    footer = pq.read_metadata(path)
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def content(folder: Path) -> dict[str, str]:
    """Return the hashes of the data by file."""
    files = sorted(folder.glob("*/*.parquet"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def schema_at(folder: Path) -> TableSchema:
    return TableSchema.from_json(json.loads((folder / "schema.json").read_text()))


def write_csv(path: Path, rows: list[list[object]]) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def digits(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "digits"
    prepared = prepare.digits(spark, str(folder), row_group_rows=100)
    assert prepared.fresh
    assert sum(prepared.rows.values()) == 1797
    return folder


@pytest.fixture(scope="module")
def people() -> list[list[object]]:
    """age, pay.in $, job title, id, income-per-year"""
    rng = np.random.default_rng(0)
    pay = rng.permutation(600) * 0.37 + 900  # no two are equal
    jobs = ["cook"] * 6 + ["smith"] * 3 + ["?"]
    rows: list[list[object]] = []
    for i in range(600):
        age: object = " ?" if i % 10 == 3 else int(rng.integers(18, 70))
        job = f" {jobs[i % 10]} " if i != 17 else "astronaut"
        rows.append([age, f"{pay[i]:.2f}", job, f"P{i}", ["<=50K", ">50K"][i % 3 == 0]])
    return rows


@pytest.fixture(scope="module")
def table(spark: Any, people: list[list[object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv")
    header: list[object] = ["age", "pay.in $", "job title", "id", "income-per-year"]
    source = write_csv(folder / "people.csv", [header, *people])
    prepare.csv(
        spark,
        str(folder / "out"),
        input=source,
        label="income-per-year",
        null_values=["?"],
        max_vocabulary=5,
        drop=["id"],
    )
    return folder / "out"


class TestDigits:
    def test_digits_are_each_in_one_split(self, digits: Path) -> None:
        from sklearn.datasets import load_digits

        written = Counter(
            (tuple(np.round(pixels * 16).astype(int)), int(digit))
            for split in Split
            for pixels, digit in zip(*frame(digits, split).values(), strict=True)
        )
        source = load_digits()
        assert written == Counter(
            (tuple(pixels.astype(int)), int(digit))
            for pixels, digit in zip(source.data, source.target, strict=True)
        )

    def test_digits_have_the_requested_row_group_size(self, digits: Path) -> None:
        for path in (digits / "train").glob("*.parquet"):
            *whole, rest = row_groups(path)
            assert set(whole) == {100}
            assert 0 < rest <= 100

    def test_loader_returns_images(self, digits: Path) -> None:
        table = open_table(str(digits))
        loader = Loader(table, Split.TRAIN, rank=1, world_size=2, batch_size=64, seed=0, shuffle_window=1000)
        batch = next(iter(next(loader.passes(0, 1))))
        assert batch["pixels"].shape[1:] == (1, 8, 8)
        assert 0 <= float(batch["pixels"].min()) < float(batch["pixels"].max()) <= 1

    def test_split_of_the_digits_never_changes(self, spark: Any, digits: Path, tmp_path: Path) -> None:
        prepare.digits(spark, str(tmp_path / "again"), row_group_rows=100)
        assert content(tmp_path / "again") == content(digits)
        prepare.digits(spark, str(tmp_path / "coarse"), row_group_rows=1000)
        for split in Split:
            assert len(frame(tmp_path / "coarse", split)["digit"]) == len(frame(digits, split)["digit"])
        prepare.digits(spark, str(tmp_path / "seed"), row_group_rows=100, seed=1)
        assert content(tmp_path / "seed") != content(digits)

    def test_second_prepare_does_nothing(self, spark: Any, digits: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
        assert not prepare.digits(spark, str(digits), row_group_rows=100).fresh
        assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
        with pytest.raises(ConfigError, match="another seed"):
            prepare.digits(spark, str(digits), row_group_rows=100, seed=9)

    def test_prepare_command_prints_the_existing_table(self, digits: Path) -> None:
        arguments = ["prepare", "digits", "--output", str(digits), "--row-group-rows", "100"]
        said = output(run_in_process(main, arguments, digits))
        assert said.endswith("rows (existed already)\n")
        answer = json.loads(output(run_in_process(main, [*arguments, "--json"], digits)))
        assert (answer["output"], answer["fresh"]) == (str(digits), False)
        assert sum(answer["rows"].values()) == 1797


class TestCsv:
    def test_columns_get_kinds_from_their_values(self, table: Path) -> None:
        schema = open_table(str(table)).schema
        assert [(f.name, f.kind) for f in schema.features] == [
            ("age", ColumnKind.NUMERIC),
            ("age_missing", ColumnKind.NUMERIC),
            ("pay.in $", ColumnKind.NUMERIC),
            ("job title", ColumnKind.CATEGORICAL),
        ]
        assert schema.label.classes == ("<=50K", ">50K")
        assert schema.features[1].source == "age"

    def test_vocabularies_are_ordered_by_frequency_and_contain_missing(self, table: Path) -> None:
        [job] = open_table(str(table)).schema.of_kind(ColumnKind.CATEGORICAL)
        assert job.vocabulary[:3] == ("cook", "smith", "")

    def test_numbers_are_standardised_on_the_training_split_with_missing_as_mean(
        self, table: Path, people: list[list[object]]
    ) -> None:
        age, _, pay, _ = open_table(str(table)).schema.features
        train = frame(table, "train")
        assert abs(train["pay.in $"].mean()) < 1e-4
        assert abs(train["pay.in $"].std() - 1) < 1e-4
        missing = train["age_missing"] == 1
        assert missing.any()
        assert (train["age"][missing] == 0).all()
        assert abs((train["age"][~missing]).std() - 1) < 1e-4
        written = np.sort(np.concatenate([frame(table, s)["pay.in $"] for s in Split]))
        given = np.sort([float(str(row[1])) for row in people])
        np.testing.assert_allclose(written * pay.deviation + pay.mean, given, rtol=1e-4)
        assert 18 < age.mean < 70

    def test_labels_and_codes_stay_with_their_rows(self, table: Path, people: list[list[object]]) -> None:
        schema = open_table(str(table)).schema
        pay, job = schema.features[2], schema.features[3]
        source = {str(row[1]): (str(row[2]).strip().replace("?", ""), row[4]) for row in people}
        for split in Split:
            columns = frame(table, split)
            for value, code, label in zip(
                columns["pay.in $"], columns["job title"], columns["income-per-year"], strict=True
            ):
                title, income = source[f"{value * pay.deviation + pay.mean:.2f}"]
                assert schema.label.classes[label] == income
                assert (job.vocabulary[code - 1] if code else "astronaut") == title

    def test_model_takes_original_rows_and_names_a_bad_one(
        self, table: Path, people: list[list[object]]
    ) -> None:
        task = TabularTask({"hidden_units": 4}, open_table(str(table)).schema)
        model = Predictor(task, task.build_model())
        rows = pd.DataFrame(people, columns=["age", "pay.in $", "job title", "id", "income-per-year"])
        answers = model.predict(rows)
        assert list(answers) == ["prediction", "probability_<=50K", "probability_>50K"]
        assert set(answers["prediction"]) <= {"<=50K", ">50K"}
        with pytest.raises(DataError, match="row 7, column 'age': 'old' is not a number"):
            model.predict(rows.assign(age=rows["age"].where(rows.index != 7, "old")))

    def test_equal_rows_are_in_one_split(self, spark: Any, tmp_path: Path) -> None:
        rows: list[list[object]] = [[f"v{i % 60}", i % 2] for i in range(600)]
        source = write_csv(tmp_path / "t.csv", [["v", "y"], *rows])
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y")
        table = open_table(str(tmp_path / "out"))
        assert table.schema.label.classes == ("0", "1")
        held_out = np.concatenate([frame(tmp_path / "out", s)["v"] for s in ("validation", "test")])
        assert set(held_out) == {0}, "a value of the training split was held out"

    def test_rare_values_are_unseen(self, spark: Any, tmp_path: Path) -> None:
        rows: list[list[object]] = [[f"v{int(i**0.5)}", i % 2, i] for i in range(400)]
        source = write_csv(tmp_path / "t.csv", [["v", "y", "n"], *rows])
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", max_vocabulary=3)
        [feature] = open_table(str(tmp_path / "out")).schema.of_kind(ColumnKind.CATEGORICAL)
        codes = Counter(frame(tmp_path / "out", "train")["v"].tolist())
        assert len(feature.vocabulary) == 3
        assert set(codes) == {0, 1, 2, 3}
        assert codes[1] >= codes[2] >= codes[3]

    def test_float_label_is_a_regression_in_its_own_units(self, spark: Any, tmp_path: Path) -> None:
        rows: list[list[object]] = [[i, i / 7] for i in range(300)]
        source = write_csv(tmp_path / "t.csv", [["x", "y"], *rows])
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y")
        label = open_table(str(tmp_path / "out")).schema.label
        train = frame(tmp_path / "out", "train")
        assert label.is_regression
        np.testing.assert_allclose([train["y"].mean(), train["y"].std()], [label.mean, label.deviation], 1e-4)
        assert train["y"].max() > 40

    def test_prepare_treats_parquet_like_csv(self, spark: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        columns = {
            "x": pa.array([None if i % 50 == 0 else float(v) for i, v in enumerate(rng.normal(size=300))]),
            "on": pa.array([bool(i % 3) for i in range(300)]),
            "when": pa.array([i * 86_400_000_000 for i in range(300)], pa.timestamp("us", "UTC")),
            "y": pa.array(rng.integers(0, 3, 300)),
        }
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
        options = {"input": str(tmp_path / "in"), "label": "y"}
        prepare.csv(spark, str(tmp_path / "out"), **options)
        schema = open_table(str(tmp_path / "out")).schema
        assert [f.name for f in schema.features] == ["x", "x_missing", "on", "when"]
        assert schema.features[2].vocabulary == ("true", "false")
        assert schema.label.classes == ("0", "1", "2")

    @pytest.mark.parametrize(
        ("rows", "label", "message"),
        [
            ([["a", "y"], [1, 0], [2, 1]], "z", "t.csv has no column 'z'"),
            ([["a", "y"], *[[i, i % 2 or ""] for i in range(100)]], "y", "'y' is missing in 50 of 100 rows"),
            ([["a", "y"]], "y", "0 rows"),
            ([["a", "y"], *[[i, i % 2] for i in range(50)], [1, 2, 3]], "y", "Spark cannot prepare it"),
        ],
        ids=["unknown label", "missing labels", "no rows", "a row of three"],
    )
    def test_prepare_refuses_bad_input_with_one_message(
        self, spark: Any, tmp_path: Path, rows: list[list[object]], label: str, message: str
    ) -> None:
        source = write_csv(tmp_path / "t.csv", rows)
        with pytest.raises(DataError, match=message):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label=label)
        assert os.listdir(tmp_path) == ["t.csv"]

    @pytest.mark.skipif(not ADULT.parent.is_dir(), reason="the Adult table is not beside the checkout")
    def test_prepare_encodes_the_adult_table(self, spark: Any, tmp_path: Path) -> None:
        header, *lines = ADULT.read_text().splitlines()
        (tmp_path / "some.csv").write_text("\n".join([header, *lines[::8]]))
        options = {"input": str(tmp_path / "some.csv"), "label": "income-per-year", "null_values": ["?"]}
        prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
        table = open_table(str(tmp_path / "out"))
        assert sum(prepared.rows.values()) == len(lines[::8]) == 4_071
        assert len(table.schema.of_kind(ColumnKind.NUMERIC)) == 6
        assert len(table.schema.of_kind(ColumnKind.CATEGORICAL)) == 8
        assert table.schema.label.classes == ("<=50K", ">50K")
        loader = Loader(table, Split.TEST, rank=0, world_size=1, batch_size=512, seed=0, shuffle_window=None)
        everything = next(loader.passes(0, 1))
        rich = sum(int(batch["income-per-year"].sum()) for batch in everything)
        assert 0.2 < rich / everything.rows < 0.28
        # The rows of the split are given by the hash alone.
        again = spark.read.csv(f"file://{tmp_path}/some.csv", header=True).repartition(7)
        shuffled = tmp_path / "shuffled"
        again.write.csv(f"file://{shuffled}", header=True)
        for path in shuffled.glob("[._]*"):
            path.unlink()
        prepare.csv(spark, str(tmp_path / "two"), **{**options, "input": str(shuffled), "format": "csv"})
        assert content(tmp_path / "two") == content(tmp_path / "out")


def write_parquet(folder: Path, rows: int = 300, **columns: Any) -> str:
    """Write a table of these columns and a label y, 0 or 1, in row groups of 5 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns, "y": pa.array([i % 2 for i in range(rows)])})
    pq.write_table(table, folder / "a.parquet", row_group_size=5)
    return str(folder)


class TestLists:
    """Lists and bytes, copied."""

    @pytest.fixture(scope="class")
    @classmethod
    def out(cls, spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("lists")
        source = write_parquet(
            folder / "in",
            id=pa.array(range(300)),
            embedding=pa.array([[float(i), 0.5, -1.0] for i in range(300)]),
            prices=pa.array([None if i == 7 else [i / 4] * (i % 5) for i in range(300)]),
            cents=pa.array(
                [[Decimal(i) / 4] * (1 + i % 2) for i in range(300)], pa.list_(pa.decimal128(9, 2))
            ),
            tags=pa.array([None if i == 7 else ["b", "a ", "nan"][: i % 4] for i in range(300)]),
            items=pa.array([[7, 50 + i % 2][: 1 + i % 2] for i in range(300)]),
            image=pa.array([bytes([i % 256]) * 3 for i in range(300)]),
        )
        prepare.csv(spark, str(folder / "out"), input=source, label="y", categorical=["items"])
        return folder / "out"

    def test_lists_become_arrays_sequences_or_bytes(self, out: Path) -> None:
        features = {f.name: f for f in schema_at(out).features}
        assert {name: (f.kind, f.shape) for name, f in features.items() if name != "id"} == {
            "embedding": (ColumnKind.ARRAY, (3,)),
            "prices": (ColumnKind.SEQUENCE, (4,)),
            "cents": (ColumnKind.SEQUENCE, (2,)),
            "tags": (ColumnKind.SEQUENCE, (3,)),
            "items": (ColumnKind.SEQUENCE, (2,)),
            "image": (ColumnKind.BINARY, ()),
        }
        assert features["tags"].vocabulary == ("b", "a", "")
        assert features["items"].vocabulary == ("7", "51")  # integers, named as categories
        assert not features["prices"].vocabulary

    def test_schema_has_the_moments_of_the_elements_of_the_training_split(self, out: Path) -> None:
        train = pq.read_table(out / "train")
        for name in ("embedding", "prices", "cents"):
            feature = next(f for f in schema_at(out).features if f.name == name)
            elements = np.concatenate([np.asarray(row) for row in train[name].to_pylist()])
            assert feature.mean == pytest.approx(elements.mean())
            assert feature.deviation == pytest.approx(elements.std())

    def test_the_files_hold_floats_codes_and_bytes(self, out: Path) -> None:
        identity = next(f for f in schema_at(out).features if f.name == "id")
        seen = 0
        for split in Split:
            table = pq.read_table(out / split)
            assert {name: str(table.schema.field(name).type.value_type) for name in ("prices", "tags")} == {
                "prices": "float",
                "tags": "int64",
            }
            for row in table.to_pylist():
                i = round(row["id"] * identity.deviation + identity.mean)
                assert row["embedding"] == [i, 0.5, -1]
                assert row["prices"] == ([] if i == 7 else [i / 4] * (i % 5))
                assert row["cents"] == [i / 4] * (1 + i % 2)
                assert row["tags"] == ([] if i == 7 else [1, 2, 3][: i % 4])
                assert row["items"] == [1, 2][: 1 + i % 2]
                assert row["image"] == bytes([i % 256]) * 3
                seen += 1
        assert seen == 300

    def test_rare_and_unseen_elements_have_code_0(self, spark: Any, tmp_path: Path) -> None:
        source = write_parquet(tmp_path / "in", tags=pa.array([["x", f"t{i}"] for i in range(300)]))
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", max_vocabulary=1)
        [tags] = schema_at(tmp_path / "out").features
        assert tags.vocabulary == ("x",)
        assert {tuple(row) for row in frame(tmp_path / "out", "test")["tags"]} == {(1, 0)}

    @pytest.mark.parametrize(
        ("column", "in_place", "message"),
        [
            (
                [[1.0, None], *[[1.0]] * 299],
                False,
                "'v' has elements that are null, NaN or infinite, in 1 of",
            ),
            (
                [[1.0, math.inf], *[[1.0]] * 299],
                True,
                "'v' has elements that are null, NaN or infinite, in 1 of",
            ),
            ([["a", None], *[["a"]] * 299], False, "'v' has elements that are null, in 1 of 300 rows"),
            ([None, *[[1.0, 2.0]] * 299], True, r"'v' is null in 1 of 300 rows, and an array of 2.*--drop v"),
            ([None, *[b"a"] * 299], True, r"'v' holds bytes, and is null in 1 of 300 rows"),
            ([[1.0][:0]] * 300, False, r"'v' has only empty lists.*--drop v"),
            ([{"k": 1}] * 300, True, r"'v' is struct<k:bigint>.*--drop v"),
            ([[[1.0]]] * 300, False, r"'v' is array<array<double>>"),
        ],
        ids=["null", "infinite", "null text", "null array", "null bytes", "empty", "struct", "nested"],
    )
    def test_prepare_refuses_unusable_lists_with_one_message(
        self, spark: Any, tmp_path: Path, column: list[Any], in_place: bool, message: str
    ) -> None:
        source = write_parquet(tmp_path / "in", id=pa.array(range(300)), v=pa.array(column))
        with pytest.raises(DataError, match=message):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", in_place=in_place)
        assert os.listdir(tmp_path) == ["in"]

    def test_lists_of_decimals_need_a_copy(self, spark: Any, tmp_path: Path) -> None:
        lists = pa.array([[Decimal(1)]] * 300, pa.list_(pa.decimal128(9, 2)))
        source = write_parquet(tmp_path / "in", v=lists)
        with pytest.raises(DataError, match=r"'v' is array<decimal\(9,2\)>"):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", in_place=True)

    def test_maps_can_be_dropped(self, spark: Any, tmp_path: Path) -> None:
        maps = pa.array([[("k", i)] for i in range(300)], pa.map_(pa.string(), pa.int64()))
        source = write_parquet(tmp_path / "in", x=pa.array(range(300)), m=maps)
        with pytest.raises(DataError, match=r"column 'm' is map<string,bigint>.*--drop m"):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label="y")
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", drop=["m"])
        assert [f.name for f in schema_at(tmp_path / "out").features] == ["x"]

    def test_list_as_label_is_refused(self, spark: Any, tmp_path: Path) -> None:
        source = write_parquet(tmp_path / "in", v=pa.array([["a"]] * 300))
        with pytest.raises(
            DataError, match="label 'v' is array<string>; it must be text, a number or a list"
        ):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label="v")

    def test_column_with_the_name_of_a_length_is_refused(self, spark: Any, tmp_path: Path) -> None:
        columns = {"v": pa.array([["a"]] * 300), "v.length": pa.array(range(300))}
        with pytest.raises(DataError, match=r"column 'v\.length' has the name of the length of the values"):
            prepare.csv(
                spark, str(tmp_path / "out"), input=write_parquet(tmp_path / "in", **columns), label="y"
            )


IN_PLACE = {"in_place": True, "label": "y"}
DAYS = [date(2026, 1, 1) + timedelta(days=i // 3) for i in range(300)]  # up to 10 April
BY_DAY = {
    "where_train": "day < '2026-03-01'",
    "where_validation": "day between '2026-03-01' and '2026-03-31'",
    "where_test": "day >= date '2026-04-01' and `id` is not null",
}


class TestInPlace:
    def test_in_place_copies_nothing_and_runs_once(self, spark: Any, tmp_path: Path) -> None:
        options = {**IN_PLACE, "input": write_parquet(tmp_path / "in", id=pa.array(range(300)))}
        out = str(tmp_path / "out")
        prepared = prepare.csv(spark, out, **options)
        assert sorted(os.listdir(out)) == ["prepared.json", "schema.json"]
        assert prepared.fresh
        again = prepare.csv(spark, out, **options)
        assert not again.fresh
        assert again.rows == prepared.rows
        with pytest.raises(ConfigError, match="another seed"):
            prepare.csv(spark, out, **options, seed=1)
        with pytest.raises(ConfigError, match="another where"):
            prepare.csv(spark, out, **options, where_train="id<9", where_validation="id=9", where_test="id>9")
        with pytest.raises(ConfigError, match="another null_values, row_group_rows, separator"):
            prepare.csv(spark, out, **{**options, "in_place": False})

    def test_in_place_features_describe_the_encoding(self, spark: Any, tmp_path: Path) -> None:
        source = write_parquet(
            tmp_path / "in",
            id=pa.array(range(300)),
            x=pa.array([None if i % 7 == 0 else math.nan if i % 7 == 1 else i / 2 for i in range(300)]),
            price=pa.array([Decimal(i) / 4 for i in range(300)], pa.decimal128(9, 2)),
            job=pa.array([None if i % 10 == 0 else " cook\t" if i % 3 else "smith" for i in range(300)]),
            on=pa.array([bool(i % 3) for i in range(300)]),
            prices=pa.array([None if i == 7 else [i / 4] * (i % 5) for i in range(300)]),
            embedding=pa.array([[float(i), 0.5] for i in range(300)]),
            tags=pa.array([["b", "a", "c"][: i % 4] for i in range(300)]),
            image=pa.array([b"b"] * 300),
        )
        prepare.csv(spark, str(tmp_path / "out"), **IN_PLACE, input=source, drop=["id"])
        schema = schema_at(tmp_path / "out")
        assert schema.encoding is Encoding.RAW
        by_name = {f.name: f for f in schema.features}
        assert list(by_name) == [
            *("x", "x_missing", "price", "job", "on", "prices", "embedding", "tags", "image"),
        ]
        assert {name: f.nulls for name, f in by_name.items() if f.nulls is NullRule.REFUSE} == {
            "embedding": NullRule.REFUSE,
            "image": NullRule.REFUSE,
        }
        assert [f.name for f in schema.features if f.marks_missing] == ["x_missing"]
        assert by_name["x_missing"].source == "x"
        assert by_name["job"].vocabulary == ("cook", "smith", "")
        assert by_name["on"].vocabulary == ("true", "false")
        assert (by_name["price"].kind, by_name["prices"].shape) == (ColumnKind.NUMERIC, (4,))
        assert (by_name["tags"].kind, by_name["tags"].vocabulary) == (ColumnKind.SEQUENCE, ("b", "a", "c"))
        assert (by_name["embedding"].kind, by_name["embedding"].shape) == (ColumnKind.ARRAY, (2,))
        assert (by_name["image"].kind, by_name["image"].transform) == (ColumnKind.BINARY, "")
        assert schema.label.classes == ("0", "1")

    @pytest.mark.parametrize("in_place", [False, True])
    def test_in_place_batches_equal_those_of_a_copy(self, spark: Any, tmp_path: Path, in_place: bool) -> None:
        number = [i / 2 if i % 7 > 1 else (None, math.nan)[i % 7] for i in range(300)]
        job = [None if i % 10 == 0 else f"{'  cook' if i % 3 else 'smith'}\t" for i in range(300)]
        source = write_parquet(
            tmp_path / "in" / "country=DE",
            id=pa.array(range(300)),
            x=pa.array(number),
            price=pa.array([Decimal(i) / 4 for i in range(300)], pa.decimal128(9, 2)),
            written=pa.array([f" {i}.5 " for i in range(300)]),
            day=pa.array(DAYS),
            moment=pa.array([datetime(2026, 1, 1 + i % 9) for i in range(300)], pa.timestamp("ms")),
            job=pa.array(job),
            on=pa.array([bool(i % 3) for i in range(300)]),
            prices=pa.array([None if i == 7 else [i / 4] * (i % 5) for i in range(300)]),
            embedding=pa.array([[i, 2] for i in range(300)]),
            tags=pa.array([["b", " a", "nan"][: i % 4] for i in range(300)]),
        )
        out = str(tmp_path / "out")
        options = {"input": str(Path(source).parent), "label": "y", "fractions": (0.6, 0.2, 0.2)}
        prepared = prepare.csv(spark, out, **options, in_place=in_place)
        table = open_table(out)
        by_name = {f.name: f for f in table.schema.features}
        seen = 0
        for split in Split:
            loader = Loader(table, split, rank=0, world_size=1, batch_size=1000, seed=0, shuffle_window=None)
            [batch] = next(loader.passes(0, 1))
            assert len(batch["y"]) == prepared.rows[split]

            def natural(name: str, batch: Any = batch) -> np.ndarray:
                return np.asarray(batch[name]) * by_name[name].deviation + by_name[name].mean

            rows = np.round(natural("id")).astype(int)
            seen += len(rows)
            np.testing.assert_array_equal(batch["y"], rows % 2)
            np.testing.assert_array_equal(batch["x_missing"], rows % 7 < 2)
            np.testing.assert_allclose(natural("x")[rows % 7 > 1], rows[rows % 7 > 1] / 2, atol=1e-3)
            np.testing.assert_allclose(np.asarray(batch["x"])[rows % 7 < 2], 0, atol=1e-6)
            np.testing.assert_allclose(natural("price"), rows / 4, atol=1e-3)
            np.testing.assert_allclose(natural("written"), rows + 0.5, atol=1e-3)
            midnight = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
            np.testing.assert_allclose(natural("day"), midnight + rows // 3 * 86_400, atol=60)
            np.testing.assert_allclose(natural("moment"), midnight + rows % 9 * 86_400, atol=60)
            words = np.where(rows % 10 == 0, "", np.where(rows % 3, "cook", "smith"))
            np.testing.assert_array_equal(np.array(["?", *by_name["job"].vocabulary])[batch["job"]], words)
            np.testing.assert_array_equal(batch["on"], np.where(rows % 3, 1, 2))
            assert set(np.asarray(batch["country"]).tolist()) == {1}
            np.testing.assert_array_equal(batch["embedding"], np.stack([rows, 0 * rows + 2], 1))
            lengths = np.where(rows == 7, 0, rows % 5)
            np.testing.assert_array_equal(batch["prices.length"], lengths)
            padded = np.where(np.arange(4) < lengths[:, None], rows[:, None] / 4, 0)
            np.testing.assert_array_equal(batch["prices"], padded)
            np.testing.assert_array_equal(batch["tags.length"], rows % 4)
            codes = np.where(np.arange(3) < (rows % 4)[:, None], [1, 2, 3], 0)
            np.testing.assert_array_equal(batch["tags"], codes)
        assert seen == 300

    def test_in_place_statistics_come_from_the_training_row_groups(self, spark: Any, tmp_path: Path) -> None:
        folder = tmp_path / "a +%20 ä"  # of each, Spark writes another form
        rng = np.random.default_rng(0)
        for country in ("D E", "F+R", "x%y"):
            write_parquet(folder / f"country={quote(country)}" / "month=7", x=pa.array(rng.normal(size=300)))
        options = {**IN_PLACE, "input": str(folder), "fractions": (0.5, 0.25, 0.25), "seed": 3}
        prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
        schema = schema_at(tmp_path / "out")
        x, country, month = schema.features
        assert [s.share for s in schema.sources.values()] == [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]
        assert {(s.url, s.seed, s.where) for s in schema.sources.values()} == {(str(folder), 3, "")}
        values: dict[str, list[float]] = {str(split): [] for split in Split}
        for path in sorted(folder.rglob("*.parquet")):
            file = pq.ParquetFile(path)
            for i in range(file.num_row_groups):
                [split] = [
                    split
                    for split, source in schema.sources.items()
                    if in_share(str(path.relative_to(folder)), i, source.share, source.seed)
                ]
                values[split] += file.read_row_group(i, ["x"]).column("x").to_pylist()
        assert {split: len(found) for split, found in values.items()} == prepared.rows
        np.testing.assert_allclose([x.mean, x.deviation], [np.mean(values["train"]), np.std(values["train"])])
        assert sorted(country.vocabulary) == ["D E", "F+R", "x%y"]
        assert (month.kind, month.mean) == (ColumnKind.NUMERIC, 7)
        manifests = {s: read_manifest(v.url, share=v.share, seed=v.seed) for s, v in schema.sources.items()}
        assert {split: manifest.rows for split, manifest in manifests.items()} == prepared.rows

    def test_in_place_splits_by_conditions(self, spark: Any, tmp_path: Path) -> None:
        words = pa.array([f"w{day.month}" for day in DAYS])
        source = write_parquet(
            tmp_path / "in", id=pa.array([None, *range(1, 299), None]), day=pa.array(DAYS), word=words
        )
        options = {**IN_PLACE, "input": source, **BY_DAY}
        prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
        assert prepared.rows == {"train": 177, "validation": 93, "test": 29}  # one is in no split
        schema = schema_at(tmp_path / "out")
        assert {split: s.where for split, s in schema.sources.items()} == {
            split: BY_DAY[f"where_{split}"] for split in ("train", "validation", "test")
        }
        assert {s.share for s in schema.sources.values()} == {(0.0, 1.0)}
        by_name = {f.name: f for f in schema.features}
        assert by_name["word"].vocabulary == ("w1", "w2")
        assert by_name["id"].mean == 88.5
        assert "id_missing" in by_name
        manifests = {s: read_manifest(v.url, where=v.where) for s, v in schema.sources.items()}
        assert {split: manifest.rows for split, manifest in manifests.items()} == prepared.rows

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ({"where_train": "id < 9 or"}, "id < 9 or"),
            ({"where_train": "no < 9"}, "there is no column 'no'"),
            (
                {"where_train": "id <= 9"},
                r"1 rows meet the conditions of both train \(id <= 9\) and validation",
            ),
            ({"where_test": "id > 999"}, r"no row meets the condition of test \(id > 999\)"),
        ],
    )
    def test_in_place_refuses_conditions_that_do_not_split(
        self, spark: Any, tmp_path: Path, where: dict[str, str], message: str
    ) -> None:
        source = write_parquet(tmp_path / "in", id=pa.array(range(300)))
        splits = {"where_train": "id < 9", "where_validation": "id = 9", "where_test": "id > 9"}
        with pytest.raises(DataError, match=message):
            prepare.csv(spark, str(tmp_path / "out"), **IN_PLACE, input=source, **{**splits, **where})
        assert os.listdir(tmp_path) == ["in"]

    def test_in_place_refuses_too_few_row_groups(self, spark: Any, tmp_path: Path) -> None:
        source = write_parquet(tmp_path / "in", rows=5, id=pa.array(range(5)))
        with pytest.raises(DataError, match=r"none of its 1 row groups is assigned to .*, test"):
            prepare.csv(spark, str(tmp_path / "out"), **IN_PLACE, input=source)

    def test_in_place_classes_are_encoded_without_conversion(self, spark: Any, tmp_path: Path) -> None:
        source = write_parquet(
            tmp_path / "in",
            grade=pa.array(["1.0", "1", "2"] * 100),
            stars=pa.array([0.5, 1.0, 1.5] * 100),
            rank=pa.array([1.0, 2.0, 3.0] * 100),
        )
        for name, classes in {"grade": ("1", "1.0", "2"), "rank": ("1", "2", "3")}.items():
            prepare.csv(spark, str(tmp_path / name), input=source, label=name, in_place=True)
            assert schema_at(tmp_path / name).label.classes == classes
        options = {"input": source, "label": "stars", "label_type": "class"}
        with pytest.raises(ConfigError) as refused:
            prepare.csv(spark, str(tmp_path / "out"), **options, in_place=True)
        assert (refused.value.key, refused.value.value) == ("label_type", "class")
        prepare.csv(spark, str(tmp_path / "out"), **options)


@pytest.mark.parametrize("in_place", [False, True])
def test_dates_are_utc_seconds_in_any_session_time_zone(spark: Any, tmp_path: Path, in_place: bool) -> None:
    noon = [datetime(2026, 7, 1, 12)] * 300
    source = write_parquet(
        tmp_path / "in" / "part=2026-07-01",
        day=pa.array([date(2026, 7, 1)] * 300),
        moment=pa.array(noon, pa.timestamp("us", "UTC")),
        local=pa.array(noon, pa.timestamp("us")),
        pandas=pa.array(noon, pa.timestamp("ns")),
        zoned=pa.array(noon, pa.timestamp("ns", "Asia/Tokyo")),
        id=pa.array(range(300)),
    )
    zone = "spark.sql.session.timeZone"
    before = spark.conf.get(zone)
    spark.conf.set(zone, "America/New_York")
    try:
        prepare.csv(
            spark,
            str(tmp_path / "out"),
            input=str(Path(source).parent),
            label="y",
            in_place=in_place,
            drop=["id"],
        )
        assert spark.conf.get(zone) == "America/New_York"
    finally:
        spark.conf.set(zone, before)
    features = schema_at(tmp_path / "out").features
    midnight = datetime(2026, 7, 1, tzinfo=UTC).timestamp()
    assert {f.name: f.mean - midnight for f in features} == {
        "day": 0.0,
        "moment": 43_200.0,
        "local": 43_200.0,
        "pandas": 43_200.0,
        "zoned": 43_200.0,
        "part": 0.0,
    }


def test_partitions_and_decimals_become_features_of_a_copy(spark: Any, tmp_path: Path) -> None:
    for country in ("DE", "FR", "__HIVE_DEFAULT_PARTITION__"):
        prices = [Decimal(i) / 4 for i in range(300)]
        folder = tmp_path / "in" / f"country={country}"
        write_parquet(folder, price=pa.array(prices, pa.decimal128(9, 2)))
    prepare.csv(spark, str(tmp_path / "out"), input=str(tmp_path / "in"), label="y")
    price, country = schema_at(tmp_path / "out").features
    assert sorted(country.vocabulary) == ["", "DE", "FR"]
    assert set(frame(tmp_path / "out", "train")["country"]) == {1, 2, 3}
    written = np.concatenate([frame(tmp_path / "out", split)["price"] for split in Split])
    np.testing.assert_allclose(
        np.sort(written * price.deviation + price.mean)[::3], np.arange(300) / 4, atol=1e-4
    )


class TestSynthetic:
    def make(
        self, spark: Any, folder: Path, **options: object
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        settings = {"rows": 4000, "columns": 6, "row_group_rows": 150, "seed": 2, **options}
        prepare.synthetic(spark, str(folder), **settings)
        train = frame(folder, "train")
        x = np.stack([train[f"x{i}"] for i in range(6)], axis=1)
        best = json.loads((folder / "prepared.json").read_text())["answer"]["best"]
        return best, x, train["label"]

    @pytest.mark.parametrize("shape", ["linear", "product"])
    def test_synthetic_classes_have_the_documented_accuracy(
        self, spark: Any, tmp_path: Path, shape: str
    ) -> None:
        best, x, label = self.make(spark, tmp_path / "out", teacher=shape, noise=0.2)
        u, v = teacher(6, 2)
        value = x @ u if shape == "linear" else (x @ u) * (x @ v)
        assert best == {"accuracy": 0.8}
        assert abs(((value > 0) == label).mean() - 0.8) < 0.03
        open_table(str(tmp_path / "out"))

    def test_synthetic_regression_has_the_documented_error(self, spark: Any, tmp_path: Path) -> None:
        best, x, label = self.make(spark, tmp_path / "out", label_type="number", noise=0.5)
        assert best == {"mean_squared_error": 0.25}
        assert abs(((x @ teacher(6, 2)[0] - label) ** 2).mean() - 0.25) < 0.03
        assert abs(label.std() - open_table(str(tmp_path / "out")).schema.label.deviation) < 0.05

    def test_synthetic_row_groups_differ_and_depend_on_the_seed_only(
        self, spark: Any, tmp_path: Path
    ) -> None:
        _, x, _ = self.make(spark, tmp_path / "a")
        files = {split: sorted((tmp_path / "a" / split).glob("*.parquet")) for split in Split}
        assert [row_groups(path) for path in files[Split.TRAIN]] == [[150] * 16, [150] * 5 + [50]]
        assert [row_groups(path) for path in files[Split.TEST]] == [[150, 150, 100]]
        assert len(np.unique(x)) > 0.99 * x.size
        self.make(spark, tmp_path / "b")
        self.make(spark, tmp_path / "c", seed=3)
        assert content(tmp_path / "a") == content(tmp_path / "b")
        assert content(tmp_path / "a") != content(tmp_path / "c")


def test_prepare_leaves_a_running_session_unchanged(spark: Any, tmp_path: Path) -> None:
    """As in a notebook, or on a Databricks cluster whose tasks share a session."""
    with own_session() as found:
        assert prepare.digits(found, str(tmp_path / "digits")).fresh
    assert spark.range(3).count() == 3
    assert (tmp_path / "digits/schema.json").is_file()


def test_prepare_job_prints_one_line_of_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "prepare_data.py", "digits", "--output", tmp_path / "digits"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == f"{tmp_path}/digits: train 1,440, validation 171, test 186 rows\n"
    assert done.stderr.index("starting Spark") < done.stderr.index("writing 1,797 rows")


def test_interrupted_prepare_job_exits_with_130_and_leaves_no_files(tmp_path: Path) -> None:
    options = ["--rows", "900000000", "--columns", "40", "--output", tmp_path / "tables" / "out"]
    job = subprocess.Popen(
        [sys.executable, ROOT / "jobs" / "prepare_data.py", "synthetic", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("tables/.out.*/train/*")):  # Spark writes
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "tables") == []
