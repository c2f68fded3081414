"""Studies that `init` has written, run without an edit on real tables, beside scikit-learn's models.

A model is sound when it is far better than always giving the same answer, and not much worse than a plain
model of scikit-learn's on the same rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from spark_hpo.data.table import open_table
from tests.support import command_line
from tests.support.command_line import output

ROOT = Path(__file__).parents[2]
ADULT = ROOT.parent / "shared/data/adult/adult.csv"
LIMIT_S = 3600

pytestmark = [pytest.mark.spark, pytest.mark.timeout(LIMIT_S)]


def spark_hpo(folder: Path, *words: str) -> str:
    """Run a command to its end, and return its output."""
    return output(command_line.spark_hpo(folder, *words, limit_s=LIMIT_S))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a study has reached on the test rows, and others on the same."""

    found: float
    same_answer: float  # always the mean, or the most frequent class
    linear: float
    boosted: float

    def __str__(self) -> str:
        return (
            f"study {self.found:.4g}, always the same {self.same_answer:.4g}, linear {self.linear:.4g}, "
            f"boosted trees {self.boosted:.4g}"
        )


def first_study(folder: Path, table: str, *options: str) -> Outcome:
    """Write the study file of a table, run it as it is, and train others on the same rows."""
    spark_hpo(folder, "init", table, *options)
    answer = json.loads(spark_hpo(folder, "run", "my_study.yaml", "--json").splitlines()[-1])
    [prepared] = folder.glob("data/*/schema.json")
    schema = open_table(str(prepared.parent)).schema
    train, test = (split(prepared.parent, name, schema.label.name) for name in ("train", "test"))
    is_category = [bool(f.vocabulary) for f in schema.features for _ in range(int(np.prod(f.shape)))]
    few = [of and train[0][:, i].max() < 255 for i, of in enumerate(is_category)]
    if schema.label.is_regression:
        models: list[Any] = [Ridge(), HistGradientBoostingRegressor(categorical_features=few)]
        same = np.full(len(test[1]), train[1].mean())
        errors = [np.mean((m.fit(*train).predict(test[0]) - test[1]) ** 2) for m in models]
        outcome = Outcome(
            found=answer["test"]["squared_error"],
            same_answer=float(np.mean((same - test[1]) ** 2)),
            linear=float(errors[0]),
            boosted=float(errors[1]),
        )
    else:
        models = [LogisticRegression(max_iter=1000), HistGradientBoostingClassifier(categorical_features=few)]
        scores = [float(m.fit(*train).score(*test)) for m in models]
        outcome = Outcome(
            found=answer["test"]["accuracy"],
            same_answer=float(np.mean(test[1] == np.bincount(train[1]).argmax())),
            linear=scores[0],
            boosted=scores[1],
        )
    print(f"\n{folder.name}: {outcome}; {answer['wall_s']:.0f} s")
    return outcome


def split(folder: Path, name: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(folder / name)
    columns = [
        np.stack(table[c].to_pylist()).reshape(len(table), -1) for c in table.column_names if c != label
    ]
    return np.concatenate(columns, axis=1), np.asarray(table[label])


def test_diabetes_a_number_from_442_rows(tmp_path: Path) -> None:
    frame = datasets.load_diabetes(as_frame=True, scaled=False).frame
    frame.to_csv(tmp_path / "t.csv", index=False)
    spark_hpo(
        tmp_path, "prepare", "csv", "--input", "t.csv", "--label", "target", "--output", "data/diabetes"
    )
    got = first_study(tmp_path, "data/diabetes")
    assert got.found < 0.7 * got.same_answer
    assert got.found < 1.15 * min(got.linear, got.boosted)


def test_breast_cancer_raw_parquet_of_thirty_columns(tmp_path: Path) -> None:
    frame = datasets.load_breast_cancer(as_frame=True).frame
    frame.to_parquet(tmp_path / "cancer.parquet")
    got = first_study(tmp_path, "cancer.parquet", "--label", "target")
    assert got.found > got.same_answer + 0.15
    assert got.found > max(got.linear, got.boosted) - 0.04


def test_wine_three_classes_of_178_rows(tmp_path: Path) -> None:
    frame = datasets.load_wine(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "Barolo", 1: "Grignolino", 2: "Barbera"})
    frame.to_csv(tmp_path / "t.csv", sep=";", decimal=",")
    spark_hpo(tmp_path, "prepare", "csv", "--input", "t.csv", "--label", "target", "--output", "data/wine")
    got = first_study(tmp_path, "data/wine")
    assert got.found > got.same_answer + 0.4
    assert got.found > max(got.linear, got.boosted) - 0.08


def test_digits_one_image(tmp_path: Path) -> None:
    spark_hpo(tmp_path, "prepare", "digits", "--output", "data/digits")
    got = first_study(tmp_path, "data/digits")
    assert got.found > max(0.96, got.linear)


def test_digits_as_a_csv_of_64_columns(tmp_path: Path) -> None:
    datasets.load_digits(as_frame=True).frame.to_csv(tmp_path / "t.csv", index=False)
    spark_hpo(tmp_path, "prepare", "csv", "--input", "t.csv", "--label", "target", "--output", "data/pixels")
    got = first_study(tmp_path, "data/pixels")
    assert got.found > max(got.linear, got.boosted) - 0.02


@pytest.mark.skipif(not ADULT.exists(), reason="the Adult table is not beside the checkout")
def test_adult_text_columns_and_missing_values(tmp_path: Path) -> None:
    words = ["--input", str(ADULT), "--label", "income-per-year", "--output", "data/adult"]
    spark_hpo(tmp_path, "prepare", "csv", *words)
    got = first_study(tmp_path, "data/adult")
    assert got.found > got.same_answer + 0.08
    assert got.found > got.linear
    assert got.found > got.boosted - 0.025


@pytest.mark.skipif(not ADULT.exists(), reason="the Adult table is not beside the checkout")
def test_adult_hours_a_week_a_number_with_text_columns(tmp_path: Path) -> None:
    frame = pd.read_csv(ADULT).sample(8000, random_state=0)
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = ["--input", "t.csv", "--label", "hours-per-week", "--label-type", "number"]
    spark_hpo(tmp_path, "prepare", "csv", *words, "--output", "data/hours")
    got = first_study(tmp_path, "data/hours")
    assert got.found < 0.9 * got.same_answer
    assert got.found < 1.05 * got.linear
