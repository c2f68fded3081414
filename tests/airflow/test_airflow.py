"""The DAG in a real Airflow, in an environment of its own: `make test-airflow`."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]
AIRFLOW = ROOT / "build/airflow/bin"
LIMIT_S = 600.0
SMALL = "budget.trials=4 search.max_resource=3 resources.world_size=1 'spark={spark.ui.enabled: \"false\"}'"

pytestmark = pytest.mark.timeout(2 * LIMIT_S)


class Airflow:
    """An Airflow with the DAG in its folder, whose workers have spark-submit on their path."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.tracking_uri = f"sqlite:///{home}/mlflow.db"
        (home / "dags").mkdir()
        dag = (ROOT / "jobs/airflow_dag.py").read_text()
        for ours, test in (
            ("JOBS = Path(__file__).parent", f"JOBS = Path({str(ROOT / 'jobs')!r})"),
            ("RETRY_DELAY = timedelta(minutes=2)", "RETRY_DELAY = timedelta(seconds=5)"),
        ):
            assert ours in dag
            dag = dag.replace(ours, test)
        (home / "dags/airflow_dag.py").write_text(dag)
        # Of the environment that has the package, and of this very tree: Airflow's own Python has neither.
        submit = home / "bin/spark-submit"
        submit.parent.mkdir()
        submit.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {Path(sys.executable).parent}/spark-submit "$@"\n'
        )
        submit.chmod(0o755)
        ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SPARK_HOME")}
        self._environment = {
            **ours,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
            "PATH": f"{submit.parent}:{os.environ['PATH']}",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
        }
        self.run("db", "migrate")

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.home / "log.txt").open("wb") as log:
            return subprocess.Popen(
                [str(AIRFLOW / "airflow"), *words],
                cwd=self.home,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *words: str) -> str:
        process = self.popen(*words)
        assert process.wait(LIMIT_S) == 0, self.log[-6000:]
        return self.log

    @property
    def log(self) -> str:
        return (self.home / "log.txt").read_text(errors="replace")

    def test_command(self, folder: str, overrides: str = "") -> list[str]:
        conf = {
            "folder": str(self.home / folder),
            "prepare": "digits --fractions 0.7,0.15,0.15 --row-group-rows 128",
            "overrides": f"{SMALL} mlflow.tracking_uri={self.tracking_uri} {overrides}",
        }
        return ["dags", "test", "spark_hpo_study", "--conf", json.dumps(conf)]

    def answer(self, task_id: str, folder: str) -> dict[str, Any]:
        """A task's result, of the run that worked in a folder."""
        statement = "select value from xcom where task_id = ? and key = 'return_value'"
        for (value,) in self.query(statement, task_id):
            found: dict[str, Any] = json.loads(value)
            found = json.loads(found) if isinstance(found, str) else found
            if f"/{folder}/" in found["study_dir"]:
                return found
        raise AssertionError(f"{task_id} has no result")

    def tasks(self, folder: str) -> dict[str, tuple[str, int]]:
        """State and tries of each task of the run that worked in a folder."""
        [run] = (self.home / folder).iterdir()
        rows = self.query("select run_id, task_id, state, try_number from task_instance")
        return {
            task: (state, tries)
            for run_id, task, state, tries in rows
            if run_id.replace(":", "-").replace("+", "-") == run.name
        }

    def query(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(statement, values).fetchall()

    def champion(self) -> str:
        client = MlflowClient(self.tracking_uri)
        return str(client.get_model_version_by_alias("quickstart", "champion").version)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    return Airflow(tmp_path_factory.mktemp("airflow"))


def events(folder: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*/study/journal/*.jsonl")):
        lines += [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return lines


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], airflow: Airflow) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, airflow.log[-6000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_airflow_reads_the_dag_and_lacks_the_package(airflow: Airflow) -> None:
    lacking = subprocess.run(
        [AIRFLOW / "python", "-c", "import spark_hpo"],
        cwd=airflow.home,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'spark_hpo'" in lacking.stderr
    assert "No data found" in airflow.run("dags", "list-import-errors", "--local")
    tasks = airflow.run("tasks", "list", "spark_hpo_study")
    assert set(tasks.splitlines()) >= {"prepare", "tune", "check", "is_better", "promote"}


def test_a_first_model_is_promoted_and_a_worse_one_stops(airflow: Airflow) -> None:
    airflow.run(*airflow.test_command("first"))
    tuned, checked, promoted = (airflow.answer(task, "first") for task in ("tune", "check", "promote"))
    assert tuned["study"] == "quickstart"
    assert sum(tuned["trials"].values()) == 4
    assert [answer["model"]["is_champion"] for answer in (tuned, checked, promoted)] == [False, False, True]
    assert checked["model"]["is_best"]
    assert airflow.champion() == "1"
    assert {state for state, _ in airflow.tasks("first").values()} == {"success"}

    # Weights that hardly move: no better than chance.
    slow = "'space.learning_rate={type: loguniform, low: 1e-12, high: 1e-11}'"
    airflow.run(*airflow.test_command("second", slow))
    assert airflow.answer("check", "second")["model"]["is_best"] is False
    assert airflow.answer("tune", "second")["model"]["version"] == "2"
    states = {task: state for task, (state, _) in airflow.tasks("second").items()}
    assert states["promote"] == "skipped"
    assert states["is_better"] == "success"
    assert airflow.champion() == "1"


def test_a_task_that_is_told_to_end_pauses_and_its_retry_goes_on_with_the_study(airflow: Airflow) -> None:
    folder = airflow.home / "killed"
    longer = "search.max_resource=27 resources.max_concurrent=1"
    process = airflow.popen(*airflow.test_command("killed", longer))
    try:
        wait_for(lambda: sum(e["event"] == "reported" for e in events(folder)) >= 2, process, airflow)
        [definition] = folder.glob("*/study/study.json")
        before = json.loads(definition.read_text())
        process.terminate()  # dags test runs a task in its own process: what Airflow sends to end a task
        assert process.wait(LIMIT_S) == 0, airflow.log[-6000:]
    finally:
        process.kill()
    assert airflow.tasks("killed")["tune"] == ("success", 2)
    assert {tries for task, (_, tries) in airflow.tasks("killed").items() if task != "tune"} == {1}
    assert json.loads(definition.read_text()) == before, "it is the same study"
    logs = sorted(folder.glob("*/study/journal/*.jsonl"))
    assert len(logs) == 2, "two drivers have written"
    assert json.loads(logs[0].read_text().splitlines()[-1])["reason"] == "interrupted", "it was paused"
    reported = [(e["trial_id"], e["rung"], e["split"]) for e in events(folder) if e["event"] == "reported"]
    assert len(reported) == len(set(reported)), "nothing was run twice"
    answer = airflow.answer("tune", "killed")
    assert answer["segments"]["replayed"] >= 2
    assert sum(answer["trials"].values()) == 4
