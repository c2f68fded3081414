"""What the command line decides without Spark: nothing here starts a session."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from spark_hpo.data.encoders import MISSING_TEXTS
from spark_hpo.prepare import cli, main
from spark_hpo.prepare.from_csv import DEFAULT_NULL_VALUES
from spark_hpo.prepare.from_synthetic import teacher
from spark_hpo.prepare.reading import _for_spark

JOB = Path(__file__).parents[3] / "jobs" / "prepare_data.py"


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_session", lambda: pytest.fail("a session was started"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--fractions", "0.8,0.1"], "fractions are [0.8, 0.1]; they must be three numbers"),
        (["digits", "--fractions", "0.8,0.3,-0.1"], "must be three numbers above 0"),
        (["digits", "--row-group-rows", "0"], "row_group_rows is 0; it must be at least 1"),
        (["synthetic", "--rows", "9", "--columns", "1"], "it takes at least 3 x 2"),
        (["synthetic", "--rows", "9", "--columns", "2", "--noise", "0.5"], "below 0.5 for classes"),
    ],
)
def test_a_wrong_argument_is_exit_2_with_place_and_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_input_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--input", "none.csv", "--label", "y", "--output", str(tmp_path / "out")]
    assert main(["csv", *arguments]) == 3
    assert capsys.readouterr().err.startswith("error: none.csv: no such file or folder")


IN_PLACE = ["csv", "--input", "{t}/in", "--label", "y", "--in-place"]
WHERE = ["--where-train", "a < 1", "--where-validation", "a = 1", "--where-test", "a > 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*IN_PLACE[:-1], *WHERE], "--where-train is for tables that are read in place: add --in-place"),
        ([*IN_PLACE, *WHERE[:2]], "--where-train is given without --where-validation, --where-test: give"),
        ([*IN_PLACE, *WHERE, "--fractions", "0.6,0.2,0.2"], "both --fractions and conditions"),
        ([*IN_PLACE, "--null-values", "?"], "--null-values is for copies"),
        ([*IN_PLACE, "--format", "csv"], "--in-place is for Parquet, and this is csv: leave it out"),
        ([*IN_PLACE, "--output", "{t}/in/out"], "in/out: lies in the table, or the table in it"),
        ([*IN_PLACE, "--output", "{t}"], "lies in the table, or the table in it: name another --output"),
    ],
)
def test_a_table_that_cannot_be_used_in_place_so_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").touch()
    given = ["--output", "{t}/out", *arguments[1:]]
    assert main(["csv", *(argument.format(t=tmp_path) for argument in given)]) == 2
    assert message in capsys.readouterr().err


def test_the_readers_of_a_table_in_place_take_the_same_texts_for_missing() -> None:
    assert {"", *DEFAULT_NULL_VALUES} == set(MISSING_TEXTS)


def test_the_job_exits_with_the_code_of_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["prepare_data.py", "csv", "--input", "n", "--label", "y", "--output", "o"]
    )
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(JOB), run_name="__main__")
    assert exit.value.code == 3
    assert "Traceback" not in capsys.readouterr().err


def test_the_teacher_is_two_orthogonal_unit_vectors_of_the_seed() -> None:
    u, v = teacher(20, seed=3)
    assert np.isclose(u @ u, 1)
    assert np.isclose(v @ v, 1)
    assert abs(u @ v) < 1e-6
    assert not np.array_equal(u, teacher(20, seed=4)[0])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/me/sales.csv", "file:///home/me/sales.csv"),
        ("/Volumes/main/ml/raw/sales.csv", "dbfs:/Volumes/main/ml/raw/sales.csv"),
        ("/dbfs/raw/sales.csv", "dbfs:/raw/sales.csv"),
        ("s3a://lake/sales.csv", "s3a://lake/sales.csv"),
    ],
)
def test_spark_is_given_the_name_by_which_its_jvm_knows_a_place(place: str, name: str) -> None:
    assert _for_spark(place) == name
