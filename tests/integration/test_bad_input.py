"""Wrong input: one message, the right exit code, nothing started and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from spark_hpo import cli
from tests.support.mlflow_database import write_database
from tests.support.tables import write_clusters

CONFIG = """
name: clusters
study_dir: study
task: tabular
data: {path: table}
objective: {metric: accuracy, mode: max}
space:
  learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}
search: {sampler: random, max_resource: 3}
budget: {trials: 4}
training: {batch_size: 16}
backend: inline
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a table and a study file. Restores what `main` sets for the process."""
    write_clusters(tmp_path / "table")
    write_database(tmp_path)
    (tmp_path / "tune.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def tune(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.tune(["--config", "tune.yaml", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def rewrite(file: Path, **columns: Any) -> None:
    """Replace or add columns; None drops one."""
    table = pq.read_table(file).to_pydict() | columns
    pq.write_table(pa.table({name: c for name, c in table.items() if c is not None}), file, row_group_size=16)


def test_tune_accepts_the_valid_study(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune() == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["trials"]["completed"] >= 1


# An override, and the key, the value or the name that its message must have.
SETTINGS = [
    ("search.shceduler=full", "search.shceduler", "'scheduler'"),
    ("budget.trials=many", "budget.trials", "'many'"),
    ("space.learning_rate.low=1", "space.learning_rate"),
    ("space.learning_rate.low=-1", "space.learning_rate"),
    ("space.learning_rate.type=logunifrom", "space.learning_rate", "loguniform"),
    ("search.sampler=tpee", "search.sampler", "'tpe'"),
    ("search.scheduler=hyperbnad", "search.scheduler", "'hyperband'"),
    ("data.reader=parquet", "data.reader", "'parquet'"),
    ("data.path=nowhere", "nowhere"),
    ("task=tabula", "task", "'tabular'"),
    ("task=my_tasks:Mine", "task", "my_tasks"),
    ("task=mine.py:Mine", "task", "mine.py"),
    ("objective.metric=acuracy", "objective.metric", "'accuracy'"),
    ("objective.also={los: min}", "objective.also", "'loss'"),
    ("space={learning_rate: [0.1, 1]}", "space.learning_rate", "[0.1, 1]"),
    ("study_dir=tune.yaml", "study_dir", "'tune.yaml'"),
    ("data.path=tune.yaml", "data.path", "'tune.yaml'"),
    ("data={path: new, prepare: {source: digits, row_group_rows: x}}", "data.prepare.row_group_rows", "'x'"),
    ("data={path: new, prepare: {source: digitz}}", "data.prepare.source", "'digitz'"),
    ("data={path: new, prepare: [digits, --row-group-rows, x]}", "data.prepare.row_group_rows", "'x'"),
    ("resources.world_size=2", "resources.world_size", "2", "backend: inline"),
    ("mlflow.tracking_uri=http://user:canary@127.0.0.1:9", "mlflow.tracking_uri", "127.0.0.1:9"),
    ("mlflow.tracking_uri=./mlruns", "mlflow.tracking_uri", "sqlite:///"),
]


@pytest.mark.parametrize(
    ("override", "named"),
    [(override, named) for override, *named in SETTINGS],
    ids=[f"{setting[0].partition('=')[0]}{i}" for i, setting in enumerate(SETTINGS)],
)
def test_tune_names_a_wrong_setting_before_anything_runs(
    folder: Path, capfd: pytest.CaptureFixture[str], override: str, named: list[str]
) -> None:
    code = tune(override)
    captured = capfd.readouterr()
    [message] = [line for line in captured.err.splitlines() if named[0] in line]
    assert all(word in message for word in named)
    assert code == (3 if override == "data.path=nowhere" else 2)
    assert "Traceback" not in captured.err
    assert "canary" not in captured.err + captured.out
    if override.startswith(("mlflow", "data={path: new")):
        assert tune() == 0, "put right, the study begins"
    else:
        assert not (folder / "study").exists()


def table_of(rows: int) -> dict[str, Any]:
    return {"x": np.zeros(rows, "f4"), "y": np.zeros(rows, "f4"), "side": np.zeros(rows, "i8")}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": None}, "'x'"),
        ({"x": ["much"] * 60}, "'x'"),
        ({"x": [None] + [1.0] * 59}, "'x'"),
        ({"side": [None] + [1] * 59}, "'side'"),
    ],
    ids=["missing", "text", "null", "null label"],
)
def test_tune_names_a_wrong_column_with_its_split(
    folder: Path, capfd: pytest.CaptureFixture[str], columns: dict[str, Any], message: str, split: str
) -> None:
    file = folder / "table" / split / "part-0.parquet"
    pq.write_table(pa.table(table_of(60)), file, row_group_size=16)
    rewrite(file, **columns)
    assert tune() == 3
    error = capfd.readouterr().err
    assert message in error
    assert split in error
    assert "Traceback" not in error
    assert not (folder / "study").exists()


def test_nan_in_a_feature_ends_the_study_with_file_and_column(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = folder / "table/train/part-0.parquet"
    values = np.array(pq.read_table(file)["x"])
    values[70] = np.nan
    rewrite(file, x=values)
    assert tune() == 3
    error = capfd.readouterr().err.splitlines()[-1]
    assert "part-0.parquet" in error
    assert "'x'" in error
    assert "NaN" in error or "finite" in error


def test_tune_refuses_an_empty_table(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table(table_of(0)), folder / "table/validation/part-0.parquet")
    assert tune() == 3
    assert "validation" in capfd.readouterr().err


def test_tune_names_both_files_of_a_column_that_changes_its_type(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({**table_of(8), "x": np.zeros(8, "i8")}), folder / "table/train/part-1.parquet")
    assert tune() == 3
    error = capfd.readouterr().err
    assert "part-0.parquet" in error
    assert "part-1.parquet" in error


def test_tune_refuses_fewer_rows_than_ranks_before_a_job(
    folder: Path, spark: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table(table_of(1)), folder / "table/test/part-0.parquet")
    assert tune("backend=spark", "resources.world_size=2") == 3
    assert "test" in capfd.readouterr().err


def test_tune_refuses_more_ranks_than_slots_at_once(
    folder: Path, spark: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune("backend=spark", "resources.world_size=3") == 2
    said = capfd.readouterr().err
    assert "resources.world_size" in said
    assert "(got 3)" in said


def test_tune_refuses_gpus_that_spark_does_not_offer_at_once(
    folder: Path, spark: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune("backend=spark", "resources.gpus_per_rank=1") == 2
    assert "resources.gpus_per_rank" in capfd.readouterr().err


def test_study_resumes_with_a_copy_of_its_table(folder: Path) -> None:
    assert tune() == 0
    (folder / "table").rename(folder / "old")
    shutil.copytree(folder / "old", folder / "table", copy_function=shutil.copyfile)
    assert tune() == 0


def test_study_directory_contains_no_credentials(folder: Path) -> None:
    assert tune("mlflow.tracking_uri=sqlite:///canary.db", "spark={fs.key: canary}") == 0
    for file in (folder / "study").rglob("*"):
        assert file.is_dir() or b"canary" not in file.read_bytes(), file


def test_study_that_could_not_start_keeps_its_run_when_it_is_restarted(
    folder: Path, spark: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune("backend=spark", "resources.world_size=3") == 2
    assert tune() == 0
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("clusters")
    runs = client.search_runs([experiment.experiment_id], "tags.`spark_hpo.study_id` != ''")
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_tune_names_a_log_file_that_cannot_be_written(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune("--log-file", "no/such/folder/log") == 2
    assert "--log-file no/such/folder/log" in capfd.readouterr().err


def test_exit_code_of_a_study_whose_trials_all_fail_is_4(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("def train(ctx):\n    raise ValueError('no luck')\n")
    assert tune("task=broken.py:train") == 4
    assert "no luck" in capfd.readouterr().err


def test_tune_refuses_another_configuration_in_the_same_directory(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune() == 0
    capfd.readouterr()
    assert tune("seed=5", "training.batch_size=8") == 2
    error = capfd.readouterr().err
    assert re.search(r"\bseed .*\b0\b.*\(got 5\)", error)
    assert re.search(r"training\.batch_size .*\b16\b.*\(got 8\)", error)
    assert tune("--resume", "never") == 2
    assert "there is a study already" in capfd.readouterr().err
    assert tune("--resume", "must", "study_dir=other") == 2
    assert "there is no study to resume" in capfd.readouterr().err


def test_tune_refuses_to_resume_with_a_changed_table(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune() == 0
    pq.write_table(pa.table(table_of(8)), folder / "table/train/part-1.parquet")
    assert tune() == 2
    assert "files of the table have changed" in capfd.readouterr().err
