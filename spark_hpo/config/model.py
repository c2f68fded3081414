"""The sections and settings of a study file, and their checks.

The docstrings below the settings are the reference that users read (`docs/settings.py`).
"""

from __future__ import annotations

import math
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
from spark_hpo.config.learn import HypergradientConfig, LearnedConfig, check_learned, check_training
from spark_hpo.config.messages import as_config_error, mistake, section_of
from spark_hpo.config.section import (
    FromList,
    NonNegativeNumber,
    Number,
    PositiveInt,
    PositiveNumber,
    Section,
    Url,
)
from spark_hpo.config.study_file import read_study_file
from spark_hpo.config.training import TrainingConfig
from spark_hpo.errors import located
from spark_hpo.objective import Limit, Mode, Objective
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
_MAX_OBJECTIVES = 4


class TransferConfig(Section):
    """Earlier studies to learn from. Parameters are matched by name and range."""

    studies: Annotated[tuple[Url, ...], FromList] = ()
    """Study directories. Each study must have the same metric and mode as this one."""
    num_first: Annotated[int, Field(ge=0)] = 3
    """How many of their best configurations to run first."""
    discount: PositiveNumber = 0.3
    """Weight of an earlier trial relative to a trial of this study."""


class LimitConfig(Section):
    """A constraint on another metric. A trial that violates it ranks below all trials that satisfy it."""

    metric: str
    """A metric that the task reports, or a metric of torchmetrics."""
    at_least: Number | None = None
    """Lower bound."""
    at_most: Number | None = None
    """Upper bound."""

    @model_validator(mode="after")
    def _bounded(self) -> LimitConfig:
        if self.at_least is None and self.at_most is None:
            raise mistake(
                f"the limit on {self.metric!r} has neither at_least nor at_most", cure="Set one of them"
            )
        return self


