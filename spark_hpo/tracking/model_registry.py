"""Logs and registers the best model. The alias `champion` moves only to a better one.

Models are identified by tags (study, trial, resource), so a driver that died registers nothing twice. They
are not pickled: MLflow stores a directory and calls `<loader_module>._load_pyfunc(directory)`.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spark_hpo.errors import TrackingError, TrackingOutage
from spark_hpo.tracking.downloaded import download_artifacts
from spark_hpo.tracking.environment import WRITING, environment, quiet
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_files import ModelFiles, SavedModel, signature_of
from spark_hpo.tracking.projection import RESOURCE, STUDY_ID, TRIAL_ID
from spark_hpo.tracking.study_runs import is_outage

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PAUSES_S = (1.0, 2.0)  # between attempts, when MLflow does not answer
CHAMPION = "champion"
MLMODEL = "MLmodel"  # the description of a model, as MLflow calls it
FINGERPRINT = "spark_hpo.test_fingerprint"
TEST_PREFIX = "spark_hpo.test."
UNTESTED = "spark_hpo.untested"  # the error that kept the model from being tested
_MAX_TAG = 500  # characters; Unity Catalog takes few more
_MAX_TAGS = 50  # of a version in Unity Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """Metrics on the test split. Results with the same fingerprint are comparable."""

    __test__ = False  # not a test class for pytest

    metrics: Mapping[str, float]  # empty: the model is untested
    fingerprint: str  # of the test split's rows
    error: str | None = None  # why it is untested


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A registered model; name and version are None if it was only logged."""

    name: str | None
    version: str | None
    uri: str  # models:/name/version, or models:/id
    is_champion: bool
    is_best: bool  # the champion, or better than it on the same test rows

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def register_model(
    tracker: MlflowTracker,
    files: ModelFiles | SavedModel,
    *,
    trial_id: int,
    resource: int,
    test: TestResult,
    name: str | None,
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
    promote: bool = True,
    evaluate_champion: Callable[[Path], Mapping[str, float]] | None = None,
) -> RegisteredModel:
    """Log the model to the study's run, register it, and move `champion` to it if it is better. Idempotent.

    Args:
        tracker: open or closed.
        files: the model.
        trial_id: that trained it.
        resource: epochs it was trained for.
        test: its metrics on the test split; the tracker's objective says which one counts.
        name: of the registered model; None: log it only.
        tags: further tags of the model and of its version, as many as the registry takes.
        description: of the version, in Markdown.
        promote: False: it is compared with the champion, and the alias stays where it is.
        evaluate_champion: metrics of the model in a directory (what `model_dir` was for the champion) on our
            test split; called when the champion was tested on another one. None: it then stays champion.

    Raises:
        TrackingOutage: MLflow does not answer.
        TrackingError: it refuses, or the model is not as it must be.
    """
    identity = {STUDY_ID: tracker.card.study_id, TRIAL_ID: str(trial_id), RESOURCE: str(resource)}
    registry = _Registry(tracker, identity, test, tags or {}, description)
    with environment(WRITING), quiet():
        for pause_s in (*_PAUSES_S, None):
            try:
                return registry.register(files, name, promote, evaluate_champion)
            except (
                Exception
            ) as exc:  # of MLflow, requests, SQLAlchemy or a driver, and with credentials in it
                is_over = is_outage(exc)
                if is_over and pause_s is not None:
                    time.sleep(pause_s)
                    continue
                kind = TrackingOutage if is_over else TrackingError
                raise kind(
                    f"the model of trial {trial_id} cannot be registered as {name!r} at "
                    f"{tracker.describe(tracker.tracking_uri)}: {tracker.describe(exc)}. "
                    "The study has the model: rerun the same command with --sync when the cause is fixed"
                ) from None  # the foreign exception carries the credentials
    raise AssertionError("the last attempt returns or raises")


