"""What is called otherwise on Databricks: experiments are workspace paths, models have three names."""

from __future__ import annotations

import os

_RUNTIME = "DATABRICKS_RUNTIME_VERSION"  # set on every machine of a cluster, and in serverless compute
_CATALOG = "databricks-uc"


def is_runtime() -> bool:
    """Whether this is one of its machines."""
    return bool(os.environ.get(_RUNTIME))


def default_tracking_uri() -> str:
    """The workspace's own MLflow inside of one, else a file."""
    return "databricks" if is_runtime() else "sqlite:///mlflow.db"


def registry_uri(tracking_uri: str, given: str | None) -> str | None:
    """Where models are registered, as MLflow 3 has it: beside a workspace's runs, in Unity Catalog."""
    if given is not None or not _is_workspace(tracking_uri):
        return given
    return tracking_uri.replace("databricks", _CATALOG, 1)  # a profile stays


def experiment(tracking_uri: str, given: str | None, study: str) -> str:
    """The experiment of a study: its name, in a workspace in the folder that everybody may write to."""
    if given is not None or not _is_workspace(tracking_uri):
        return given or study
    return f"/Shared/{study}"


def naming_mistake(tracking_uri: str, registry: str | None, experiment: str, model: str) -> str | None:
    """What Databricks would refuse at the end of a study, and the cure; None where it would not."""
    if _is_workspace(tracking_uri) and not experiment.startswith("/"):
        return (
            f"mlflow.experiment is {experiment!r}; on Databricks it must be a path in the workspace: "
            f"/Shared/{experiment}, or one under /Users"
        )
    is_catalog = (registry or "").partition(":")[0] == _CATALOG
    if is_catalog and (model.count(".") != 2 or not all(model.split("."))):
        return (
            f"the model's name is {model!r}; in Unity Catalog it must be catalog.schema.model: "
            f"set mlflow.registered_model, or mlflow.registry_uri: databricks for the workspace's registry"
        )
    return None


def _is_workspace(tracking_uri: str) -> bool:
    return tracking_uri.partition(":")[0] == "databricks"