class ObjectiveConfig(Section):
    """What to optimize, measured on the validation split."""

    metric: str
    """`loss`, a metric that the task reports, or a metric of torchmetrics, such as `auroc`."""
    mode: Literal["min", "max"]
    """Whether a lower or a higher value is better."""
    also: dict[str, Literal["min", "max"]] = {}
    """Further objectives with their modes, at most three: `{latency_ms: min}`. The result is then a Pareto
    front."""
    penalties: dict[str, Number] = {}
    """Metrics with weights; weight times value is added to the loss: `{latency_ms: 0.01}`."""
    limits: Annotated[tuple[LimitConfig, ...], FromList] = ()
    """Constraints on other metrics: `[{metric: latency_ms, at_most: 20}]`. A trial that violates one ranks
    below all trials that satisfy them."""

    def build(self) -> Objective:
        """Build the objective that this section describes."""
        return Objective(
            metric=self.metric,
            mode=Mode(self.mode),
            penalties=tuple(self.penalties.items()),
            limits=tuple(
                Limit(
                    metric=limit.metric,
                    at_least=-math.inf if limit.at_least is None else limit.at_least,
                    at_most=math.inf if limit.at_most is None else limit.at_most,
                )
                for limit in self.limits
            ),
            extra_objectives=tuple((metric, Mode(mode)) for metric, mode in self.also.items()),
        )

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The metrics that the section names, also in penalties and limits, each once."""
        limits = (limit.metric for limit in self.limits)
        return tuple(dict.fromkeys((self.metric, *self.also, *self.penalties, *limits)))

    @model_validator(mode="after")
    def _distinct_and_few(self) -> ObjectiveConfig:
        if self.metric in self.also:
            raise mistake(
                f"contains {self.metric!r}, which is objective.metric already", key="also", cure="Remove it"
            )
        if len(self.also) >= _MAX_OBJECTIVES:
            raise mistake(
                f"has {len(self.also)} metrics; at most {_MAX_OBJECTIVES - 1} are allowed, because with more "
                "nearly every trial is on the Pareto front",
                key="also",
                cure="Turn some of them into limits or penalties",
            )
        return self


class SearchConfig(Section):
    """How parameters are proposed, and how training is allocated to trials. `docs/methods.md` describes all
    methods, samplers, schedulers and explorers with their settings."""

    method: str = "default"
    """A named combination of sampler and scheduler: `default`, `bohb`, `dehb`, `asha`, ..."""
    sampler: str | None = None
    """Replaces the method's sampler: `tpe`, `random`, `grid`, ..., or one from a plugin."""
    sampler_settings: dict[str, Any] = {}
    """Settings of the sampler."""
    scheduler: str | None = None
    """Replaces the method's scheduler: `hyperband`, `asha`, `full`, `successive_halving`, ..., or one from a
    plugin."""
    scheduler_settings: dict[str, Any] = {}
    """Settings of the scheduler."""
    resource: Literal["epochs", "rows", "folds"] = "epochs"
    """What a trial gets more of at a higher rung: `epochs`, or `rows`, equal parts of the training rows. With
    `rows`, each part continues where the one before ended, and metrics are measured at rungs only. With
    `folds`, a trial is cross-validated: its value is the mean over the folds that it has been trained on."""
    max_resource: PositiveInt
    """Epochs, or parts with `resource: rows`, of a fully trained trial; with `folds`, the number of folds."""
    epochs: PositiveInt = 1
    """With `resource: rows`: passes over the table in a fully trained trial. With `folds`: epochs of training
    in each fold, and for the final model."""
    min_resource: PositiveInt | None = None
    """Epochs, parts or folds at the lowest rung. Default: the scheduler's."""
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """Eta: one in this many trials is promoted to the next rung. Default: the scheduler's."""
    enqueue: Annotated[tuple[dict[str, Any], ...], FromList] = ()
    """Configurations to run before all others, such as the one that you use today."""
    constraints: Annotated[tuple[str, ...], FromList] = ()
    """Conditions between parameters: `["hidden_2 <= hidden_1"]`. Proposals that violate one are replaced."""
    explorer: str | None = None
    """Replaces the method's explorer in population based training: `perturbation`, `pb2`, or one from a
    plugin."""
    explore: dict[str, Any] = {}
    """Settings of the explorer, such as `parameters`, `perturbation` and `resample_probability`."""
    transfer: TransferConfig = TransferConfig()
    learn: dict[str, LearnedConfig] = {}
    """With `method: hypergradient`: hyperparameters that each trial learns while it trains, by name:
    `{weight_decay: {low: 1e-6, high: 1, by_layer: true}}`."""
    hypergradient: HypergradientConfig = HypergradientConfig()

    @property
    def unit(self) -> str:
        """The unit of a resource, in the plural."""
        return "parts" if self.resource == "rows" else self.resource

    @property
    def has_folds(self) -> bool:
        return self.resource == "folds"

    def amount(self, resource: int) -> str:
        """Return a resource with its unit: `1 epoch`, `27 parts`."""
        return f"{resource:,} {self.unit.removesuffix('s') if resource == 1 else self.unit}"

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, record: Any) -> Any:
        """Accept `first`, the name of `enqueue` in earlier versions."""
        if isinstance(record, Mapping) and "first" in record and "enqueue" not in record:
            return {"enqueue" if key == "first" else key: value for key, value in record.items()}
        return record

    @property
    def parts(self) -> int:
        """Units of the resource in one epoch."""
        return self.max_resource // self.epochs if self.resource == "rows" else 1

    @model_validator(mode="after")
    def _epochs_divide_max_resource(self) -> SearchConfig:
        if self.resource == "epochs" and self.epochs != 1:
            raise mistake(
                "applies to resource: rows and folds only",
                key="epochs",
                value=self.epochs,
                cure="Set max_resource to the number of epochs instead",
            )
        if self.has_folds and self.max_resource == 1:
            raise mistake("must be at least 2 with resource: folds", key="max_resource", value=1)
        if self.resource == "rows" and self.max_resource % self.epochs:
            raise mistake(
                f"must be a multiple of search.epochs, {self.epochs}, because every epoch has equally many "
                "parts",
                key="max_resource",
                value=self.max_resource,
            )
        return self

    @model_validator(mode="after")
    def _learn_fits(self) -> SearchConfig:
        check_learned(self.learn, method=self.method, resource=self.resource)
        return self

    @model_validator(mode="after")
    def _min_below_max(self) -> SearchConfig:
        if self.min_resource is not None and self.min_resource > self.max_resource:
            raise mistake(
                f"must be at most search.max_resource, {self.max_resource}",
                key="min_resource",
                value=self.min_resource,
            )
        return self


