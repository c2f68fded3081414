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
from tests.support.lakes import IcebergTable, rows, write_delta
from tests.support.tables import clusters_study

pytestmark = [pytest.mark.spark, pytest.mark.slow]


class Delta:
    """A Delta table in which rows have been deleted."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("deltalake")
        self.folder = folder / "rides"
        for first in (0, 300):
            self.write(rows(first, first + 300), mode="append")
        self.open().delete("id < 40")
        self.version = int(self.open().version())
        self.num_rows = 560

    def write(self, content: Any, **options: Any) -> None:
        from deltalake import WriterProperties

        properties = WriterProperties(max_row_group_size=8)
        write_delta(self.folder, content, writer_properties=properties, **options)

    def open(self) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(str(self.folder))

    def move_on(self) -> None:
        self.write(rows(5000, 5100, more=1.5), mode="overwrite", schema_mode="overwrite")

    def forget(self) -> None:
        self.open().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


class Iceberg:
    """An Iceberg table in which a file has been replaced."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("pyiceberg")
        self._table = IcebergTable(folder / "lake", rows(900, 950), row_group_size=8)
        self._table.table.delete("id >= 0")
        self.version = self._table.append(rows(0, 560))
        self.folder = self._table.folder
        self.num_rows = 560

    def move_on(self) -> None:
        self._table.table.delete("id >= 0")
        self._table.append(rows(5000, 5100))

    def forget(self) -> None:
        for file in (self.folder / "data").glob("*.parquet"):
            file.unlink()


@pytest.mark.parametrize("make", [Delta, Iceberg])
@pytest.mark.parametrize("reader", ["arrow", "petastorm"])
def test_study_resumes_at_the_version_that_it_began_with(
    spark: SparkSession, tmp_path: Path, mlflow_uri: str, make: Any, reader: str
) -> None:
    if reader == "petastorm":
        pytest.importorskip("petastorm")
    table = make(tmp_path)
    config = clusters_study(
        tmp_path,
        data={"path": str(table.folder), "label": "label", "drop": ["id"], "reader": reader},
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
