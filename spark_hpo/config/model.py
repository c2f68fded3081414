"""StudyConfig: what a study file may say, checked strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spark_hpo.config import databricks
from spark_hpo.config.study_file import read_study_file
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.redact import MASK, has_credentials, hide, is_secret, redact_all
from spark_hpo.suggest import suggestion


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text: a number is what was meant."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _from_list(value: Any) -> Any:
    """Strict mode tells lists from tuples, and YAML has but lists."""
    return tuple(value) if isinstance(value, list) else value


def _words(value: Any) -> Any:
    """Numbers among the words of a command line are words too."""
    return tuple(str(word) for word in value) if isinstance(value, list) else value


def _url(value: Any) -> Any:
    """Databricks' own way to write a path, as the mount that Python sees; and no keys in an address."""
    if not isinstance(value, str):
        return value
    if has_credentials(value):
        raise ValueError(
            "it holds a password or a key, which would be written to logs and to the study directory; "
            "give it through the environment"
        )
    return re.sub(r"^dbfs:/+", "/dbfs/", value)


def _model_name(value: Any) -> Any:
    if isinstance(value, str) and not _MODEL_NAME.match(value):
        raise ValueError(
            f"registered_model is {value!r}; it becomes part of paths and addresses: it must have no '/', "
            "':', quote or control character, and not begin with a dot"
        )
    return value


_MODEL_NAME = re.compile(r"^(?!\.)[^/\\:'\"`\x00-\x1f\x7f]{1,255}$")
Url = Annotated[str, BeforeValidator(_url)]
PositiveInt = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]

_MAX_OBJECTIVES = 4


class _Section(BaseModel):
    # Strict: "3" is no number and 1.0 no integer; a key that does not exist is a mistake, not a wish.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            shown = redact_all({str(name): value})[str(name)] if not isinstance(value, BaseModel) else value
            yield name, shown


class CacheConfig(_Section):
    """Decoded tables on the local disks of the machines, shared by all ranks and trials on each."""

    enabled: bool = True
    folder: str | None = None
    """A local path on every machine; None: the first of Spark's local folders, or the temporary one."""
    max_gb: PositiveNumber | None = None
    """Of one machine's disk; None: half of what is free."""


