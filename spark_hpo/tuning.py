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
from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.report.notebook import in_notebook
from spark_hpo.snapshots.frames import is_pandas, is_spark
from spark_hpo.study.callback import Callback
from spark_hpo.tracking.connection import usual_uri
from spark_hpo.train.reference import Code, Trainable

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

PLACE = "tune()"
DEFAULT_TRIALS = 30
DEFAULT_MAX_RESOURCE = 9

# The settings of a study file that are arguments of `tune`, under these names.
_ARGUMENTS = {
    "name": "name",
    "study_dir": "storage",
    "seed": "seed",
    "data.label": "label",
    "objective.metric": "metric",
    "objective.mode": "mode",
    "search.method": "method",
    "search.max_resource": "max_resource",
    "budget.trials": "trials",
    "budget.seconds": "seconds",
    "budget.finish": "finish",
    "resources.world_size": "world_size",
}
# With `folds`, a unit of the resource is a fold, and max_resource counts the epochs of each.
_ARGUMENTS_OF_FOLDS = {
    **_ARGUMENTS,
    "search.resource": "folds",
    "search.max_resource": "folds",
    "search.epochs": "max_resource",
}
_SECTIONS = ("objective", "search", "budget", "stopping", "training", "backend", "mlflow", "notify")


def tune(
    task: Trainable | str,
    space: object,
    *,
    metric: str,
    mode: Literal["min", "max"],
    data: str | Path | Mapping[str, Any] | DataFrame | pd.DataFrame | None = None,
    label: str | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    finish: int | None = None,
    max_resource: int | None = None,
    folds: int | None = None,
    method: str | None = None,
    world_size: int | Mapping[int, int] | None = None,
    resources: Mapping[str, Any] | None = None,
    storage: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    resume: Literal["auto", "must", "never"] = "auto",
    spark: SparkSession | Mapping[str, str] | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Result:
    """Search for the best parameters of a task, on Spark or on this machine.

    Trials run on Spark where a session runs or a cluster is named, else as processes of this machine, without
    Java (`backend="auto"`).

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

    Calling `tune` again with the same arguments resumes the study, or returns at once if it is complete. In a
    notebook, a progress bar is shown while the study runs, and a summary at the end.

    Args:
        task: a task class or a training function, which may be defined in a notebook; or a name as in a study
            file: that of a shipped task such as "tabular", "module:Name", "path/to/file.py:Name".
        space: a mapping as in a study file, a hyperopt `hp.*` space, or a Space.
        metric: the metric to optimise, on the validation split.
        mode: "max" if larger values are better, else "min".
        data: path or URL of a table; a Spark or pandas DataFrame; or the section `data` of a study file, in
            which `dataframe` may be a DataFrame. The rows of a DataFrame are written once, to a snapshot that
            a resumed study reads again. None if a training function loads its own data.
        label: the column to predict, of a table that is not prepared.
        trials: number of trials to start. None: 30, unless `seconds` or `budget` limits the search.
        seconds: time limit of the search.
        finish: how many of the best trials are trained to the end when the limit is reached. None: 1.
        max_resource: epochs of a fully trained trial, or of each fold. None: 9.
        folds: cross-validate every trial with so many folds, at least 2, like `data.folds` in a study file.
        method: name of a search method; docs/methods.md compares them. None: "default".
        world_size: number of ranks per trial, or numbers by rung. None: 1.
        resources: the section `resources` of a study file, such as `{"gpus_per_rank": 1}`.
        storage: the study directory: a path or URL that the driver and all executors can reach. None:
            `studies/<name>`, unless the executors are on other machines.
        name: name of the study, its MLflow experiment and its model. None: the name of the task.
        seed: seed of the search and of the training.
        resume: "auto" resumes the study in `storage` if there is one, "must" raises if there is none, and
            "never" raises if there is one.
        spark: a session to use unchanged, or settings for a new session, which later calls reuse. None: the
            active session, if there is one.
        callbacks: called on the driver as the study progresses.
        settings: further sections of a study file, such as `training={"batch_size": 64}`,
            `search={"enqueue": [...]}`, `stopping={"target": 0.99}`, `mlflow={"tracking_uri": ...}`,
            `backend="spark"`. The default tracking URI is MLflow's own, or an SQLite file beside the study.

    Raises:
        ConfigError: an argument is wrong, or `storage` has a different study.
        DataError: the table does not fit the task.
        NoTrialSucceeded: every trial failed.
        StudyInterrupted: by Ctrl-C or an interrupt of the kernel. The same call resumes the study.
    """
    for section in settings:
        _check_section(section)
    data_section, frame = _data_section(data)
    session = None if isinstance(spark, Mapping) else spark
    if session is None and is_spark(frame):
        session = frame.sparkSession
    if isinstance(spark, Mapping):
        settings["spark"] = dict(spark)
    settings.setdefault("backend", "spark" if isinstance(spark, Mapping) else "auto")
    name = name or _name_of(task)
    in_this_process = settings.get("backend") in ("inline", "driver")
    if storage is None and not in_this_process and is_on_a_cluster(session):
        raise ConfigError(
            f"{PLACE}: storage is missing, and executors on other machines cannot reach studies/{name} on "
            "this one. Pass a location that all machines reach, such as "
            "storage='s3://bucket/studies/digits' or '/Volumes/...'"
        )
    arguments = {
        "name": name,
        "study_dir": str(storage or Path("studies", name)),
        "seed": seed,
        "data.label": label,
        "task": task if isinstance(task, str) else Code.of(task).reference,
        "objective.metric": metric,
        "objective.mode": mode,
        "search.method": method,
        **_resource(max_resource, folds),
        "budget.trials": trials,
        "budget.seconds": seconds,
        "budget.finish": finish,
        "resources.world_size": world_size,
    }
    sections = {**settings, "resources": resources or {}, "space": {}}
    if data_section is not None or label is not None:
        sections["data"] = data_section or {}
    names = _ARGUMENTS if folds is None else _ARGUMENTS_OF_FOLDS
    record = _with_defaults(_merged(arguments, sections, names))
    config = build_config(record, place=PLACE, names=names)
    result = run_study(
        config,
        resume=resume,
        task=None if isinstance(task, str) else task,
        space=space,
        frame=frame,
        spark=session,
        callbacks=[*callbacks, progress_callback(config.name, config.objective.metric, config.search.unit)],
    )
    if in_notebook():
        try:
            result.show()
        except Exception:  # a display problem must not lose the result
            logger.warning("cannot display the result", exc_info=True)
    return result


def _data_section(data: Any) -> tuple[dict[str, Any] | None, Any]:
    """Return the section `data` of a study file, and the DataFrame; None where there is none."""
    section, frame = (dict(data), data.get("dataframe")) if isinstance(data, Mapping) else ({}, data)
    if isinstance(frame, bool) or (frame is None and data is not None):
        return section, None
    if data is None or isinstance(data, str | Path):
        return (None if data is None else {"path": str(data)}), None
    if not (is_spark(frame) or is_pandas(frame)):
        raise ConfigError(
            f"{PLACE}: data must be a path, a Spark or pandas DataFrame, or the section data of a study "
            f"file, not a {type(frame).__name__}"
        )
    return {**section, "dataframe": True}, frame


def _resource(max_resource: int | None, folds: int | None) -> dict[str, Any]:
    """Return the settings of the search that say what a trial gets more of, and how much."""
    if folds is None:
        return {"search.max_resource": max_resource}
    epochs = DEFAULT_MAX_RESOURCE if max_resource is None else max_resource
    return {"search.resource": "folds", "search.max_resource": folds, "search.epochs": epochs}


def _check_section(key: str) -> None:
    """Raise if `key` is neither an argument nor a section."""
    if key in _SECTIONS:
        return
    if key in _ARGUMENTS:
        raise ConfigError(f"{PLACE}: the argument for {key} is {_ARGUMENTS[key]}")
    known = [*_ARGUMENTS.values(), "folds", "data", "resources", "resume", "spark", "callbacks", *_SECTIONS]
    raise ConfigError(f"{PLACE}: there is no argument {key!r}", cure=suggestion(key, known))


def _name_of(task: Trainable | str) -> str:
    """Derive a valid study name from the name of the task."""
    text = task if isinstance(task, str) else getattr(task, "__name__", type(task).__name__)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text.rpartition(":")[2]).strip("_.-")
    return name[:100] or "study"


