"""Studies of Delta and Iceberg tables, which resume at their version after the table has moved on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession

from spark_hpo.data.table import open_table
from spark_hpo.driver.run import run_study
from spark_hpo.errors import DataError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.projection import KIND, STUDY_ID
from tests.support.lakes import MovingDelta, MovingIceberg
from tests.support.tables import clusters_study

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(("make", "reader"), [(MovingDelta, "petastorm"), (MovingIceberg, "arrow")])
def test_study_resumes_at_the_version_that_it_began_with(
    spark: SparkSession, tmp_path: Path, mlflow_uri: str, make: Any, reader: str
) -> None:
    for package in ("deltalake", "pyiceberg", *(["petastorm"] if reader == "petastorm" else [])):
        pytest.importorskip(package)
    table = make(tmp_path)
    config = clusters_study(
        tmp_path,
        data={"path": str(table.folder), "label": "label", "split": {"key": "id"}, "reader": reader},
        budget={"trials": 2},
        mlflow={"tracking_uri": mlflow_uri, "promote": "never"},
    )
    first = run_study(config)
    assert first.best.metrics["accuracy"] > 0.8
    table.move_on()
    more = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 3})})
    assert run_study(more).study.progress.replayed > 0
    opened = open_table(str(tmp_path / "study/table"))
    assert opened.rows == table.num_rows
    assert {source.version for source in opened.schema.sources.values()} == {table.version}

    definition = Definition.require(Storage(config.study_dir))
    source = definition.source
    assert source is not None
    assert (source["url"], source["version"]) == (str(table.folder), table.version)
    client = MlflowClient(mlflow_uri)
    [experiment] = client.search_experiments(filter_string=f"name = '{config.experiment}'")
    its_run = f"tags.`{KIND}` = 'study' and tags.`{STUDY_ID}` = '{definition.study_id}'"
    [run] = client.search_runs([experiment.experiment_id], its_run)
    [dataset] = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert str(table.version) in dataset.dataset.source

    table.forget()
    last = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 4})})
    with pytest.raises(DataError, match=rf"{table.version}\) is gone"):
        run_study(last)