class _Registry:
    """The steps of a registration, each of them idempotent."""

    def __init__(
        self,
        tracker: MlflowTracker,
        identity: Mapping[str, str],
        test: TestResult,
        tags: Mapping[str, str],
        description: str | None,
    ) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._identity = dict(identity)
        self._test = test
        self._description = description
        ours = {
            **identity,
            FINGERPRINT: test.fingerprint,
            **{f"{TEST_PREFIX}{metric}": repr(float(value)) for metric, value in test.metrics.items()},
            **({} if test.error is None else {UNTESTED: test.error[:_MAX_TAG]}),
        }
        others = [(key, value[:_MAX_TAG]) for key, value in tags.items() if key not in ours]
        self._tags = {**ours, **dict(others[: max(0, _MAX_TAGS - len(ours))])}

    def register(
        self,
        files: ModelFiles | SavedModel,
        name: str | None,
        promote: bool,
        evaluate_champion: Callable[[Path], Mapping[str, float]] | None,
    ) -> RegisteredModel:
        version = self.version(name) if name is not None else None
        if version is None:
            model = self.log(files)
            if name is None:
                uri = f"models:/{model.model_id}"
                return RegisteredModel(name=None, version=None, uri=uri, is_champion=False, is_best=False)
            version = self.create_version(name, model)
        number = str(version.version)
        champion = self._champion(version.name)
        is_champion = champion is not None and str(champion.version) == number
        is_best = is_champion or self.is_better(champion, evaluate_champion)
        if is_best and promote and not is_champion:
            self._client.set_registered_model_alias(version.name, CHAMPION, number)
            is_champion = True
        uri = f"models:/{name}/{number}"
        return RegisteredModel(name=name, version=number, uri=uri, is_champion=is_champion, is_best=is_best)

    def version(self, name: str) -> ModelVersion | None:
        """Return the version that an earlier call has registered, or None.

        Only the versions of this study's run are listed: a model may have thousands, and Unity Catalog takes
        a call for the tags of each.
        """
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"run_id = '{self._tracker.run_id}'", page_token=token)
            for version in page:
                if version.name != name:
                    continue
                full = self._in_full(version)
                if self._identity.items() <= dict(full.tags).items():
                    return full
            token = page.token
            if not token:
                return None

    def _in_full(self, version: ModelVersion) -> ModelVersion:
        """Return a version with its tags, which searches in Unity Catalog omit."""
        from mlflow.entities.model_registry.model_version_search import ModelVersionSearch

        if not isinstance(version, ModelVersionSearch):
            return version
        return self._client.get_model_version(version.name, str(version.version))

    def log(self, files: ModelFiles | SavedModel) -> LoggedModel:
        """Log the model to the study's run, if it is not there."""
        from mlflow.entities import LoggedModelOutput

        model = self._logged()
        if model is not None and str(model.status) == "READY":
            return model
        if model is None:
            model = self._client.create_logged_model(
                self._tracker.experiment_id, "model", self._tracker.run_id, tags=self._tags
            )
        # Not log_model: it writes through the process's global tracking URI and active run, prints, and
        # serves the example once. These are its own steps.
        with tempfile.TemporaryDirectory(prefix="spark_hpo-model-") as directory:
            path = Path(directory, "model")
            identity = {
                "artifact_path": model.artifact_location,
                "run_id": self._tracker.run_id,
                "model_uuid": model.model_id,
                "model_id": model.model_id,
            }
            if isinstance(files, SavedModel):
                _copy(files, path, identity)
            else:
                _save(files, path, identity)
            self._client.log_model_artifacts(model.model_id, str(path))
        outputs = self._client.get_run(self._tracker.run_id).outputs
        known = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if model.model_id not in known:  # MLflow refuses to add the same model twice
            self._client.log_outputs(self._tracker.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return self._client.finalize_logged_model(model.model_id, "READY")

    def create_version(self, name: str, model: LoggedModel) -> ModelVersion:
        """Create a version, with the test results as its tags."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # With a database MLflow resolves `models:/id` by the global tracking URI of the process.
        is_database = "+" in (scheme := urlsplit(self._tracker.tracking_uri).scheme) or scheme in _DATABASES
        return self._client.create_model_version(
            name,
            source=model.artifact_location if is_database else f"models:/{model.model_id}",
            run_id=self._tracker.run_id,
            tags=self._tags,
            model_id=model.model_id,
            description=self._description,
        )

    def is_better(
        self, champion: ModelVersion | None, evaluate: Callable[[Path], Mapping[str, float]] | None
    ) -> bool:
        """Return whether our model is strictly better than the champion, or there is no champion."""
        if not self._test.metrics:
            return False  # an untested model is not promoted
        if champion is None:
            return True
        theirs = self._champion_metrics(champion, evaluate)
        objective = self._tracker.card.objective
        return theirs is not None and objective.score(self._test.metrics) < objective.score(theirs)

    def _logged(self) -> LoggedModel | None:
        """Return the model that an earlier call logged, finished or not."""
        found = self._client.search_logged_models(
            [self._tracker.experiment_id],
            " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._identity.items()),
        )
        return next(iter(found), None)

    def _champion(self, name: str) -> ModelVersion | None:
        alias = dict(self._client.get_registered_model(name).aliases).get(CHAMPION)
        return None if alias is None else self._client.get_model_version(name, str(alias))

    def _champion_metrics(
        self, champion: ModelVersion, evaluate: Callable[[Path], Mapping[str, float]] | None
    ) -> Mapping[str, float] | None:
        """Return the champion's metrics on our test split; None: unknown."""
        metric = self._tracker.card.objective.metric
        tags = dict(champion.tags)
        if tags.get(FINGERPRINT) == self._test.fingerprint and f"{TEST_PREFIX}{metric}" in tags:
            tested = (tag.removeprefix(TEST_PREFIX) for tag in tags if tag.startswith(TEST_PREFIX))
            return {name: float(tags[f"{TEST_PREFIX}{name}"]) for name in tested}
        label = f"{champion.name}, version {champion.version}"
        if evaluate is None:
            log.warning(
                "%s was tested on another test split and stays champion. Compare the models yourself", label
            )
            return None
        try:
            with tempfile.TemporaryDirectory(prefix="spark_hpo-champion-") as directory:
                metrics = evaluate(self._download(champion, directory))
        except Exception as exc:  # code of another model may raise anything
            log.warning(
                "%s cannot be evaluated on this test split and stays champion: %s. "
                "Compare the models yourself, and move the alias if the new one is better",
                label,
                self._tracker.describe(exc),
            )
            return None
        if not math.isfinite(metrics.get(metric, math.nan)):
            log.warning("%s has no finite %s on this test split and stays champion", label, metric)
            return None
        return metrics

    def _download(self, version: ModelVersion, directory: str) -> Path:
        """Download a model and return the directory for its loader."""
        from mlflow.models import Model

        uri = f"models:/{version.name}/{version.version}"
        if not self._tracker.registry_uri.startswith("databricks"):  # which needs the name for credentials
            # MLflow would resolve the name by the global registry URI of the process.
            uri = self._client.get_model_version_download_uri(version.name, str(version.version))
        path = download_artifacts(
            uri,
            directory,
            tracking_uri=self._tracker.tracking_uri,
            registry_uri=self._tracker.registry_uri,
        )
        return Path(path, Model.load(str(path)).flavors["python_function"]["data"])


def _save(files: ModelFiles, path: Path, identity: Mapping[str, Any]) -> None:
    """Write a model in the format of MLflow."""
    import mlflow
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path,
        loader_module=files.loader_module,
        data_path=str(files.model_dir),
        code_paths=[str(code) for code in files.code_paths] or None,
        signature=signature_of(files),
        input_example=files.input_example,
        pip_requirements=list(files.pip_requirements),  # given: MLflow infers none in a subprocess
        mlflow_model=Model(**identity),
    )


def _copy(saved: SavedModel, path: Path, identity: Mapping[str, Any]) -> None:
    """Copy a model that is in the format of MLflow, with another identity."""
    from mlflow.models import Model

    shutil.copytree(saved.folder, path)
    described = Model.load(str(path))
    for name, value in identity.items():
        setattr(described, name, value)
    described.save(str(path / MLMODEL))
