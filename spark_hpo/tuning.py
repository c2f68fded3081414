"""`tune`: a study in one call, for notebooks and programs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spark_hpo.backend.spark.session import is_on_a_cluster
from spark_hpo.callbacks.progress_bar import progress_callback
from spark_hpo.config import build_config
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from spark_hpo.report.notebook import in_notebook
from spark_hpo.study.callback import Callback
from spark_hpo.suggest import suggestion
from spark_hpo.tracking.connection import usual_uri
from spark_hpo.train.reference import Code, Trainable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

PLACE = "tune()"
DEFAULT_TRIALS = 30
DEFAULT_MAX_RESOURCE = 9

# The settings of a study file that are arguments of their own here.
_ARGUMENTS = {
    "name": "name",
    "study_dir": "storage",
    "seed": "seed",
    "objective.metric": "metric",
    "objective.mode": "mode",
    "search.method": "method",
    "search.max_resource": "max_resource",
    "budget.trials": "trials",
    "budget.seconds": "seconds",
    "resources.world_size": "world_size",
}
_SECTIONS = ("objective", "search", "budget", "stopping", "training", "backend", "mlflow")


def tune(
    task: Trainable | str,
    space: object,
    *,
    metric: str,
    mode: Literal["min", "max"],
    data: str | Path | Mapping[str, Any] | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    max_resource: int | None = None,
    method: str | None = None,
    world_size: int | None = None,
    resources: Mapping[str, Any] | None = None,
    storage: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    resume: Literal["auto", "must", "never"] = "auto",
    spark: SparkSession | Mapping[str, str] | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Result:
    """Search for the best parameters, and train on Spark.

    Example:
        >>> import spark_hpo
        >>> def train(ctx):
        ...     for epoch in range(*ctx.resource):
        ...         ctx.report({"loss": (ctx.params["x"] - 2) ** 2 + 1 / (epoch + 1)})
        >>> result = spark_hpo.tune(
        ...     train,
        ...     {"x": {"type": "uniform", "low": -10, "high": 10}},
        ...     metric="loss",
        ...     mode="min",
        ...     trials=20,
        ... )
        >>> abs(result.best_params["x"] - 2) < 3
        True

    The same call again goes on where the last one ended, and returns at once when that was the end. In a
    notebook a bar shows the progress, and the result shows itself.

    Args:
        task: a task class or a training function, also one that was written in a notebook; or by name as in a
            study file: "tabular", "image", "module:Name", "path/to/file.py:Name".
        space: a mapping as in a study file, a hyperopt `hp.*` space, or a Space.
        metric: what is optimised, on the validation split.
        mode: whether more of it is better, or less.
        data: a prepared table, its path or URL; or the section `data` of a study file. None: a training
            function brings its own.
        trials: how many are started. None: 30, unless `seconds` or `budget` limit the search.
        seconds: of the driver's work.
        max_resource: epochs of a trial that is trained to the end. None: 9.
        method: docs/methods.md says which one when. None: "default".
        world_size: ranks that train one trial together. None: 1.
        resources: the section `resources` of a study file, such as `{"gpus_per_rank": 1}`.
        storage: the study directory, the whole state of the study: a path or URL that the driver and all
            executors reach. None: `studies/<name>`, where that can be so.
        name: of the study, its experiment and its model. None: the task's.
        seed: of the search and of the training.
        resume: auto: go on with the study in `storage` if there is one; must: or refuse; never: refuse if so.
        spark: the session to be used, which stays as it is; or settings for one that has to be started. None:
            the one that runs, or a new one, which then stays for the next call.
        callbacks: are told on the driver what happens.
        settings: further sections of a study file, such as `training={"batch_size": 64}`,
            `search={"enqueue": [...]}`, `stopping={"target": 0.99}`, `mlflow={"tracking_uri": ...}`,
            `backend="inline"`. Without a tracking URI it is the one that MLflow has been told, or an SQLite
            file beside the study.

    Raises:
        ConfigError: an argument is wrong, or the study in `storage` is another one.
        DataError: the table is not what the task needs.
        NoTrialSucceeded: every trial has failed.
        StudyInterrupted: by Ctrl-C or the kernel's interrupt. The same call goes on.
    """
    for section in settings:
        _check_section(section)
    if not isinstance(data, str | Path | Mapping | None):
        raise ConfigError(
            f"{PLACE}: data must be the path of a prepared table, not a {type(data).__name__}",
            cure="Write it as Parquet: spark-hpo prepare csv --input FILE --label COLUMN --output FOLDER",
        )
    session = None if isinstance(spark, Mapping) else spark
    if isinstance(spark, Mapping):
        settings["spark"] = dict(spark)
    name = name or _name_of(task)
    if storage is None and settings.get("backend") != "inline" and is_on_a_cluster(session):
        raise ConfigError(
            f"{PLACE}: storage is not given, and executors on other machines do not see studies/{name} of "
            "this one: give a place that all of them reach, as storage='s3://bucket/studies/digits' or "
            "'/Volumes/...'"
        )
    arguments = {
        "name": name,
        "study_dir": str(storage or Path("studies", name)),
        "seed": seed,
        "task": task if isinstance(task, str) else Code.of(task).reference,
        "objective.metric": metric,
        "objective.mode": mode,
        "search.method": method,
        "search.max_resource": max_resource,
        "budget.trials": trials,
        "budget.seconds": seconds,
        "resources.world_size": world_size,
    }
    sections = {**settings, "resources": resources or {}, "space": {}}
    if data is not None:
        sections["data"] = data if isinstance(data, Mapping) else {"path": str(data)}
    record = _with_defaults(_merged(arguments, sections))
    config = build_config(record, place=PLACE, names=_ARGUMENTS)
    result = run_study(
        config,
        resume=resume,
        task=None if isinstance(task, str) else task,
        space=space,
        spark=session,
        callbacks=[*callbacks, progress_callback(config.name, config.objective.metric, config.search.unit)],
    )
    if in_notebook():
        try:
            result.show()
        except Exception:  # the result of days of search is not lost for its picture
            logger.warning("the result could not be shown", exc_info=True)
    return result


def _check_section(key: str) -> None:
    """Refuse what is neither an argument nor a section."""
    if key in _SECTIONS:
        return
    if key in _ARGUMENTS:
        raise ConfigError(f"{PLACE}: {key} is called {_ARGUMENTS[key]} here")
    known = [*_ARGUMENTS.values(), "data", "resources", "resume", "spark", "callbacks", *_SECTIONS]
    raise ConfigError(f"{PLACE}: there is no argument {key!r}", cure=suggestion(key, known))


def _name_of(task: Trainable | str) -> str:
    """The task's own name, as far as a study may be called that."""
    text = task if isinstance(task, str) else getattr(task, "__name__", type(task).__name__)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.rpartition(":")[2]).strip("_.-")
    return name[:100] or "study"


def _merged(arguments: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """A study file's mapping: the arguments by dotted key, those that are None left out, in the sections."""
    record = {key: dict(value) if isinstance(value, Mapping) else value for key, value in sections.items()}
    for dotted, value in arguments.items():
        section, _, key = dotted.rpartition(".")
        into = record.setdefault(section, {}) if section else record
        if value is None or not isinstance(into, dict):  # what is no section is refused with all others
            continue
        if key in into:
            raise ConfigError(
                f"{PLACE}: {_ARGUMENTS[dotted]} is {value!r} and {section}[{key!r}] is {into[key]!r}; give "
                "one of them"
            )
        into[key] = value
    return record


def _with_defaults(record: dict[str, Any]) -> dict[str, Any]:
    if isinstance(record["search"], dict):
        record["search"].setdefault("max_resource", DEFAULT_MAX_RESOURCE)
    if not record["budget"]:
        record["budget"] = {"trials": DEFAULT_TRIALS}
    mlflow = record.setdefault("mlflow", {})
    if isinstance(mlflow, dict) and "tracking_uri" not in mlflow:
        mlflow["tracking_uri"] = usual_uri(record["study_dir"])
    return record
