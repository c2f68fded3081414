"""A database of MLflow's, made once and copied: its migrations take seconds."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.tracking.connection import connect
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.run_store import StudyCard

Open = Callable[..., MlflowTracker]


def card(study_id: str = "study-1") -> StudyCard:
    return StudyCard(study_id=study_id, name="digits", objective=Objective(metric="accuracy", mode=Mode.MAX))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    connect(f"sqlite:///{path}", "other", card(), registry_uri=None, artifact_location=None)
    return path


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def open_tracker(uri: str) -> Iterator[Open]:
    opened: list[MlflowTracker] = []

    def open_one(study_id: str = "study-1") -> MlflowTracker:
        opened.append(MlflowTracker(uri, "tests", card(study_id)))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.close(10)
