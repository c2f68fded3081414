from pathlib import Path

import pytest

from spark_hpo.errors import TrackingError
from spark_hpo.tracking.connection import resolve, sqlite_path


def test_resolve_makes_a_relative_database_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("sqlite:///a/b/mlflow.db") == f"sqlite:///{tmp_path}/a/b/mlflow.db"
    assert (tmp_path / "a" / "b").is_dir()


def test_resolve_keeps_an_absolute_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db?timeout=5"
    assert resolve(uri) == uri


@pytest.mark.parametrize("uri", ["http://h:5000", "databricks", "databricks://profile", "postgresql://h/db"])
def test_resolve_keeps_other_addresses(uri: str) -> None:
    assert resolve(uri) == uri
    assert sqlite_path(uri) is None


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns", ""])
def test_resolve_refuses_a_file_store(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:///mlflow\.db"):
        resolve(uri)


def test_resolve_names_a_directory_that_cannot_be_created() -> None:
    with pytest.raises(TrackingError, match="/proc/nothing"):
        resolve("sqlite:////proc/nothing/mlflow.db")
