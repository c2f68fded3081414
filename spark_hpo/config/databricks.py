"""Defaults and names on Databricks: experiments are workspace paths, models have three-part names."""

from __future__ import annotations

import os

from spark_hpo.config.messages import mistake

_RUNTIME = "DATABRICKS_RUNTIME_VERSION"  # set on every machine of a cluster, and in serverless compute
_CATALOG = "databricks-uc"


def is_runtime() -> bool:
    """Return True if this process runs on Databricks."""
    return bool(os.environ.get(_RUNTIME))


def default_tracking_uri() -> str:
    """Return the workspace's MLflow on Databricks, elsewhere a local file."""
    return "databricks" if is_runtime() else "sqlite:///mlflow.db"


def registry_uri(tracking_uri: str, given: str | None) -> str | None:
    """Return the model registry: as in MLflow 3, Unity Catalog for runs in a workspace."""
    if given is not None or not _is_workspace(tracking_uri):
        return given
    return tracking_uri.replace("databricks", _CATALOG, 1)  # keeps a profile


def experiment(tracking_uri: str, given: str | None, study: str) -> str:
    """Return the experiment of a study: its name, in a workspace below the folder that all may write to."""
    if given is not None or not _is_workspace(tracking_uri):
        return given or study
    return f"/Shared/{study}"


def check_names(tracking_uri: str, registry: str | None, experiment: str, model: str) -> None:
    """Refuse names that Databricks would refuse at the end of a study.

    Raises:
        ValueError: with a ConfigError, for pydantic.
    """
    if _is_workspace(tracking_uri) and not experiment.startswith("/"):
        raise mistake(
            "must be a path in the workspace on Databricks",
            key="mlflow.experiment",
            value=experiment,
            cure=f"Use /Shared/{experiment}, or a path below /Users",
        )
    is_catalog = (registry or "").partition(":")[0] == _CATALOG
    if is_catalog and (model.count(".") != 2 or not all(model.split("."))):
        raise mistake(
            "must be catalog.schema.model in Unity Catalog",
            key="mlflow.registered_model",
            value=model,
            cure="Set it, or set mlflow.registry_uri: databricks to use the workspace's registry",
        )


def _is_workspace(tracking_uri: str) -> bool:
    return tracking_uri.partition(":")[0] == "databricks"
