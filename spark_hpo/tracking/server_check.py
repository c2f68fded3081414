"""Checks a tracking server: whether it answers, allows writing and has a registry. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spark_hpo.errors import TrackingError
from spark_hpo.redact import hide, one_line, redact
from spark_hpo.timeout import call_within
from spark_hpo.tracking.connection import START_TIMEOUT_S, refuse_folder, sqlite_path
from spark_hpo.tracking.environment import STARTING, environment, quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCheck:
    """The result of a check."""

    message: str
    warnings: tuple[str, ...] = ()


def check_server(uri: str) -> ServerCheck:
    """Ask a server for an experiment, and to create one that exists. For SQLite, check the path only.

    Raises:
        TrackingError: the server does not answer or refuses, or the path cannot be written.
    """
    hide(uri)
    shown = redact(uri)
    database = sqlite_path(uri)
    if database is not None:
        return _of_file(shown, database.absolute())
    refuse_folder(uri)
    from mlflow import MlflowClient

    with environment(STARTING), quiet():
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        try:
            known = call_within(START_TIMEOUT_S, lambda: client.search_experiments(max_results=1))
        except Exception as exc:  # of MLflow, requests or a driver, and with credentials in it
            raise TrackingError(
                f"mlflow.tracking_uri is {shown}: it does not answer: {one_line(exc)}. Start the server or "
                "correct the address; sqlite:///mlflow.db needs no server"
            ) from None
        warnings = []
        if not known:
            warnings.append("it has no experiment, so writing could not be checked")
        else:
            name = known[0].name
            # Without permission this is refused; with it, because the experiment exists.
            refusal = _refusal(lambda: client.create_experiment(name), "RESOURCE_ALREADY_EXISTS")
            if refusal is not None:
                raise TrackingError(
                    f"mlflow.tracking_uri is {shown}: it refuses to write: {refusal}. Use credentials "
                    "that may write (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or a token)"
                )
        registry = _refusal(lambda: client.search_registered_models(max_results=1))
        if registry is not None:
            warnings.append(f"its model registry does not answer: {registry}")
    return ServerCheck(message=f"{shown} answers and accepts runs and models", warnings=tuple(warnings))


def _of_file(shown: str, database: Path) -> ServerCheck:
    """Check the path only: connecting would create the file and run all its migrations."""
    folder = next(folder for folder in database.parents if folder.exists())
    is_there = database.exists()
    needed = [database, folder] if is_there else [folder]
    refused = [path for path in needed if not os.access(path, os.W_OK)]
    if refused or not folder.is_dir() or not os.access(folder, os.X_OK):
        place = next(iter(refused), folder)
        raise TrackingError(
            f"mlflow.tracking_uri is {shown}: {place} cannot be written to: choose a writable place"
        )
    return ServerCheck(message=f"{shown} {'exists' if is_there else 'will be created by the first study'}")


def _refusal(call: Callable[[], object], *allowed: str) -> str | None:
    """Return why a call is refused; None: it is not, or for one of the allowed error codes."""
    try:
        call_within(START_TIMEOUT_S, call)
    except Exception as exc:  # of MLflow or of the network
        return None if getattr(exc, "error_code", None) in allowed else one_line(exc)
    return None
