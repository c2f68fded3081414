"""The options of each source, checked without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.encoders import MISSING_TEXTS
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.csv_request import DEFAULT_NULL_VALUES, request
from spark_hpo.prepare.from_synthetic import teacher
from spark_hpo.prepare.sources import find, key_of_study, prepare, with_keys
from spark_hpo.prepare.table_files import for_spark

WHERE = {"where_train": "a < 1", "where_validation": "a = 1", "where_test": "a > 1"}


def no_spark() -> Any:
    pytest.fail("a session was started")


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"a": [1.0], "y": [2]}), tmp_path / "in" / "a.parquet")
    return str(tmp_path / "in")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (WHERE, "where_train"),
        ({"in_place": True, "where_train": "a < 1"}, "where_train"),
        ({"in_place": True, **WHERE, "fractions": [0.6, 0.2, 0.2]}, "fractions"),
        ({"in_place": True, "null_values": ["?"]}, "null_values"),
        ({"in_place": True, "format": "csv"}, "in_place"),
        ({"format": "json"}, "format"),
        ({"label_type": "text"}, "label_type"),
        ({"max_vocabulary": 0}, "max_vocabulary"),
        ({"split": {"key": "a", "group": "b"}}, "split.key"),
        ({"split": {"time": 3}}, "split.time"),
        ({"split": {"key": "a", "fractions": [0.6, 0.2, 0.2]}, "fractions": [0.8, 0.1, 0.1]}, "fractions"),
        ({"split": {"column": "a"}, "fractions": [0.8, 0.1, 0.1]}, "fractions"),
        ({"in_place": True, **WHERE, "split": {"key": "a"}}, "split"),
        ({"categorical": ["a"], "numeric": ["a"]}, "numeric"),
        ({"time": ["y"]}, "time"),
        ({"label": None}, "label"),
    ],
)
def test_prepare_names_an_invalid_option_of_csv(
    table: str, tmp_path: Path, options: dict[str, Any], key: str
) -> None:
    if options == {"label": None}:
        (tmp_path / "in" / "a.parquet").rename(tmp_path / "in" / "a.csv")
        (tmp_path / "in" / "a.csv").write_text("a,y\n1,2\n")
    with pytest.raises(ConfigError) as refused:
        prepare("csv", str(tmp_path / "out"), {"input": table, "label": "y", **options}, no_spark)
    assert refused.value.key == key


@pytest.mark.parametrize("in_place", [False, True])
def test_prepare_refuses_parquet_columns_of_one_name(table: str, tmp_path: Path, in_place: bool) -> None:
    doubled = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["a", "a", "y"])
    pq.write_table(doubled, tmp_path / "in" / "a.parquet")
    with pytest.raises(DataError, match=r"2 columns are named 'a'"):
        prepare("csv", str(tmp_path / "out"), {"input": table, "label": "y", "in_place": in_place}, no_spark)


@pytest.mark.parametrize("output", ["in", "in/out", "."])
def test_prepare_in_place_refuses_an_output_inside_the_table(table: str, tmp_path: Path, output: str) -> None:
    options = {"input": table, "label": "y", "in_place": True}
    with pytest.raises(ConfigError) as refused:
        prepare("csv", str(tmp_path / output), options, no_spark)
    assert refused.value.key == "output"


def test_prepare_starts_spark_when_there_is_something_to_do(table: str, tmp_path: Path) -> None:
    def start_spark() -> Any:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare("csv", str(tmp_path / "out"), {"input": table, "label": "y"}, start_spark)
    assert find("csv", str(tmp_path / "out"), {"input": table, "label": "y"}) is None


@pytest.mark.parametrize(
    ("key", "name"), [("output", "data.path"), ("seed", "data.prepare.seed"), ("a.b", "a.b"), ("", "")]
)
def test_with_keys_names_options_as_a_study_file_does(key: str, name: str) -> None:
    with pytest.raises(ConfigError) as refused, with_keys(key_of_study):
        raise ConfigError("is wrong", key=key)
    assert refused.value.key == name


def test_the_readers_of_a_table_in_place_use_the_same_null_values() -> None:
    assert {"", *DEFAULT_NULL_VALUES} == set(MISSING_TEXTS)


def test_the_teacher_is_two_orthogonal_unit_vectors_of_the_seed() -> None:
    u, v = teacher(20, seed=3)
    assert np.isclose(u @ u, 1)
    assert np.isclose(v @ v, 1)
    assert abs(u @ v) < 1e-6
    assert not np.array_equal(u, teacher(20, seed=4)[0])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/sales.csv", "file:///home/me/sales.csv"),
        ("/Volumes/main/ml/raw/sales.csv", "dbfs:/Volumes/main/ml/raw/sales.csv"),
        ("/dbfs/raw/sales.csv", "dbfs:/raw/sales.csv"),
        ("s3a://lake/sales.csv", "s3a://lake/sales.csv"),
    ],
)
def test_spark_gets_the_name_by_which_its_jvm_knows_a_path(path: str, name: str) -> None:
    assert for_spark(path) == name


def test_request_of_an_earlier_version_stays_valid(tmp_path: Path) -> None:
    """The arguments that are compared with prepared.json are those of the first version."""
    (tmp_path / "a.csv").write_text("a,y\n1,2\n")
    given = request(str(tmp_path / "out"), input=str(tmp_path / "a.csv"), label="y").arguments
    assert {
        key: value for key, value in given.items() if key not in ("input", "input_files", "many_lines")
    } == {
        "table": "csv",
        "format": "csv",
        "label": "y",
        "label_type": "auto",
        "max_vocabulary": 1000,
        "drop": [],
        "null_values": ["NaN", "nan", "NULL", "null"],
        "separator": ",",
        "fractions": [0.8, 0.1, 0.1],
        "seed": 0,
        "row_group_rows": 16_384,
    }
    same = request(
        str(tmp_path / "out"),
        input=str(tmp_path / "a.csv"),
        label="y",
        split={"fractions": [0.7, 0.2, 0.1], "seed": 3},
    )
    assert same.arguments == {**given, "fractions": [0.7, 0.2, 0.1], "seed": 3}
