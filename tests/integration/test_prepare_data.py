"""Preparing tables on a real Spark, read back by a real loader."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.table import open_table
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.from_synthetic import teacher
from spark_hpo.trial import Split

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
ADULT = ROOT / ".." / "shared" / "data" / "adult" / "adult.csv"


def frame(folder: Path, split: str) -> dict[str, np.ndarray]:
    """All columns of a split, in the order of the files."""
    table = pq.read_table(sorted((folder / split).glob("*.parquet")))
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}


def row_groups(path: Path) -> list[int]:
    footer = pq.read_metadata(path)
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def content(folder: Path) -> dict[str, str]:
    """Hashes of the data, by file."""
    files = sorted(folder.glob("*/*.parquet"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


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
    def test_every_digit_is_in_one_split(self, digits: Path) -> None:
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

    def test_row_groups_have_the_rows_asked_for(self, digits: Path) -> None:
        for path in (digits / "train").glob("*.parquet"):
            *whole, rest = row_groups(path)
            assert set(whole) == {100}
            assert 0 < rest <= 100

    def test_the_loader_delivers_images(self, digits: Path) -> None:
        table = open_table(str(digits))
        loader = Loader(table, Split.TRAIN, rank=1, world_size=2, batch_size=64, seed=0, shuffle_window=1000)
        batch = next(iter(next(loader.passes(0, 1))))
        assert batch["pixels"].shape[1:] == (1, 8, 8)
        assert 0 <= float(batch["pixels"].min()) < float(batch["pixels"].max()) <= 1

    def test_the_split_never_moves(self, spark: Any, digits: Path, tmp_path: Path) -> None:
        prepare.digits(spark, str(tmp_path / "again"), row_group_rows=100)
        assert content(tmp_path / "again") == content(digits)
        prepare.digits(spark, str(tmp_path / "coarse"), row_group_rows=1000)
        for split in Split:
            assert len(frame(tmp_path / "coarse", split)["digit"]) == len(frame(digits, split)["digit"])
        prepare.digits(spark, str(tmp_path / "seed"), row_group_rows=100, seed=1)
        assert content(tmp_path / "seed") != content(digits)

    def test_a_second_run_does_nothing(self, spark: Any, digits: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
        assert not prepare.digits(spark, str(digits), row_group_rows=100).fresh
        assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
        with pytest.raises(ConfigError, match="another seed"):
            prepare.digits(spark, str(digits), row_group_rows=100, seed=9)


class TestCsv:
    def test_columns_get_the_kinds_of_their_values(self, table: Path) -> None:
        schema = open_table(str(table)).schema
        assert [(f.name, f.kind) for f in schema.features] == [
            ("age", ColumnKind.NUMERIC),
            ("age_missing", ColumnKind.NUMERIC),
            ("pay.in $", ColumnKind.NUMERIC),
            ("job title", ColumnKind.CATEGORICAL),
        ]
        assert schema.label.classes == ("<=50K", ">50K")
        assert schema.features[1].source == "age"

    def test_vocabularies_are_in_order_of_frequency_and_missing_is_a_category(self, table: Path) -> None:
        [job] = open_table(str(table)).schema.of_kind(ColumnKind.CATEGORICAL)
        assert job.vocabulary[:3] == ("cook", "smith", "")

    def test_numbers_are_standardised_by_the_training_split_and_missing_is_the_mean(
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

    def test_labels_and_codes_still_belong_to_their_rows(
        self, table: Path, people: list[list[object]]
    ) -> None:
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

    def test_equal_rows_fall_into_one_split(self, spark: Any, tmp_path: Path) -> None:
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

    def test_a_float_label_is_a_regression_in_its_own_units(self, spark: Any, tmp_path: Path) -> None:
        rows: list[list[object]] = [[i, i / 7] for i in range(300)]
        source = write_csv(tmp_path / "t.csv", [["x", "y"], *rows])
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="y")
        label = open_table(str(tmp_path / "out")).schema.label
        train = frame(tmp_path / "out", "train")
        assert label.is_regression
        np.testing.assert_allclose([train["y"].mean(), train["y"].std()], [label.mean, label.deviation], 1e-4)
        assert train["y"].max() > 40

    def test_parquet_is_prepared_like_csv(self, spark: Any, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        columns = {
            "x": pa.array([None if i % 50 == 0 else float(v) for i, v in enumerate(rng.normal(size=300))]),
            "on": pa.array([bool(i % 3) for i in range(300)]),
            "when": pa.array([i * 86_400_000_000 for i in range(300)], pa.timestamp("us", "UTC")),
            "blob": pa.array([b"b"] * 300),
            "y": pa.array(rng.integers(0, 3, 300)),
        }
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
        options = {"input": str(tmp_path / "in"), "label": "y"}
        with pytest.raises(DataError, match=r"column 'blob' is binary.*--drop blob"):
            prepare.csv(spark, str(tmp_path / "out"), **options)
        prepare.csv(spark, str(tmp_path / "out"), **options, drop=["blob"])
        schema = open_table(str(tmp_path / "out")).schema
        assert [f.name for f in schema.features] == ["x", "x_missing", "on", "when"]
        assert schema.features[2].vocabulary == ("true", "false")
        assert schema.label.classes == ("0", "1", "2")

    @pytest.mark.parametrize(
        ("rows", "label", "message"),
        [
            ([["a", "y"], [1, 0], [2, 1]], "z", "there is no column 'z': name one of a, y"),
            ([["a", "y"], *[[i, i % 2 or ""] for i in range(100)]], "y", "'y' is missing in 50 of 100 rows"),
            ([["a", "y"]], "y", "0 rows"),
            ([["a", "y"], *[[i, i % 2] for i in range(50)], [1, 2, 3]], "y", "Spark cannot prepare it"),
        ],
        ids=["unknown label", "missing labels", "no rows", "a row of three"],
    )
    def test_bad_input_is_one_clear_message(
        self, spark: Any, tmp_path: Path, rows: list[list[object]], label: str, message: str
    ) -> None:
        source = write_csv(tmp_path / "t.csv", rows)
        with pytest.raises(DataError, match=message):
            prepare.csv(spark, str(tmp_path / "out"), input=source, label=label)
        assert os.listdir(tmp_path) == ["t.csv"]

    @pytest.mark.skipif(not ADULT.parent.is_dir(), reason="the Adult table is not beside the checkout")
    def test_the_adult_table(self, spark: Any, tmp_path: Path) -> None:
        options = {"input": str(ADULT), "label": "income-per-year", "null_values": ["?"]}
        prepared = prepare.csv(spark, str(tmp_path / "out"), **options)
        table = open_table(str(tmp_path / "out"))
        assert sum(prepared.rows.values()) == 32_561
        assert len(table.schema.of_kind(ColumnKind.NUMERIC)) == 6
        assert len(table.schema.of_kind(ColumnKind.CATEGORICAL)) == 8
        assert table.schema.label.classes == ("<=50K", ">50K")
        loader = Loader(table, Split.TEST, rank=0, world_size=1, batch_size=512, seed=0, shuffle_window=None)
        everything = next(loader.passes(0, 1))
        rich = sum(int(batch["income-per-year"].sum()) for batch in everything)
        assert 0.2 < rich / everything.rows < 0.28
        # The rows of the split are given by the hash alone.
        again = spark.read.csv(f"file://{ADULT.resolve()}", header=True).repartition(7)
        shuffled = tmp_path / "shuffled"
        again.write.csv(f"file://{shuffled}", header=True)
        for path in shuffled.glob("[._]*"):
            path.unlink()
        prepare.csv(spark, str(tmp_path / "two"), **{**options, "input": str(shuffled), "format": "csv"})
        assert content(tmp_path / "two") == content(tmp_path / "out")


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
    def test_the_teacher_reaches_the_accuracy_that_is_promised(
        self, spark: Any, tmp_path: Path, shape: str
    ) -> None:
        best, x, label = self.make(spark, tmp_path / "out", teacher=shape, noise=0.2)
        u, v = teacher(6, 2)
        value = x @ u if shape == "linear" else (x @ u) * (x @ v)
        assert best == {"accuracy": 0.8}
        assert abs(((value > 0) == label).mean() - 0.8) < 0.03
        open_table(str(tmp_path / "out"))

    def test_the_teacher_leaves_the_error_that_is_promised(self, spark: Any, tmp_path: Path) -> None:
        best, x, label = self.make(spark, tmp_path / "out", label_type="number", noise=0.5)
        assert best == {"mean_squared_error": 0.25}
        assert abs(((x @ teacher(6, 2)[0] - label) ** 2).mean() - 0.25) < 0.03
        assert abs(label.std() - open_table(str(tmp_path / "out")).schema.label.deviation) < 0.05

    def test_row_groups_have_the_rows_asked_for_and_none_is_like_another(
        self, spark: Any, tmp_path: Path
    ) -> None:
        _, x, _ = self.make(spark, tmp_path / "out")
        files = {split: sorted((tmp_path / "out" / split).glob("*.parquet")) for split in Split}
        assert [row_groups(path) for path in files[Split.TRAIN]] == [[150] * 16, [150] * 5 + [50]]
        assert [row_groups(path) for path in files[Split.TEST]] == [[150, 150, 100]]
        assert len(np.unique(x)) > 0.99 * x.size

    def test_the_rows_are_those_of_the_seed(self, spark: Any, tmp_path: Path) -> None:
        self.make(spark, tmp_path / "a")
        self.make(spark, tmp_path / "b")
        self.make(spark, tmp_path / "c", seed=3)
        assert content(tmp_path / "a") == content(tmp_path / "b")
        assert content(tmp_path / "a") != content(tmp_path / "c")


def test_the_job_prepares_the_digits_and_says_so_in_one_line(tmp_path: Path) -> None:
    def job() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "jobs" / "prepare_data.py", "digits", "--output", tmp_path / "digits"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    assert job().stdout == f"{tmp_path}/digits: train 1,440, validation 171, test 186 rows\n"
    assert job().stdout.endswith("rows (there already)\n")