class StoppingConfig(Section):
    """Rules that end a study before its budget is spent. A rule that is not set does not apply."""

    target: Number | None = None
    """Ends the study when a trial reaches this value of the metric."""
    no_improvement: PositiveInt | None = None
    """Ends the study when this many trials have been fully trained since the best one."""
    min_improvement: NonNegativeNumber = 0.0
    """Improvement of the objective that counts for `no_improvement`."""
    cost: PositiveNumber | None = None
    """Ends the study when busy slot hours times `price_per_slot_hour` reach this amount."""
    price_per_slot_hour: PositiveNumber | None = None
    """Price of one slot for one hour, in the currency of `cost`."""
    regret_bound: PositiveNumber | None = None
    """Ends the study when searching as long again is expected to improve the objective by less than this."""
    max_trial_failures: Annotated[int, Field(ge=0)] | None = None
    """Ends the study with exit code 4 when more trials than this have failed."""
    max_failed_share: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Ends the study with exit code 4 when at least ten trials, and more than this share of all trials, have
    failed."""

    @model_validator(mode="after")
    def _cost_has_price(self) -> StoppingConfig:
        if (self.cost is None) != (self.price_per_slot_hour is None):
            key = "cost" if self.price_per_slot_hour is None else "price_per_slot_hour"
            other = "price_per_slot_hour" if key == "cost" else "cost"
            raise mistake(f"is set, but stopping.{other} is not", key=key, cure="Set both or neither")
        return self


class BudgetConfig(Section):
    """Limits of the study; it ends at the first that is reached. Running trials are completed. A finished
    study continues when a limit is raised."""

    trials: PositiveInt | None = None
    """Number of trials to start. The best of them are then trained to the end of their rungs."""
    resource: PositiveInt | None = None
    """Epochs, or parts or folds with `search.resource: rows` or `folds`, over all trials."""
    seconds: PositiveNumber | None = None
    """Running time of the study, over all runs of its driver."""

    @model_validator(mode="after")
    def _limited(self) -> BudgetConfig:
        if self.trials is None and self.resource is None and self.seconds is None:
            raise mistake(
                "has no limit, so the study would never end",
                cure="Set at least one of trials, resource and seconds",
            )
        return self


class ResourcesConfig(Section):
    """What one trial gets, and how long to wait for it."""

    world_size: PositiveInt = 1
    """Ranks (processes) that train one trial together."""
    gpus_per_rank: NonNegativeNumber = 0
    """A whole number, or a fraction of at most 0.5: 0.25 lets four trials share a GPU."""
    rendezvous: Literal["auto", "driver", "spark"] = "auto"
    """How the ranks of a trial find each other: `driver`, through a store in the driver, is a second faster;
    `spark`, through Spark, works where executors cannot reach the driver. `auto`: `driver`, or `spark` with
    Spark Connect."""
    max_concurrent: PositiveInt | None = None
    """Trials that run at the same time. Default: as many as the cluster has room for. With 1, and the same
    seed, a study is repeatable digit for digit."""
    rank_timeout_s: PositiveNumber = 300.0
    """Seconds for the ranks of a trial to find each other, and for each of their steps. A rank that takes
    longer counts as stalled, and the trial is retried."""
    slot_timeout_s: PositiveNumber = 600.0
    """Seconds that the study waits while the cluster has no room for any trial."""
    max_infra_retries: Annotated[int, Field(ge=0)] = 2
    """Retries of a trial's assignment after a lost process, executor or storage connection, with pauses of 1,
    2, 4, ... s."""
    grace_s: PositiveNumber = 20.0
    """Seconds that running trials get to save their state when the study is interrupted."""

    @model_validator(mode="after")
    def _gpus_can_be_shared(self) -> ResourcesConfig:
        gpus = self.gpus_per_rank
        if gpus > 0.5 and not gpus.is_integer():
            raise mistake(
                "must be a whole number, or at most 0.5, because Spark divides a GPU into equal shares",
                key="gpus_per_rank",
                value=gpus,
            )
        if 0 < gpus < 1 and self.world_size > 1:
            raise mistake(
                f"is a fraction, but ranks of one trial cannot share a GPU, and resources.world_size is "
                f"{self.world_size}",
                key="gpus_per_rank",
                value=gpus,
                cure="Use world_size 1 or whole GPUs",
            )
        return self


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
    """`tabular`, `image`, `module:Name`, or `path/to/file.py:Name` with a path relative to the study file."""
    data: DataConfig | None = None
    """Required, except for a training function that loads its own data."""
    objective: ObjectiveConfig
    space: dict[str, Any]
    """Parameters to tune, by name: `{learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}}`."""
    search: SearchConfig
    budget: BudgetConfig
    stopping: StoppingConfig = StoppingConfig()
    training: TrainingConfig = TrainingConfig()
    backend: Literal["auto", "spark", "local", "inline"] = "spark"
    """Where trials run: `spark`; `local`, in processes of this machine, without Spark or Java; `auto`,
    which is `spark` where a session runs or a cluster is named, else `local`; `inline`, one after the other
    in the driver, for debugging."""
    resources: ResourcesConfig = ResourcesConfig()
    spark: dict[str, str] = {}
    """Spark settings, used if the study has to start a session."""
    mlflow: MlflowConfig = MlflowConfig()

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
    def _inline_has_one_rank(self) -> StudyConfig:
        if self.backend == "inline" and self.resources.world_size != 1:
            raise mistake(
                "must be 1 with backend: inline",
                key="resources.world_size",
                value=self.resources.world_size,
                cure="Set resources.world_size: 1 or backend: spark",
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
