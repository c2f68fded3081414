"""The tasks of this package and the metrics of labelled tasks, known without importing torch."""

from __future__ import annotations

from collections.abc import Mapping

from spark_hpo.data.schema import TableSchema

BUILT_IN_TASKS: Mapping[str, str] = {
    "tabular": "spark_hpo.train.tabular:TabularTask",
    "image": "spark_hpo.train.image:ImageTask",
}
"""`module:class` by the name that a study file uses."""


def labelled_metrics(schema: TableSchema) -> tuple[str, ...]:
    """Return the metrics of a `LabelledTask` that defines none of its own."""
    is_number = schema.label.is_regression
    return ("loss", "squared_error", "absolute_error") if is_number else ("loss", "accuracy")
