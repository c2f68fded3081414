"""The sections and settings of a study file, and their checks.

The docstrings below the settings are the reference that users read (`docs/settings.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from spark_hpo.config import databricks
from spark_hpo.config.data import DataConfig
from spark_hpo.config.learn import check_training
from spark_hpo.config.limits import BudgetConfig, StoppingConfig
from spark_hpo.config.messages import as_config_error, mistake, section_of
from spark_hpo.config.notify import NotifyConfig
from spark_hpo.config.objective import ObjectiveConfig
from spark_hpo.config.resources import ResourcesConfig
from spark_hpo.config.search import SearchConfig
from spark_hpo.config.section import Section, Url
from spark_hpo.config.study_file import read_study_file
from spark_hpo.config.training import TrainingConfig
from spark_hpo.errors import located
from spark_hpo.redact import hide


def _model_name(value: Any) -> Any:
    if isinstance(value, str) and not _MODEL_NAME.match(value):
        raise mistake(
            "becomes part of paths and URLs: it must not contain '/', ':', quotes or control characters, "
            "and must not begin with a dot",
            value=value,
        )
    return value


_MODEL_NAME = re.compile(r"^(?!\.)[^/\\:'\"`\x00-\x1f\x7f]{1,255}$")


class MlflowConfig(Section):
    """Where results and models are recorded."""

    tracking_uri: str = Field(default_factory=databricks.default_tracking_uri)
    """Tracking server. Default: the file `sqlite:///mlflow.db`; on Databricks the workspace."""
    registry_uri: str | None = None
    """Model registry. Default: the tracking server's; for a Databricks workspace, Unity Catalog."""
    experiment: str | None = None
    """Default: the name of the study; in a Databricks workspace, below `/Shared`."""
    registered_model: Annotated[str | None, BeforeValidator(_model_name)] = None
    """Default: the name of the study. In Unity Catalog: `catalog.schema.model`."""
    promote: Literal["auto", "never"] = "auto"
    """`auto`: the alias `champion` moves to the new model if it is better on the same test rows. `never`: the
    model is registered and compared only; `--sync mlflow.promote=auto` moves the alias later."""


