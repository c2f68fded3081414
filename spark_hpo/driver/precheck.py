"""Checks of a study that need neither torch, MLflow nor Spark, and start nothing.

The commands run them before they import those and start a JVM, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spark_hpo.config import StudyConfig
from spark_hpo.data import files
from spark_hpo.data.plan.rules import with_rules
from spark_hpo.data.readers.reader import ReaderName, resolve_reader
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.table import read_schema
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.notifications import check_notify
from spark_hpo.driver.table_source import check_source, is_ready, schema_folder
from spark_hpo.driver.weights import check_weights, with_extra_labels
from spark_hpo.errors import ConfigError, closest, located, suggestion, within
from spark_hpo.search.registry import build_space
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Constant
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.built_in import (
    BUILT_IN_TASKS,
    MODELS,
    PARAMETERS,
    built_in_metrics,
    built_in_name,
    check_label,
    check_package,
)
from spark_hpo.train.metric_names import ALL_NAMES, expanded, known_among, names_for
from spark_hpo.user_code.source_file import read_code

_FSDP_TORCH = (2, 7)  # the first with distribute_tensor(..., src_data_rank=)


def check_study(config: StudyConfig, *, space: object = None) -> None:
    """Check settings, names, paths and the schema of a local table.

    Args:
        config: the study.
        space: replaces the space of the configuration; anything that `build_space` takes.

    Raises:
        ConfigError: a setting is wrong.
        DataError: the table is missing or malformed.
    """
    with located(config.source):
        parsed = check_settings(config, space)
        build_search(config, parsed)
        _check_code(config)
        _check_models(config.task, parsed)
        check_parameters(config.task, parsed, Storage(config.study_dir))
        schema = _known_schema(config)
        if schema is not None:
            check_weights(config, schema)
            schema = with_extra_labels(config, schema)
        if config.task in BUILT_IN_TASKS:
            check_label(config.task, schema)
            check_metrics(config, built_in_metrics(config.task, schema), schema)


def check_settings(config: StudyConfig, space: object = None) -> Space:
    """Check the space, the paths and the reader of a study. Return the parsed space.

    Args:
        config: the study.
        space: as for `check_study`.

    Raises:
        ConfigError: a setting is wrong.
    """
    parsed = build_space(config.space if space is None else space)
    with within("search"):
        parsed = parsed.constrained(config.search.constraints)
    _check_space(space if isinstance(space, Mapping) else config.space, parsed)
    _check_paths(config)
    check_notify(config.notify)
    several = config.data is not None and config.data.may_have_several_labels
    names = known_among(config.training.metrics) if several else ALL_NAMES
    _check_names(config.training.metrics, {*names, *ALL_NAMES}, "is not a metric of torchmetrics")
    check_torch(config.training.strategy, version("torch"))
    if config.data is not None and config.data.reader != ReaderName.AUTO:  # which fits always
        with within("data"):
            resolve_reader(config.data.reader)
    return parsed


def check_parameters(task: str, space: Space, storage: Storage) -> str | None:
    """Refuse a new study with parameters that a task of this package does not read.

    The classes of users, also those derived from a task of this package, may read any parameter.

    Args:
        task: its name, or `module:class`.
        space: the space of the study.
        storage: the study directory. A study that has begun there may go on, because its space must not
            change.

    Returns:
        The warning for a study that has begun; None: the task reads all parameters, or is a user's.

    Raises:
        ConfigError: the study is new; one error for each parameter.
    """
    if (name := built_in_name(task)) is None:
        return None
    known = PARAMETERS[name]
    errors = [
        ConfigError(
            f"has no effect, because the task {name} does not read it",
            key=f"space.{parameter}",
            cure=f"Did you mean {guess!r}?" if (guess := closest(parameter, known)) else "",
        )
        for parameter, _ in space.root.entries
        if not any(fnmatchcase(parameter, pattern) for pattern in known)
    ]
    if not errors:
        return None
    if Definition.load(storage) is not None:
        return "; ".join(map(str, errors))
    raise ConfigError.several(errors, cure=f"The task reads {', '.join(known)}")


def check_metrics(config: StudyConfig, reported: Collection[str] | None, schema: TableSchema | None) -> None:
    """Check that the metrics of a study are among those that the task reports, or that fit the label.

    Args:
        config: the study.
        reported: the metrics of the task; None: they are not known.
        schema: of the table; None: not known yet.

    Raises:
        ConfigError: there is no such metric, or it does not fit the label.
    """
    objective = config.objective
    fitting = ALL_NAMES if schema is None else names_for(schema)
    known = (*(reported or ()), *sorted(fitting))
    if schema is not None:
        kind = "a number" if schema.label.is_regression else "a class"
        fault = f"is not a metric of the label {schema.label.name!r}, which is {kind}"
        _check_names(expanded(config.training.metrics, schema), known, fault)
    if reported is None:
        return
    named = [("metric", objective.metric), *(("also", name) for name in objective.also)]
    named += [("penalties", name) for name in objective.penalties]
    named += [("limits", limit.metric) for limit in objective.limits]
    # The labels of a table that is not known yet are the beginnings of the names of their metrics.
    several = schema is None and config.data is not None and config.data.may_have_several_labels
    endings = tuple(f"_{name}" for name in known) if several else ()
    for key, name in named:
        if name not in known and not name.endswith(endings):
            raise ConfigError(
                "is not a metric of this task and this table",
                key=f"objective.{key}",
                value=name,
                cure=suggestion(name, known),
            )


def check_torch(strategy: str, installed: str) -> None:
    """Check that a version of torch has what a strategy needs.

    Raises:
        ConfigError: it is too old.
    """
    if strategy == "fsdp" and tuple(map(int, installed.split(".")[:2])) < _FSDP_TORCH:
        raise ConfigError(
            f"needs torch {'.'.join(map(str, _FSDP_TORCH))} or newer; {installed} is installed",
            key="training.strategy",
            value=strategy,
            cure="Use ddp, or install a newer torch",
        )


def _check_names(names: Iterable[str], known: Collection[str], fault: str) -> None:
    """Check `training.metrics`."""
    for name in names:
        if name not in known:
            raise ConfigError(fault, key="training.metrics", value=name, cure=suggestion(name, sorted(known)))


def _check_space(config: Mapping[str, Any], space: Space) -> None:
    """Refuse a mapping in which ranges are written as lists: a list is a constant."""
    wrong = next((name for name, entry in config.items() if isinstance(entry, list)), None)
    if wrong is not None and not space.dimensions():
        raise ConfigError(
            "has nothing to tune, because a list is a constant",
            key=f"space.{wrong}",
            value=config[wrong],
            cure="Write a range as {type: uniform, low: 0, high: 1}",
        )


def _check_models(task: str, space: Space) -> None:
    """Check the parameter `model` of a built-in task."""
    node = dict(space.root.entries).get("model")
    for option in node.options if isinstance(node, Choice) else (node,):
        if task in MODELS and isinstance(option, Constant) and option.value not in MODELS[task]:
            raise ConfigError(
                f"is not a model of the task {task}",
                key="space.model",
                value=option.value,
                cure=suggestion(option.value, MODELS[task]),
            )


def _check_paths(config: StudyConfig) -> None:
    if Path(config.study_dir).is_file():
        raise ConfigError("is a file, but must be a directory", key="study_dir", value=config.study_dir)


def _check_code(config: StudyConfig) -> None:
    """Check that the task and the transforms can exist: importing them may import torch."""
    names = {"task": config.task}
    if config.data is not None:
        names |= {f"data.transforms.{column}": name for column, name in config.data.transforms.items()}
    for key, value in names.items():
        place, _, name = value.rpartition(":")
        if place.endswith(".py"):
            code = read_code(config.beside(place).resolve(), key=key, value=value)
            _check_name(code.decode(errors="replace"), name, key, value)
        elif place:
            _check_package(place.partition(".")[0], key, value)
        elif key == "task" and value not in BUILT_IN_TASKS:
            raise ConfigError(
                "must be the name of a built-in task, module:Name or path/to/file.py:Name",
                key=key,
                value=value,
                cure=suggestion(value, BUILT_IN_TASKS),
            )
        elif key == "task":
            check_package(value)


def _check_name(text: str, name: str, key: str, value: str) -> None:
    """Check that a name occurs in a file. Whether it is a task is known when the file has been imported."""
    words = set(re.findall(r"\w+", text))
    if name not in words and "import *" not in text:
        guess = closest(name, words)
        raise ConfigError(
            f"names {name!r}, which is not in that file",
            key=key,
            value=value,
            cure=f"Did you mean {guess!r}?" if guess else "",
        )


def _check_package(package: str, key: str, value: str) -> None:
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"cannot be imported: there is no module {package!r}",
            key=key,
            value=value,
            cure="Put the module on the Python path, or use path/to/file.py:Name",
        )


def _known_schema(config: StudyConfig) -> TableSchema | None:
    """Check a local table, and return its schema. None: it is elsewhere, or is still to be prepared."""
    data = config.data
    if data is None or data.prepare is not None or data.path is None or not files.is_local(data.path):
        return None
    known = Definition.load(Storage(config.study_dir))
    check_source(config, known)
    if not is_ready(config, known):
        return None
    return with_rules(read_schema(schema_folder(config)), data.nulls, data.truncate)
