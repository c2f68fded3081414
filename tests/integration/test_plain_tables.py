"""Studies of tables that nobody has prepared: Parquet is read in place, a CSV is copied."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from spark_hpo.cli import main
from spark_hpo.config import StudyConfig
from spark_hpo.data.schema import Encoding
from spark_hpo.data.table import open_table
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from spark_hpo.errors import ConfigError
from tests.support.command_line import run_in_process
from tests.support.tables import clusters_study
from tests.support.workspace import Workspace, wait_for

pytestmark = pytest.mark.spark


def clouds(rows: int = 600) -> pa.Table:
    rng = np.random.default_rng(5)
    side = rng.integers(0, 2, rows)
    names = np.array(["left", "right"])
    x = rng.normal(size=rows) * 0.8 + side * 2 - 1
    return pa.table({"x": x, "y": rng.normal(size=rows), "colour": names[1 - side], "side": names[side]})


def study(folder: Path, path: Path, mlflow_uri: str, **settings: Any) -> StudyConfig:
    return clusters_study(
        folder,
        data={"path": str(path), "label": "side", "drop": ["colour"], **settings},
        budget={"trials": 2},
        mlflow={"tracking_uri": mlflow_uri, "promote": "never"},
    )


def test_a_parquet_file_is_read_in_place(spark: SparkSession, tmp_path: Path, mlflow_uri: str) -> None:
    path = tmp_path / "clouds.parquet"
    pq.write_table(clouds(), path, row_group_size=10)
    config = study(tmp_path, path, mlflow_uri)
    result = run_study(config)
    assert result.best.metrics["accuracy"] > 0.8

    table = open_table(str(tmp_path / "study/table"))
    assert table.schema.encoding is Encoding.RAW
    assert {feature.name for feature in table.schema.features} == {"x", "y"}
    assert table.rows == 600
    assert list((tmp_path / "study/table").rglob("*.parquet")) == []

    # The description stays as it is: a resume needs no Spark, and neither does MLflow.
    described = (tmp_path / "study/table/schema.json").stat().st_mtime_ns
    more = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 3})})
    assert run_study(more).study.progress.replayed > 0
    assert sync_study(more).is_complete
    assert (tmp_path / "study/table/schema.json").stat().st_mtime_ns == described
    with pytest.raises(ConfigError) as caught:
        run_study(study(tmp_path, path, mlflow_uri, label="colour", drop=["side"]))
    assert "data.label" in str(caught.value)


def test_a_csv_is_copied_into_the_study(spark: SparkSession, tmp_path: Path, mlflow_uri: str) -> None:
    path = tmp_path / "clouds.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "colour", "side"])
        writer.writerows(zip(*clouds().to_pydict().values(), strict=True))
    result = run_study(study(tmp_path, path, mlflow_uri))
    assert result.best.metrics["accuracy"] > 0.8
    path.unlink()
    assert open_table(str(tmp_path / "study/table")).rows == 600
    config = study(tmp_path, path, mlflow_uri)
    more = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 3})})
    assert run_study(more).study.progress.replayed > 0


def test_a_description_before_the_first_trial_may_be_corrected(
    spark: SparkSession, tmp_path: Path, mlflow_uri: str
) -> None:
    path = tmp_path / "clouds.parquet"
    pq.write_table(clouds(), path, row_group_size=10)
    with pytest.raises(ConfigError):  # after the description, because the metric depends on the label
        run_study(study(tmp_path, path, mlflow_uri, label="x"))
    assert open_table(str(tmp_path / "study/table")).schema.label.name == "x"
    run_study(study(tmp_path, path, mlflow_uri))
    assert open_table(str(tmp_path / "study/table")).schema.label.name == "side"


@pytest.mark.slow
def test_gc_deletes_the_copy_that_a_killed_driver_began(spark: SparkSession, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    pacsv.write_csv(clouds(20_000), tmp_path / "clouds.csv")
    process = workspace.start("data={path: clouds.csv, label: side}", "budget.trials=1")
    study_dir = tmp_path / "study"
    wait_for(lambda: any(study_dir.glob(".table.*")), "the copy of the table")
    os.killpg(process.pid, signal.SIGKILL)  # the driver and its JVM
    assert process.wait(60) == -signal.SIGKILL
    assert any(study_dir.glob(".table.*"))
    assert not (study_dir / "table").exists()
    assert run_in_process(main, ["gc", "study"], tmp_path).returncode == 0
    assert list(study_dir.glob(".table.*")) == []
    answer = workspace.run_in_process("data={path: clouds.csv, label: side}", "budget.trials=1")
    assert answer["best"]["value"] > 0.8
