"""MLflow's telemetry thread unsets a variable while another thread copies the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import git
import mlflow
import pytest
import tqdm  # noqa: F401 - it copies the environment too, when it is imported

from spark_hpo.errors import TrackingError
from spark_hpo.objective import Mode, Objective
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import StudyCard

NAME = "_MLFLOW_TELEMETRY_SESSION_ID"


@pytest.fixture
def unset_during_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the variable between the listing of names and the reading of values, as the thread may."""
    monkeypatch.setenv(NAME, "session")
    decode: Any = os.environ.decodekey

    def decodekey(key: bytes) -> str:
        name: str = decode(key)
        if name == NAME:
            os.environ.pop(NAME, None)
        return name

    monkeypatch.setattr(os.environ, "decodekey", decodekey)


def run_git() -> None:
    git.Git().execute(["git", "--version"])


def test_gitpython_fails_when_a_variable_is_unset_during_its_copy(unset_during_a_copy: None) -> None:
    with pytest.raises(KeyError, match=NAME):
        run_git()
    run_git()


def tracker(folder: Path) -> MlflowTracker:
    card = StudyCard(
        study_id="study-1",
        name="digits",
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        config={},
        space={},
        git_commit=None,
    )
    return MlflowTracker(f"sqlite:///{folder}/mlflow.db", "digits", card)


def test_tracker_starts_although_a_variable_is_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset_during_a_copy: None
) -> None:
    client = mlflow.MlflowClient

    def with_git(**arguments: Any) -> Any:
        run_git()
        return client(**arguments)

    monkeypatch.setattr(mlflow, "MlflowClient", with_git)
    tracker(tmp_path).close(1.0)


def test_tracker_does_not_blame_the_address_for_a_key_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise KeyError(NAME)

    monkeypatch.setattr(mlflow, "MlflowClient", fail)
    with pytest.raises(TrackingError) as caught:
        tracker(tmp_path)
    assert "tracking_uri" not in str(caught.value)
