"""The tasks of this package and the metrics of labelled tasks, known without importing torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import ConfigError, DataError

BUILT_IN_TASKS: Mapping[str, str] = {
    "tabular": "spark_hpo.train.tasks.tabular:TabularTask",
    "image": "spark_hpo.train.tasks.image:ImageTask",
    "sequence": "spark_hpo.train.tasks.sequence:SequenceTask",
    "text": "spark_hpo.train.tasks.text:TextTask",
    "forecast": "spark_hpo.train.tasks.forecast:ForecastTask",
}
"""`module:class` by the name that a study file uses."""

NEEDED_PACKAGES: Mapping[str, str] = {"text": "transformers"}
"""The package that a task needs beyond those that this one installs. The extra has the same name."""

MODELS: Mapping[str, tuple[str, ...]] = {
    "tabular": ("mlp", "resnet"),
    "sequence": ("gru", "transformer"),
    "forecast": ("mlp", "gru", "transformer"),
}
"""The values of a task's parameter `model`; the first is the default."""

_OF_EVERY_TASK = ("learning_rate", "weight_decay", "batch_size")
_OF_LABELLED_TASKS = ("loss", "focal_gamma", "label_smoothing", "loss_weight_*")
_OF_SEQUENCES = ("model", "units", "layers", "heads", "dropout", "embedding_units")

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "tabular": (
        "model",
        "hidden_units",
        "hidden_layers",
        "dropout",
        "embedding_units",
        "number_units",
        "frequency_scale",
        *_OF_EVERY_TASK,
        *_OF_LABELLED_TASKS,
    ),
    "image": (
        "channels",
        "stages",
        "dropout",
        "column_units",
        "embedding_units",
        "crop_padding",
        "flip_probability",
        "cutout",
        *_OF_EVERY_TASK,
        *_OF_LABELLED_TASKS,
    ),
    "sequence": (*_OF_SEQUENCES, *_OF_EVERY_TASK, *_OF_LABELLED_TASKS),
    "text": (
        "pretrained",
        "head_learning_rate",
        "frozen_layers",
        "max_length",
        "dropout",
        "embedding_units",
        *_OF_EVERY_TASK,
        *_OF_LABELLED_TASKS,
    ),
    "forecast": (*_OF_SEQUENCES, "season", *_OF_EVERY_TASK),
}
"""The parameters that a task reads; `*` stands for any text. A test compares them with the tasks."""

MOVED_TASKS: Mapping[str, str] = {
    "spark_hpo.train.tabular:TabularTask": "tabular",
    "spark_hpo.train.image:ImageTask": "image",
}
"""The name, by the `module:class` that studies and registered models of earlier versions have recorded."""


_OF_CLASSES = ("loss", "accuracy")
_OF_NUMBERS = ("loss", "squared_error", "absolute_error")


_FORECAST = "forecast"
FORECAST_METRICS = ("loss", "absolute_error", "scaled_error", "naive_absolute_error", "naive_scaled_error")


def built_in_name(reference: str) -> str | None:
    """Return the name of a task of this package; None: the reference, as in a study, is to another task."""
    current = MOVED_TASKS.get(reference, reference)
    return next((name for name, place in BUILT_IN_TASKS.items() if current in (name, place)), None)


def missing_package(task: str) -> str | None:
    """Return the package that a task needs and that is not installed, without importing it."""
    package = NEEDED_PACKAGES.get(task)
    return package if package is not None and importlib.util.find_spec(package) is None else None


def check_package(task: str) -> None:
    """Raise ConfigError if a package that the task needs is not installed."""
    if (package := missing_package(task)) is not None:
        raise ConfigError(
            f"needs the package {package}, which is not installed",
            key="task",
            value=task,
            cure=f"Run `pip install 'spark_hpo[{package}]'` here and on the executors",
        )


def check_label(task: str | None, schema: TableSchema | None) -> None:
    """Check that the label of a table fits a task of this package; None: another labelled task.

    Raises:
        DataError: the label is a list and the task predicts one value, or the other way.
    """
    if schema is None or bool(schema.label.shape) == (task == _FORECAST):
        return
    if task == _FORECAST:
        raise DataError(
            f"the task forecast needs a list of the next values as label, but {schema.label.name!r} is one "
            "value. Set data.windows to form windows from the steps of series"
        )
    raise DataError(
        f"the label {schema.label.name!r} is a list of {schema.label.shape[0]} numbers, but the task "
        "predicts one value. Use the task forecast"
    )


def built_in_metrics(task: str, schema: TableSchema | None) -> tuple[str, ...]:
    """Return the metrics of a task of this package. For `schema`, see `labelled_metrics`."""
    return FORECAST_METRICS if task == _FORECAST else labelled_metrics(schema)


def labelled_metrics(schema: TableSchema | None) -> tuple[str, ...]:
    """Return the metrics of a `LabelledTask` that defines none of its own.

    Args:
        schema: of the table; None: not known yet, so those of all labels.
    """
    if schema is None:
        return tuple(dict.fromkeys(_OF_CLASSES + _OF_NUMBERS))
    if not schema.extra_labels:
        return _OF_NUMBERS if schema.label.is_regression else _OF_CLASSES
    of_labels = [
        f"{label.name}_{name}"
        for label in schema.labels
        for name in (_OF_NUMBERS if label.is_regression else _OF_CLASSES)
    ]
    return ("loss", *of_labels)
