"""A temporary working directory and one MLflow database for the ported programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mlflow_database import write_database


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all studies."""
    return write_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(autouse=True)
def _elsewhere(mlflow_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_db)
