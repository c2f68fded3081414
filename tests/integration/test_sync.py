"""`sync_study` writes what MLflow is missing from the journal, and registers the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from spark_hpo.config import StudyConfig
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from spark_hpo.errors import ConfigError, LeaseError, StudyInterrupted
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.study_runs import RunStatus
from tests.support.interrupting import StopAfter
from tests.support.mlflow_database import write_database
from tests.support.mlflow_server import runs
from tests.support.tables import clusters_study, write_clusters

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)


def config(folder: Path, database: str = "mlflow", **changes: Any) -> StudyConfig:
    mlflow = {"tracking_uri": f"sqlite:///{folder}/{database}.db"}
    return clusters_study(folder, **{"mlflow": mlflow, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "table")
    write_database(tmp_path)
    return tmp_path


def shown(config: StudyConfig) -> dict[str, dict[str, Any]]:
    """Return all data of the study in MLflow."""
    client = MlflowClient(config.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("clusters")
    [parent] = client.search_runs([experiment.experiment_id], "tags.`spark_hpo.kind` = 'study'")
    place = SimpleNamespace(client=client, experiment_id=experiment.experiment_id, run_id=parent.info.run_id)
    return runs(place)  # type: ignore[arg-type] # it asks for nothing else


def test_sync_writes_what_the_driver_would_have_written(folder: Path) -> None:
    result = run_study(config(folder))
    there, elsewhere = config(folder), config(folder, "other")
    synced = sync_study(elsewhere)
    assert synced.is_complete
    assert (synced.status, synced.trials, synced.written) == (RunStatus.FINISHED, 4, 4)
    expected, found = shown(there), shown(elsewhere)
    for study in (expected["clusters"], found["clusters"]):
        study["params"].pop("mlflow.tracking_uri")
        # When they were written; that they are the same is what matters.
        study["metrics"] = {name: points[-1][1] for name, points in study["metrics"].items()}
    assert found == expected
    assert result.model is not None
    assert synced.model == result.model
    assert result.is_tracked

    again = sync_study(elsewhere)
    assert (again.written, again.model) == (0, synced.model)
    assert len(MlflowClient(elsewhere.mlflow.tracking_uri).search_model_versions("name = 'clusters'")) == 1


def test_sync_registers_the_model_as_champion(folder: Path) -> None:
    def with_promotion(promote: str) -> StudyConfig:
        uri = config(folder).mlflow.tracking_uri
        return config(folder, mlflow={"tracking_uri": uri, "promote": promote})

    def aliases() -> dict[str, Any]:
        return dict(MlflowClient(config(folder).mlflow.tracking_uri).get_registered_model("clusters").aliases)

    model = run_study(with_promotion("never")).model
    assert model is not None
    assert (model.version, model.is_champion, model.is_best, aliases()) == ("1", False, True, {})
    compared = sync_study(with_promotion("never"))
    assert (compared.model, aliases()) == (model, {})
    promoted = sync_study(with_promotion("auto")).summary()["model"]
    assert (promoted["version"], promoted["is_champion"]) == ("1", True)
    assert {name: str(version) for name, version in aliases().items()} == {"champion": "1"}


def test_sync_is_refused_while_a_driver_runs(folder: Path) -> None:
    run_study(config(folder))
    driver = Journal.open(Storage(folder / "study"), ACCURACY)
    with pytest.raises(LeaseError, match="study is locked"):
        sync_study(config(folder))
    driver.settled([0], driver.trials[0].state)  # it has not lost it
    driver.close()
    synced = sync_study(config(folder))
    assert synced.is_complete
    assert synced.status is RunStatus.FINISHED, "a driver that has done nothing has changed nothing"


def test_sync_shows_an_interrupted_study_which_can_resume(folder: Path) -> None:
    with pytest.raises(StudyInterrupted):
        run_study(config(folder), callbacks=[StopAfter(2)])
    synced = sync_study(config(folder, "other"))
    assert (synced.status, synced.model) == (RunStatus.KILLED, None)
    result = run_study(config(folder, "other"))
    assert result.study.progress.replayed == 2
    assert result.model is not None
    found = shown(config(folder, "other"))
    assert len(found) == 5
    assert {run["status"] for run in found.values()} == {"FINISHED"}


def test_sync_shows_a_study_with_a_killed_driver_as_failed(folder: Path) -> None:
    run_study(config(folder))
    log = folder / "study/journal/000001.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"event":"assigned"' in line)
    log.write_bytes(b"".join(lines[: last + 1]))  # while a trial was tested
    synced = sync_study(config(folder, "other"))
    assert (synced.status, synced.model) == (RunStatus.FAILED, None)
    assert shown(config(folder, "other"))["clusters"]["status"] == "FAILED"


def test_sync_without_a_study_writes_nothing(folder: Path) -> None:
    (folder / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match="there is no study here"):
        sync_study(config(folder))
    assert not (folder / "mlflow.db").exists()


def test_sync_refuses_another_study_file(folder: Path) -> None:
    run_study(config(folder))
    with pytest.raises(ConfigError, match=r"\bseed .*\(got 9\)"):
        sync_study(config(folder, seed=9))
