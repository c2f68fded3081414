"""Sixteen concurrent studies in one process, with one Spark session and one MLflow database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState
from tests.support.many_studies import TRIALS, rows_of

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
STUDIES = 16
LIMIT_S = 600.0
SCRIPT = Path(__file__).parents[1] / "support/many_studies.py"


@pytest.mark.spark
@pytest.mark.timeout(LIMIT_S + 30)
def test_sixteen_concurrent_studies_give_the_results_of_single_ones(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(STUDIES)],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ends"] == ["interrupted", *["trials"] * STUDIES]
    assert found["threads"] == []
    assert found["held"] == []

    started = 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("many")
    for number in range(STUDIES):
        journal = Journal(Storage(tmp_path / f"study-{number}"), ACCURACY)
        events = [event.kind for event in journal.past]
        assert EventKind.LOST not in events
        started += events.count(EventKind.ASSIGNED)
        trials = journal.trials.values()
        assert len(trials) == TRIALS
        assert {trial.state for trial in trials} <= {
            TrialState.COMPLETED,
            TrialState.STOPPED,
            TrialState.PAUSED,
        }
        rows = {point.rows for trial in trials for point in trial.curve}
        assert rows == {rows_of(number)}, "a report of another study's table"
        study_id = json.loads((tmp_path / f"study-{number}/study.json").read_text())["study_id"]
        runs = client.search_runs([experiment.experiment_id], f"tags.`spark_hpo.study_id` = '{study_id}'")
        assert len(runs) == TRIALS + 1
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert len(client.search_model_versions(f"name = 'study-{number}'")) == 1
    of_trials = [tag for tag in found["tags"] if not tag.startswith("spark_hpo-probe")]
    assert len(set(of_trials)) == len(of_trials) == started
    assert len(found["tags"]) == started + 1, "the session was warmed up once"
