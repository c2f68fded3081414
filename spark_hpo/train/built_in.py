"""The tasks of this package and the metrics of labelled tasks, known without importing torch."""

from __future__ import annotations

from collections.abc import Mapping

from spark_hpo.data.schema import TableSchema

BUILT_IN_TASKS: Mapping[str, str] = {
    "tabular": "spark_hpo.train.tasks.tabular:TabularTask",
    "image": "spark_hpo.train.tasks.image:ImageTask",
    "sequence": "spark_hpo.train.tasks.sequence:SequenceTask",
}
"""`module:class` by the name that a study file uses."""

MOVED_TASKS: Mapping[str, str] = {
    "spark_hpo.train.tabular:TabularTask": "tabular",
    "spark_hpo.train.image:ImageTask": "image",
}
"""The name, by the `module:class` that studies and registered models of earlier versions have recorded."""


_OF_CLASSES = ("loss", "accuracy")
_OF_NUMBERS = ("loss", "squared_error", "absolute_error")


def labelled_metrics(schema: TableSchema | None) -> tuple[str, ...]:
    """Return the metrics of a `LabelledTask` that defines none of its own.

    Args:
        schema: of the table; None: not known yet, so those of all labels.
    """
    if schema is None:
        return tuple(dict.fromkeys(_OF_CLASSES + _OF_NUMBERS))
    return _OF_NUMBERS if schema.label.is_regression else _OF_CLASSES