class StudyConfig(Section):
    """A study: one search for the best model of one table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    """Letters, digits and `_.-`. Also the default name of the MLflow experiment and of the registered
    model."""
    study_dir: Url
    """Directory for the whole state of the study: a local path or any fsspec URL that driver and executors
    can reach."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of proposed parameters, of initial weights and of the order of rows."""
    task: str
    """A shipped task (`tabular`, `image`, `sequence`, `text` or `forecast`), `module:Name`, or
    `path/to/file.py:Name` with a path relative to the study file."""
    data: DataConfig | None = None
    """Required, except for a training function that loads its own data."""
    objective: ObjectiveConfig
    space: dict[str, Any]
    """Parameters to tune, by name: `{learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}}`."""
    search: SearchConfig
    budget: BudgetConfig
    stopping: StoppingConfig = StoppingConfig()
    training: TrainingConfig = TrainingConfig()
    backend: Literal["auto", "spark", "driver", "local", "inline"] = "spark"
    """Where trials run. `spark`: on executors. `local`: in processes of this machine, without Spark or Java.
    `auto`: `spark` if a session runs or a cluster is named, else `local`. `driver`: in threads of the driver,
    for training functions that start Spark jobs (`docs/spark-ml.md`). `inline`: one at a time, in the
    driver's own thread, for debugging."""
    resources: ResourcesConfig = ResourcesConfig()
    spark: dict[str, str] = {}
    """Spark settings, used if the study has to start a session."""
    mlflow: MlflowConfig = MlflowConfig()
    notify: NotifyConfig | None = None
    """Messages to a webhook. Without this section, there are none."""

    _source: str = PrivateAttr(default="study")

    @model_validator(mode="before")
    @classmethod
    def _hide_credentials(cls, record: Any) -> Any:
        hide(record)
        return record

    @model_validator(mode="before")
    @classmethod
    def _short_form_of_folds(cls, record: Any) -> Any:
        """Accept `data.folds`, which cross-validates a study that is written for epochs."""
        data, search = record.get("data"), record.get("search")
        if not (isinstance(data, Mapping) and isinstance(search, Mapping) and "folds" in data):
            return record
        if "resource" in search:
            raise mistake(
                "and search.resource exclude each other",
                key="data.folds",
                cure="Remove it, or write search: {resource: folds, max_resource: FOLDS, epochs: EPOCHS}",
            )
        epochs = {"epochs": search["max_resource"]} if "max_resource" in search else {}
        folds = {**search, "resource": "folds", **epochs, "max_resource": data["folds"]}
        left = {key: value for key, value in data.items() if key != "folds"}
        return {**record, "data": left, "search": folds}

    def __eq__(self, other: object) -> bool:
        """Compare settings; where they were written does not matter."""
        return isinstance(other, StudyConfig) and self.model_dump() == other.model_dump()

    @property
    def needs_spark(self) -> bool:
        """True if trials run on a Spark session."""
        return self.backend in ("spark", "driver")

    @property
    def source(self) -> str:
        """The study file, or the call that made this configuration, for messages."""
        return self._source

    def with_source(self, source: str) -> Self:
        """Return the same configuration with another source."""
        config = self.model_copy()
        config._source = source
        return config

    def beside(self, path: str) -> Path:
        """Resolve a path that is relative to the study file."""
        return (Path(self._source).parent / path).resolve()

    @property
    def registry_uri(self) -> str | None:
        """The model registry; None: the tracking server's."""
        return databricks.registry_uri(self.mlflow.tracking_uri, self.mlflow.registry_uri)

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment."""
        return databricks.experiment(self.mlflow.tracking_uri, self.mlflow.experiment, self.name)

    @property
    def registered_model(self) -> str:
        """Name of the registered model."""
        return self.mlflow.registered_model or self.name

    @model_validator(mode="after")
    def _names_fit_databricks(self) -> StudyConfig:
        databricks.check_names(
            self.mlflow.tracking_uri, self.registry_uri, self.experiment, self.registered_model
        )
        return self

    @model_validator(mode="after")
    def _patience_needs_epochs(self) -> StudyConfig:
        if self.search.resource != "epochs" and self.training.patience is not None:
            raise mistake(
                f"counts epochs, but with search.resource: {self.search.resource} metrics are not measured "
                "after each epoch",
                key="training.patience",
                value=self.training.patience,
                cure="Remove it",
            )
        return self

    @model_validator(mode="after")
    def _training_can_learn(self) -> StudyConfig:
        check_training(self.search.learn, self.training)
        return self

    @model_validator(mode="after")
    def _resources_fit_the_backend(self) -> StudyConfig:
        resources, is_driver = self.resources, self.backend == "driver"
        if self.backend in ("inline", "driver") and resources.most_ranks != 1:
            slots = ", or resources.slots_per_trial for the task slots of a trial" if is_driver else ""
            raise mistake(
                f"must be 1 with backend: {self.backend}",
                key="resources.world_size",
                value=resources.world_size,
                cure=f"Set resources.world_size: 1 or backend: spark{slots}",
            )
        if is_driver and resources.gpus_per_rank:
            raise mistake(
                "must be 0 with backend: driver, because trials run in the driver, and their Spark jobs get "
                "GPUs by Spark's own settings",
                key="resources.gpus_per_rank",
                value=resources.gpus_per_rank,
                cure="Remove it, and set spark.task.resource.gpu.amount",
            )
        if resources.slots_per_trial != 1 and not is_driver:
            raise mistake(
                "applies to backend: driver only",
                key="resources.slots_per_trial",
                value=resources.slots_per_trial,
                cure="Remove it, or use resources.world_size for the ranks of a trial",
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: of the study file, YAML.
        overrides: `key.key=value`, the value in YAML: `budget.trials=50`, `space.dropout={type: ...}`.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong: one line for each mistake.
    """
    return build_config(read_study_file(path, overrides), place=str(path))


def build_config(
    record: Mapping[str, Any], *, place: str, names: Mapping[str, str] | None = None
) -> StudyConfig:
    """Check a study that is given as a mapping.

    Args:
        record: the sections and settings of a study file.
        place: where the mapping was written, for messages; relative task files are looked up beside it.
        names: how the user calls a setting, by its dotted key, where that is another name.

    Raises:
        ConfigError: one line for each mistake.
    """
    with located(place):
        try:
            config = StudyConfig.model_validate(dict(record))
        except ValidationError as exc:
            # Not chained: pydantic's message shows all values, secret ones too.
            raise as_config_error(exc, StudyConfig, names or {}) from None
    return config.with_source(place)


def defaults() -> dict[str, Any]:
    """Return the default of each setting that has one, by dotted key, as JSON values."""
    return dict(_defaults(StudyConfig, ""))


def _defaults(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if (section := section_of(field.annotation)) is not None:
            yield from _defaults(section, f"{prefix}{name}.")
        elif not field.is_required():
            value = field.get_default(call_default_factory=True)
            yield prefix + name, list(value) if isinstance(value, tuple) else value
