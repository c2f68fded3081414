"""Connects to a tracking server. Errors come within seconds and contain no credentials."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from spark_hpo.errors import TrackingError
from spark_hpo.redact import hide, one_line, redact
from spark_hpo.timeout import call_within
from spark_hpo.tracking.environment import STARTING, STARTING_SQLITE, environment, quiet
from spark_hpo.tracking.study_runs import StudyCard, StudyRuns

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

START_TIMEOUT_S = 10.0  # for a server
DATABASE_TIMEOUT_S = 120.0  # for a database: its tables may have to be made or migrated


def usual_uri(study_dir: str) -> str:
    """Return the default tracking URI: the one set by MLFLOW_TRACKING_URI, `mlflow.set_tracking_uri` or
    Databricks, else SQLite beside the study directory."""
    import mlflow

    if mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
        return str(mlflow.get_tracking_uri())
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return "databricks"
    folder = Path() if "://" in study_dir else Path(study_dir).parent
    return f"sqlite:///{folder / 'mlflow.db'}"


def resolve(uri: str) -> str:
    """Return a URI with an absolute SQLite path, whose directory is created. A file store is refused."""
    hide(uri)
    refuse_folder(uri)
    path = sqlite_path(uri)
    if path is None:
        return uri
    absolute = path.absolute()
    try:
        absolute.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise TrackingError(
            f"mlflow.tracking_uri is {uri}: cannot make {absolute.parent}: {exc.strerror}. "
            "Choose a writable place"
        ) from exc
    query = uri.partition("?")[2]
    return f"{urlsplit(uri).scheme}:///{absolute}" + (f"?{query}" if query else "")


def refuse_folder(uri: str) -> None:
    """Raise TrackingError for a file store, which MLflow 3.13 and later refuse."""
    if urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks"):
        raise TrackingError(
            f"mlflow.tracking_uri is {redact(uri)!r}: MLflow no longer supports plain directories. "
            "Use sqlite:///mlflow.db, or http://HOST:PORT of a tracking server"
        )


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for other URIs and databases in memory."""
    scheme, _, rest = uri.partition("://")
    text = rest.partition("?")[0].removeprefix("/")
    if not (scheme == "sqlite" or scheme.startswith("sqlite+")) or text in ("", ":memory:"):
        return None
    return Path(text)


def connect(
    uri: str, experiment: str, card: StudyCard, *, registry_uri: str | None, artifact_location: str | None
) -> StudyRuns:
    """Return the study's runs at a URI. The experiment and the study's run are created if missing.

    Raises TrackingError within 10 seconds for a server, 120 for a database.
    """
    hide([uri, registry_uri])
    is_server = urlsplit(uri).scheme in ("http", "https")
    limit_s = START_TIMEOUT_S if is_server else DATABASE_TIMEOUT_S

    def start() -> StudyRuns:
        with _alone(uri):  # MLflow creates and migrates tables without a lock
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry_uri or uri)
            experiment_id = _experiment_id(client, uri, experiment, artifact_location)
        store = StudyRuns(client, experiment_id, card)
        store.describe_experiment()
        store.describe()
        return store

    # The import takes seconds, which must not count as the server's.
    import mlflow

    is_pool_ours = sqlite_path(uri) is not None and "MLFLOW_SQLALCHEMYSTORE_POOLCLASS" not in os.environ
    with environment(STARTING_SQLITE if is_pool_ours else STARTING), quiet():
        try:
            try:
                return call_within(limit_s, start)
            except KeyError:
                # MLflow's telemetry thread unsets a variable, once, while GitPython copies os.environ.
                return call_within(limit_s, start)
        except TrackingError:
            raise
        except KeyError as exc:
            raise TrackingError(f"MLflow failed in this process, not at its address: {exc!r}") from None
        except Exception as exc:  # of MLflow, requests, SQLAlchemy or a driver, and with credentials in it
            raise TrackingError(
                f"mlflow.tracking_uri is {redact(uri)}, experiment {experiment!r}: cannot start there: "
                f"{one_line(exc)}. {'Start the server or correct' if is_server else 'Correct'} the address; "
                "sqlite:///mlflow.db needs no server"
            ) from None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Lock an SQLite file against studies that start at the same time, in threads or processes."""
    database = sqlite_path(uri)
    if database is None:
        yield
        return
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _experiment_id(client: MlflowClient, uri: str, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        if location is None and database is not None:
            # MLflow would take ./mlruns of the current directory.
            location = (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)  # made by another study at the same time
        assert found is not None, "it exists already"
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"mlflow.experiment is {name!r}, which is deleted: restore it "
            f"(mlflow experiments restore --experiment-id {found.experiment_id}), or choose another name"
        )
    return str(found.experiment_id)
