"""`make tune` on Delta and Iceberg tables: begun by the command, resumed after the table has moved on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.cli import tune
from spark_hpo.data.table import open_table
from tests.support.command_line import run_in_process, submit_tune
from tests.support.lakes import MovingDelta, MovingIceberg
from tests.support.mlflow_database import write_database

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]

STUDY = """
name: rides
study_dir: study
task: tabular
data:
  path: {path}
  label: label
  split: {{key: id}}
  reader: {reader}
objective: {{metric: accuracy, mode: max}}
space:
  learning_rate: {{type: loguniform, low: 1e-2, high: 1e-1}}
search: {{max_resource: 3}}
budget: {{trials: 2}}
training: {{batch_size: 16}}
resources: {{world_size: 2, max_concurrent: 1}}
spark: {{spark.master: "local[2]", spark.ui.enabled: "false"}}
mlflow: {{tracking_uri: "sqlite:///mlflow.db", promote: never}}
"""
RUN = ["--config", "tune.yaml"]


def _pinned(folder: Path) -> tuple[int, set[Any]]:
    table = open_table(str(folder / "study/table"))
    return table.rows, {source.version for source in table.schema.sources.values()}


# The command begins each study in a process and a JVM of its own. The runs that resume share the JVM of the
# test: what they know of the study comes from its directory.
@pytest.mark.parametrize(("make", "reader"), [(MovingDelta, "arrow"), (MovingIceberg, "petastorm")])
@pytest.mark.usefixtures("spark")
def test_make_tune_resumes_a_lake_table_at_its_version(tmp_path: Path, make: Any, reader: str) -> None:
    for package in ("deltalake", "pyiceberg", *(["petastorm"] if reader == "petastorm" else [])):
        pytest.importorskip(package)
    table = make(tmp_path)
    write_database(tmp_path)
    (tmp_path / "tune.yaml").write_text(STUDY.format(path=table.folder, reader=reader))
    began = submit_tune(tmp_path, *RUN)
    assert began.returncode == 0, began.stderr[-4000:]
    first = json.loads(began.stdout.splitlines()[-1])
    assert first["best"]["value"] > 0.8
    assert _pinned(tmp_path) == (table.num_rows, {table.version})

    table.move_on()
    resumed = run_in_process(tune, [*RUN, "budget.trials=3"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    answer = json.loads(resumed.stdout.splitlines()[-1])
    assert answer["segments"]["replayed"] == first["segments"]["run"]
    assert sum(answer["trials"].values()) == 3
    assert _pinned(tmp_path) == (table.num_rows, {table.version})

    table.forget()
    gone = run_in_process(tune, [*RUN, "budget.trials=4"], tmp_path)
    assert gone.returncode == 3
    assert f"{table.version}) is gone" in gone.stderr