class DataConfig(_Section):
    """The table: train/, validation/, test/ and schema.json, as jobs/prepare_data.py makes them."""

    path: Url
    """Local path or any fsspec URL."""
    prepare: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """Arguments of jobs/prepare_data.py that make the table when it is not there, without --output."""
    where: str = ""
    """Only rows of which this SQL condition is true: `country = 'DE' and day >= '2026-01-01'`."""
    nulls: dict[str, Literal["refuse", "fill"]] = {}
    """What nulls become, over what schema.json says: `{age: fill, "*": refuse}`. fill: the mean, the code of
    an empty text, zeros, an empty list."""
    truncate: dict[str, PositiveInt] = {}
    """Elements to keep of longer lists: `{words: 128}`. Otherwise lists longer than schema.json says are
    refused."""
    transforms: dict[str, str] = {}
    """For columns of bytes: module:function or path/to/file.py:function, from bytes to an array of floats."""
    trust_petastorm_metadata: bool = False
    """Unpickle what Petastorm has written about its columns. Only for tables whose source you trust."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """When a file turns out to be damaged, changed or gone. skip: the study goes on without it, and says how
    many rows that costs."""
    reader: str = "auto"
    """petastorm, arrow, or one that a package brings; auto takes petastorm wherever it can be imported."""
    shuffle_window: PositiveInt = 100_000
    """Rows that are shuffled together, in the memory of each rank."""
    cache: CacheConfig = CacheConfig()


class TransferConfig(_Section):
    """What earlier studies have found. Spaces are matched by name and range."""

    studies: Annotated[tuple[Url, ...], BeforeValidator(_from_list)] = ()
    """Their study directories."""
    num_first: Annotated[int, Field(ge=0)] = 3
    """How many of their best configurations run first."""
    discount: PositiveNumber = 0.3
    """Weight of an earlier trial, where one of this study has 1."""


class LimitConfig(_Section):
    """What another metric must keep to: a trial that breaks it ranks behind all that keep it."""

    metric: str
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _bounded(self) -> LimitConfig:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the limit on {self.metric!r} has neither at_least nor at_most; set one")
        return self


class ObjectiveConfig(_Section):
    """What is optimised, on the validation split."""

    metric: str
    """`loss`, or a metric that the task reports."""
    mode: Literal["min", "max"]
    also: dict[str, Literal["min", "max"]] = {}
    """Further objectives: `{latency_ms: min}`. What is sought then is the Pareto front of them all."""
    penalties: dict[str, Number] = {}
    """Further metrics by weight, added to the loss: `{latency_ms: 0.01}`."""
    limits: Annotated[tuple[LimitConfig, ...], BeforeValidator(_from_list)] = ()
    """Constraints on other metrics: latency, size."""

    def build(self) -> Objective:
        """The objective that this section describes."""
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
            also=tuple((metric, Mode(mode)) for metric, mode in self.also.items()),
        )

    @model_validator(mode="after")
    def _few(self) -> ObjectiveConfig:
        if self.metric in self.also:
            raise ValueError(f"also names {self.metric!r}, which is the metric already; leave it out of also")
        if len(self.also) >= _MAX_OBJECTIVES:
            raise ValueError(
                f"also names {len(self.also)} metrics; it may name at most {_MAX_OBJECTIVES - 1}, because "
                "with more nearly every trial is on the front: make some of them limits or penalties"
            )
        return self


class SearchConfig(_Section):
    """How parameters are proposed, and how training is spent on them. docs/methods.md has all names."""

    method: str = "default"
    """A pair of sampler and scheduler by its name: default, bohb, dehb, asha, ..."""
    sampler: str | None = None
    """In place of the method's own: tpe, random, grid, ... or one that a package brings."""
    sampler_settings: dict[str, Any] = {}
    scheduler: str | None = None
    """In place of the method's own: hyperband, asha, full, successive_halving, ..."""
    scheduler_settings: dict[str, Any] = {}
    resource: Literal["epochs", "rows"] = "epochs"
    """What a rung gives more of. rows: equal parts of the training rows, each the next part of the same
    order, so that a higher rung goes on where a lower one ended; metrics are taken at rungs only."""
    max_resource: PositiveInt
    """Epochs, or parts, of a trial that is trained to the end."""
    epochs: PositiveInt = 1
    """With `resource: rows`: how often a trial that is trained to the end sees the table."""
    min_resource: PositiveInt | None = None
    """Epochs, or parts, of the lowest rung; None: the scheduler's default."""
    reduction_factor: Annotated[int, Field(ge=2)] | None = None
    """One trial in this many goes on to the next rung, eta; None: the scheduler's default."""
    first: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_from_list)] = ()
    """Configurations that run before any other: what you run today."""
    constraints: Annotated[tuple[str, ...], BeforeValidator(_from_list)] = ()
    """Between parameters: `hidden_2 <= hidden_1`. A proposal that breaks one is drawn again."""
    explorer: str | None = None
    """In place of the method's own, in population based training: perturbation, pb2."""
    explore: dict[str, Any] = {}
    """Its settings: parameters, perturbation, resample_probability."""
    transfer: TransferConfig = TransferConfig()

    @property
    def parts(self) -> int:
        """Units of the resource that make one epoch."""
        return self.max_resource // self.epochs if self.resource == "rows" else 1

    @model_validator(mode="after")
    def _parted(self) -> SearchConfig:
        if self.resource == "epochs" and self.epochs != 1:
            raise ValueError("epochs goes with resource: rows; otherwise max_resource is the epochs")
        if self.max_resource % self.epochs:
            raise ValueError(
                f"max_resource is {self.max_resource}; with resource: rows it must be a multiple of "
                f"epochs, {self.epochs}: each epoch is as many parts"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.min_resource is not None and self.min_resource > self.max_resource:
            raise ValueError(
                f"min_resource is {self.min_resource}; it must be at most max_resource, {self.max_resource}"
            )
        return self


class StoppingConfig(_Section):
    """When a search has done enough, before its budget is spent. None: this rule does not apply."""

    target: Number | None = None
    """A value of the metric that is good enough."""
    no_improvement: PositiveInt | None = None
    """Trials trained to the end since the best of them."""
    min_improvement: NonNegativeNumber = 0.0
    """Of the objective, to count as one."""
    cost: PositiveNumber | None = None
    """In the currency of price_per_slot_hour."""
    price_per_slot_hour: PositiveNumber | None = None
    regret_bound: PositiveNumber | None = None
    """What more searching may still be expected to gain."""
    max_trial_failures: Annotated[int, Field(ge=0)] | None = None
    """Failed trials that are borne: with more the task is broken, and the study stops with exit code 4."""
    max_failed_share: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """The same as a share of the trials, once ten have failed."""

    @model_validator(mode="after")
    def _priced(self) -> StoppingConfig:
        if (self.cost is None) != (self.price_per_slot_hour is None):
            raise ValueError("cost and price_per_slot_hour belong together; set both, or neither")
        return self


class BudgetConfig(_Section):
    """When the study ends: whichever comes first. What is running then is finished."""

    trials: PositiveInt | None = None
    """Trials started; their rungs are completed."""
    resource: PositiveInt | None = None
    """Epochs over all trials."""
    seconds: PositiveNumber | None = None
    """Of the driver's work, over all its restarts."""

    @model_validator(mode="after")
    def _limited(self) -> BudgetConfig:
        if self.trials is None and self.resource is None and self.seconds is None:
            raise ValueError("set at least one of trials, resource and seconds, or the study never ends")
        return self


class CheckpointConfig(_Section):
    """When a trial saves its state within a rung, and a fault costs what comes after. Whichever is first."""

    epochs: PositiveInt | None = None
    """Or parts, with `resource: rows`. None: not by these."""
    seconds: PositiveNumber | None = 60.0
    """None: not by the clock."""


class TrainingConfig(_Section):
    """How a task is trained, whatever its parameters are."""

    batch_size: PositiveInt = 128
    """Rows of one optimizer step, over all ranks. A parameter `batch_size` in the space wins."""
    evaluation_batch_size: PositiveInt = 4096
    """Rows of one evaluation step, over all ranks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, else fp32."""
    clip_norm: PositiveNumber | None = None
    """Largest norm of the gradient."""
    patience: PositiveInt | None = None
    """Epochs without improvement that end a training."""
    min_improvement: NonNegativeNumber = 0.0
    """Of the objective, to count as one."""
    checkpoint_every: CheckpointConfig = CheckpointConfig()


class ResourcesConfig(_Section):
    """What one trial gets."""

    world_size: PositiveInt = 1
    """Ranks that train one trial together."""
    gpus_per_rank: NonNegativeNumber = 0
    """A whole number, or at most 0.5: that many trials then share a GPU."""
    rendezvous: Literal["auto", "driver", "spark"] = "auto"
    """Where several ranks meet. driver: a store there, 1 s faster; spark: through Spark, where executors
    cannot reach the driver; auto: driver, but spark with Spark Connect."""
    max_concurrent: PositiveInt | None = None
    """Trials at the same time; None: as many as fit. With 1 and one seed, a study repeats digit for digit."""
    rank_timeout_s: PositiveNumber = 300.0
    """For ranks to meet, and for each of their steps: one that takes longer is taken for hung."""
    slot_timeout_s: PositiveNumber = 600.0
    """How long a study waits while no trial fits: for the first executor, or after the last was lost."""
    max_infra_retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts at an assignment that lost its process, executor or storage, 1, 2, 4 ... s apart."""
    grace_s: PositiveNumber = 20.0
    """How long trials may take to save when the study is interrupted; then they are cancelled."""

    @model_validator(mode="after")
    def _shared_by_trials(self) -> ResourcesConfig:
        gpus = self.gpus_per_rank
        if gpus > 0.5 and not gpus.is_integer():
            raise ValueError(
                f"gpus_per_rank is {gpus:g}; it must be a whole number, or at most 0.5: Spark cuts a GPU "
                "into equal shares"
            )
        if 0 < gpus < 1 and self.world_size > 1:
            raise ValueError(
                f"gpus_per_rank is {gpus:g} with world_size {self.world_size}; ranks of one trial cannot "
                "share a GPU (NCCL refuses): use world_size 1, or whole GPUs"
            )
        return self


class MlflowConfig(_Section):
    """Where the results go."""

    tracking_uri: str = Field(default_factory=databricks.default_tracking_uri)
    """Without one: sqlite:///mlflow.db, inside of Databricks the workspace's."""
    registry_uri: str | None = None
    """Of the models; None: the tracking server's own, of a Databricks workspace Unity Catalog."""
    experiment: str | None = None
    """None: the name of the study, in a Databricks workspace under /Shared."""
    registered_model: Annotated[str | None, BeforeValidator(_model_name)] = None
    """None: the name of the study. In Unity Catalog: catalog.schema.model."""
    promote: Literal["auto", "never"] = "auto"
    """Whether the alias `champion` moves to a model that is better on the same test rows. never: it is
    registered and compared, and `--sync mlflow.promote=auto` moves the alias later."""


class StudyConfig(_Section):
    """A study: one search for the best model of one table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    """Letters, digits and `_.-`. Its MLflow experiment and its model have it, too, unless they are named."""
    study_dir: Url
    """Local path or any fsspec URL that driver and executors can reach. The study's whole state."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the parameters that are proposed, of first weights and of the order of rows."""
    task: str
    """tabular, image, module:Name, or path/to/file.py:Name (relative to the study file)."""
    data: DataConfig | None = None
    """May be left out for a training function that brings its own data."""
    objective: ObjectiveConfig
    space: dict[str, Any]
    """What is tuned, by name: `{learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}}`."""
    search: SearchConfig
    budget: BudgetConfig
    stopping: StoppingConfig = StoppingConfig()
    training: TrainingConfig = TrainingConfig()
    backend: Literal["spark", "inline"] = "spark"
    """inline: in this process, one trial of one rank after the other, without Spark."""
    resources: ResourcesConfig = ResourcesConfig()
    spark: dict[str, str] = {}
    """Spark settings for a session that the study has to start."""
    mlflow: MlflowConfig = MlflowConfig()

    @model_validator(mode="before")
    @classmethod
    def _hide_credentials(cls, record: Any) -> Any:
        hide(record)
        return record

    @property
    def registry_uri(self) -> str | None:
        """Where the model is registered; None: where the runs are."""
        return databricks.registry_uri(self.mlflow.tracking_uri, self.mlflow.registry_uri)

    @property
    def experiment(self) -> str:
        """MLflow's name for where the runs are."""
        return databricks.experiment(self.mlflow.tracking_uri, self.mlflow.experiment, self.name)

    @property
    def registered_model(self) -> str:
        """The name of the study's model."""
        return self.mlflow.registered_model or self.name

    @model_validator(mode="after")
    def _names_that_databricks_takes(self) -> StudyConfig:
        mistake = databricks.naming_mistake(
            self.mlflow.tracking_uri, self.registry_uri, self.experiment, self.registered_model
        )
        if mistake is not None:
            raise ValueError(mistake)
        return self

    @model_validator(mode="after")
    def _plateau_of_epochs(self) -> StudyConfig:
        if self.search.resource == "rows" and self.training.patience is not None:
            raise ValueError(
                "training.patience counts epochs, and with search.resource: rows metrics are taken at "
                "rungs only: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_rank_inline(self) -> StudyConfig:
        if self.backend == "inline" and self.resources.world_size != 1:
            raise ValueError(
                f"resources.world_size is {self.resources.world_size}, but the inline backend has one rank: "
                "set resources.world_size: 1, or backend: spark"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        overrides: `key.key=value`, the value in YAML: `budget.trials=50`, `space.dropout={type: ...}`.

    Raises:
        ConfigError: one line for each mistake, with place, value, rule and cure.
    """
    return build_config(read_study_file(path, overrides), place=str(path))


def build_config(
    record: Mapping[str, Any], *, place: str, names: Mapping[str, str] | None = None
) -> StudyConfig:
    """Check a study that is given as a mapping.

    Args:
        names: what the user knows a setting by, where it is not its dotted key.

    Raises:
        ConfigError: one line for each mistake.
    """
    try:
        return StudyConfig.model_validate(dict(record))
    except ValidationError as exc:
        lines = [_explain(error, place, names or {}) for error in exc.errors()]
        raise ConfigError("\n".join(lines)) from None  # pydantic shows the values, whatever they are


def defaults() -> dict[str, Any]:
    """What settings are that nobody has set, by dotted key, as in JSON."""
    return dict(_defaults(StudyConfig, ""))


def _defaults(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if (section := _section_of(field.annotation)) is not None:
            yield from _defaults(section, f"{prefix}{name}.")
        elif not field.is_required():
            value = field.get_default(call_default_factory=True)
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _explain(error: Any, place: str, names: Mapping[str, str]) -> str:
    """One line in our words for one of pydantic's."""
    keys = [str(key) for key in error["loc"]]
    where = ".".join(key if key.isprintable() else repr(key) for key in keys)
    where = names.get(where, where)
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted(_keys_of(keys[:-1]))
        return f"{place}: {where}: there is no such key. {suggestion(keys[-1], known)}"
    if kind == "missing":
        return f"{place}: {where} is missing; it has no default"
    if kind == "value_error":
        return f"{place}: {where + ': ' if where else ''}{context.get('error', error['msg'])}"
    rules = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "above {gt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "int_type": "an integer",
        "float_type": "a number",
        "string_type": "text",
        "dict_type": "a section of keys and values",
        "model_type": "a section of keys and values",
        "bool_type": "true or false",
        "tuple_type": "a list",
        "finite_number": "a finite number",
        "string_pattern_mismatch": "1 to 100 letters, digits, '_', '.' or '-', the first a letter or digit",
    }
    rule = rules[kind].format(**context) if kind in rules else error["msg"]
    shown = "nothing" if value is None else MASK if any(map(is_secret, keys)) else repr(redact_all(value))
    if isinstance(value, float) and math.isnan(value):
        shown = "NaN"
    return f"{place}: {where} is {shown if len(shown) <= 80 else shown[:77] + '...'}; it must be {rule}"


def _keys_of(path: Sequence[str]) -> Sequence[str]:
    model: type[BaseModel] = StudyConfig
    for key in path:
        section = _section_of(model.model_fields[key].annotation)
        assert section is not None, "pydantic looks into sections only"
        model = section
    return list(model.model_fields)