def _merged(
    arguments: Mapping[str, Any], sections: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Merge the arguments, by dotted key, into the sections of a study file, skipping None."""
    record = {key: dict(value) if isinstance(value, Mapping) else value for key, value in sections.items()}
    for dotted, value in arguments.items():
        section, _, key = dotted.rpartition(".")
        if value is None and section == "data":  # a study without a table has no such section
            continue
        into = record.setdefault(section, {}) if section else record
        if value is None or not isinstance(into, dict):  # an invalid section is reported later
            continue
        if key in into:
            raise ConfigError(
                f"{PLACE}: {names[dotted]} is {value!r} and {section}[{key!r}] is {into[key]!r}. "
                "Pass only one of them"
            )
        into[key] = value
    return record


def _with_defaults(record: dict[str, Any]) -> dict[str, Any]:
    if isinstance(record["search"], dict):
        record["search"].setdefault("max_resource", DEFAULT_MAX_RESOURCE)
    if not record["budget"] or (isinstance(record["budget"], dict) and record["budget"].keys() == {"finish"}):
        record["budget"] = {**(record["budget"] or {}), "trials": DEFAULT_TRIALS}
    mlflow = record.setdefault("mlflow", {})
    if isinstance(mlflow, dict) and "tracking_uri" not in mlflow:
        mlflow["tracking_uri"] = usual_uri(record["study_dir"])
    return record
