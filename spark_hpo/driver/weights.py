"""Weights of rows and classes: checked, and computed from the training split alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from spark_hpo.config import StudyConfig
from spark_hpo.data.schema import ColumnKind, Encoding, NullRule, RowWeight, TableSchema
from spark_hpo.data.table import Table
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from spark_hpo.train.label_statistics import LabelStatistics


def with_weights(table: Table, config: StudyConfig) -> Table:
    """Return the table with the weights that a study asks for: `data.weight`, `training.class_weights`.

    They are a part of its schema and of its fingerprint, so all ranks and a resumed study have the same.

    Raises:
        ConfigError: there is no such column or class.
        DataError: the training split cannot be read, or a weight is negative.
    """
    column, classes = None if config.data is None else config.data.weight, config.training.class_weights
    check_weights(config, table.schema)
    if column is not None:
        table = replace(table, schema=_without_feature(table.schema, column))
    if column is None and classes is None:
        return table
    from spark_hpo.train.label_statistics import label_statistics  # imports torch

    found = label_statistics(table, Split.TRAIN)
    schema = table.schema
    if schema.weight is not None:
        if found.lowest_weight < 0 or found.total_weight <= 0:
            raise DataError(
                f"{table.url}: column {column!r} (data.weight) must not be negative, and not 0 in all "
                f"training rows; its lowest value is {found.lowest_weight:.4g}"
            )
        schema = replace(schema, weight=replace(schema.weight, average=found.total_weight / found.rows))
    if classes is not None:
        label = replace(schema.label, class_weights=_class_weights(schema, classes, found))
        schema = replace(schema, label=label)
    return replace(table, schema=schema)


def check_weights(config: StudyConfig, schema: TableSchema) -> None:
    """Check the settings about weights and the loss against a table.

    Raises:
        ConfigError: there is no such column or class, or the label is a number.
    """
    training, label = config.training, schema.label
    weights = training.class_weights
    if config.data is not None and config.data.weight is not None:
        _check_column(config.data.weight, schema)
    if label.is_regression:
        for key, value in (
            ("class_weights", weights),
            ("loss", training.loss_params.get("loss")),
            ("label_smoothing", training.loss_params.get("label_smoothing")),
        ):
            if value is not None:
                raise ConfigError(
                    f"is for classes, but the label {label.name!r} is a number",
                    key=f"training.{key}",
                    value=value,
                    cure="Remove it",
                )
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in label.classes:
            raise ConfigError(
                f"names {name!r}, which is not a class of the label {label.name!r}",
                key="training.class_weights",
                value=weights,
                cure=suggestion(name, label.classes),
            )


def _check_column(name: str, schema: TableSchema) -> None:
    numbers = [f.name for f in schema.of_kind(ColumnKind.NUMERIC) if not f.marks_missing]
    if name not in numbers:
        raise ConfigError(
            "is not a column of numbers of the table",
            key="data.weight",
            value=name,
            cure=suggestion(name, numbers),
        )
    is_marked = any(f.source == name and f.name != name for f in schema.features)
    if is_marked and schema.encoding is Encoding.PREPARED:
        raise ConfigError(
            "has missing values, which the prepared table has replaced by the mean",
            key="data.weight",
            value=name,
            cure="Fill them in the original table, and prepare it again",
        )


def _without_feature(schema: TableSchema, name: str) -> TableSchema:
    """Return the schema with a feature as the weight of the rows. Missing weights become errors."""
    (feature,) = (f for f in schema.features if f.name == name)
    # Together with the column that marks its missing values.
    others = tuple(f for f in schema.features if f.name != name and f.source != name)
    weight = RowWeight(feature=replace(feature, nulls=NullRule.REFUSE), average=1.0)
    return replace(schema, features=others, weight=weight)


def _class_weights(
    schema: TableSchema, wanted: str | Mapping[str, float], found: LabelStatistics
) -> tuple[float, ...]:
    """Return a weight for each class, on average 1 per training row.

    `balanced` gives each class that has rows the same total weight, as scikit-learn does.
    """
    if isinstance(wanted, Mapping):
        weights = [wanted.get(name, 1.0) for name in schema.label.classes]
    else:
        rarest = min(total for total in found.weights if total)  # a class without rows may be in a fold
        weights = [1 / (total or rarest) for total in found.weights]
    average = sum(w * total for w, total in zip(weights, found.weights, strict=True)) / found.total_weight
    return tuple(weight / average for weight in weights)
