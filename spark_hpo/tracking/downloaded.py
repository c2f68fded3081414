"""Downloads registered models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spark_hpo.errors import TrackingError
from spark_hpo.redact import hide, one_line, redact
from spark_hpo.tracking.connection import resolve
from spark_hpo.tracking.environment import STARTING, environment, quiet

LOADERS = ("spark_hpo_model", "spark_hpo.train.predictor")  # the second one of earlier versions


def download_model(uri: str, folder: Path, *, tracking_uri: str | None = None) -> Path:
    """Download a model of MLflow and return its folder.

    Args:
        uri: such as `models:/name/1` or `models:/name@champion`.
        tracking_uri: None: MLflow's own default.

    Raises:
        TrackingError: there is no such model, or MLflow does not answer.
    """
    import mlflow

    hide(tracking_uri)
    with environment(STARTING), quiet():
        try:
            # MLflow looks up models in databases by the URI of the process.
            with _default_tracking_uri(None if tracking_uri is None else resolve(tracking_uri)):
                found = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
        except TrackingError:
            raise
        except Exception as exc:  # of MLflow, requests, SQLAlchemy or a driver, and with credentials in it
            place = mlflow.get_tracking_uri() if tracking_uri is None else tracking_uri
            raise TrackingError(
                f"{uri} cannot be loaded from {redact(str(place))}: "
                f"{one_line(redact(str(exc)))}. Check the name and the version, and --tracking-uri"
            ) from None
    return Path(found)


def download_artifacts(uri: str, folder: str, *, tracking_uri: str, registry_uri: str) -> Path:
    """Download from a tracking server that is not the default one of the process."""
    import mlflow

    download = mlflow.artifacts.download_artifacts
    if "registry_uri" in inspect.signature(download).parameters:
        uris = {"tracking_uri": tracking_uri, "registry_uri": registry_uri}
        return Path(download(artifact_uri=uri, dst_path=folder, **uris))
    with _default_tracking_uri(tracking_uri):  # MLflow 3.0 uses no other
        return Path(download(artifact_uri=uri, dst_path=folder))


@contextmanager
def _default_tracking_uri(uri: str | None) -> Iterator[None]:
    """Change the tracking URI of the process inside the block; None: leave it."""
    import mlflow

    if uri is None:
        yield
        return
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: not set


def loader_folders(folder: Path) -> tuple[Path, Path | None] | None:
    """Return the folder for our loader and the folder of code in a model of MLflow; None: not our model."""
    from mlflow.models import Model

    flavor = Model.load(str(folder)).flavors.get("python_function", {})
    if flavor.get("loader_module") not in LOADERS:
        return None
    return folder / flavor["data"], folder / flavor["code"] if flavor.get("code") else None
