"""Columns that are not features: further labels, and weights, computed from the training split alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from spark_hpo.config import StudyConfig
from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    ExtraLabel,
    Feature,
    Label,
    NullRule,
    RowWeight,
    TableSchema,
)
from spark_hpo.data.table import Table
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from spark_hpo.train.label_statistics import LabelStatistics


def with_extra_labels(config: StudyConfig, schema: TableSchema) -> TableSchema:
    """Return the schema with the labels that the study chooses: features become labels, and labels nothing.

    `data.label` and `data.extra_labels` choose; without them, the labels are those of the prepared table.

    Raises:
        ConfigError: there is no such column, or it has missing values.
    """
    data = config.data
    if data is None or (data.label is None and not data.extra_labels):
        return schema
    prepared = {extra.label.name: extra for extra in schema.extra_labels}
    schema = replace(schema, extra_labels=())
    for name in data.extra_labels:
        if name in prepared:
            schema = replace(schema, extra_labels=(*schema.extra_labels, prepared[name]))
            continue
        kinds = schema.of_kind(ColumnKind.NUMERIC, ColumnKind.CATEGORICAL)
        _check_column("extra_labels", name, schema, [f.name for f in kinds if not f.marks_missing])
        feature, schema = _taken(schema, name)
        schema = replace(schema, extra_labels=(*schema.extra_labels, ExtraLabel.of(feature)))
    return schema


def with_weights(table: Table, config: StudyConfig) -> Table:
    """Return the table with what a study adds: `data.extra_labels`, `data.weight`, `training.class_weights`.

    They are a part of its schema and of its fingerprint, so all ranks and a resumed study have the same.

    Raises:
        ConfigError: there is no such column or class.
        DataError: the training split cannot be read, or a weight is negative.
    """
    column, classes = None if config.data is None else config.data.weight, config.training.class_weights
    check_weights(config, table.schema)
    table = replace(table, schema=with_extra_labels(config, table.schema))
    if column is not None:
        feature, schema = _taken(table.schema, column)
        weight = RowWeight(feature=replace(feature, nulls=NullRule.REFUSE), average=1.0)
        table = replace(table, schema=replace(schema, weight=weight))
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
        schema = schema.with_class_weights(_weights_of_labels(schema, classes, found))
    return replace(table, schema=schema)


def with_fold_weights(table: Table, config: StudyConfig) -> Table:
    """Return the table with balanced classes in each fold, computed from the training rows of the fold alone.

    Raises:
        DataError: the training rows cannot be read.
    """
    count, classes = config.search.max_resource, config.training.class_weights
    if classes != "balanced":
        return table
    from spark_hpo.train.label_statistics import label_statistics  # imports torch

    folds = [*(table.fold(number, count, config.seed) for number in range(1, count + 1)), table.for_final()]
    weights = (
        _weights_of_labels(table.schema, classes, label_statistics(fold, Split.TRAIN)) for fold in folds
    )
    return replace(table, fold_weights=tuple(weights))


def check_weights(config: StudyConfig, schema: TableSchema) -> None:
    """Check the settings about weights and the loss against a table.

    Raises:
        ConfigError: there is no such column or class, or the label is a number.
    """
    training, labels = config.training, with_extra_labels(config, schema).labels
    names, classes = ", ".join(label.name for label in labels), [c for one in labels for c in one.classes]
    weights = training.class_weights
    if config.data is not None and config.data.weight is not None:
        numbers = [f.name for f in schema.of_kind(ColumnKind.NUMERIC) if not f.marks_missing]
        _check_column("weight", config.data.weight, schema, numbers)
    if not classes:
        for key, value in (
            ("class_weights", weights),
            ("loss", training.loss_params.get("loss")),
            ("label_smoothing", training.loss_params.get("label_smoothing")),
        ):
            if value is not None:
                raise ConfigError(
                    f"is for classes, but the label {names} is a number",
                    key=f"training.{key}",
                    value=value,
                    cure="Remove it",
                )
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in classes:
            raise ConfigError(
                f"names {name!r}, which is not a class of the label {names}",
                key="training.class_weights",
                value=weights,
                cure=suggestion(name, classes),
            )


def _check_column(setting: str, name: str, schema: TableSchema, fitting: Sequence[str]) -> None:
    if name not in fitting:
        raise ConfigError(
            "is not a column of the table that can be used for it",
            key=f"data.{setting}",
            value=name,
            cure=suggestion(name, fitting),
        )
    is_marked = any(f.source == name and f.name != name for f in schema.features)
    if is_marked and schema.encoding is Encoding.PREPARED:
        raise ConfigError(
            "has missing values, which the prepared table has replaced by the mean",
            key=f"data.{setting}",
            value=name,
            cure="Fill them in the original table, and prepare it again",
        )


def _taken(schema: TableSchema, name: str) -> tuple[Feature, TableSchema]:
    """Return a feature, and the schema without it and without the column that marks its missing values."""
    (feature,) = (f for f in schema.features if f.name == name)
    others = tuple(f for f in schema.features if f.name != name and f.source != name)
    return feature, replace(schema, features=others)


def _weights_of_labels(
    schema: TableSchema, wanted: str | Mapping[str, float], found: LabelStatistics
) -> tuple[tuple[float, ...], ...]:
    return tuple(_class_weights(label, wanted, found) for label in schema.labels)


def _class_weights(
    label: Label, wanted: str | Mapping[str, float], found: LabelStatistics
) -> tuple[float, ...]:
    """Return a weight for each class, on average 1 per training row; no weights for a number.

    `balanced` gives each class that has rows the same total weight, as scikit-learn does.
    """
    totals = found.weights[label.name]
    if label.is_regression:
        return ()
    if isinstance(wanted, Mapping):
        weights = [wanted.get(name, 1.0) for name in label.classes]
    else:
        rarest = min(total for total in totals if total)  # a class without rows may be in a fold
        weights = [1 / (total or rarest) for total in totals]
    average = sum(w * total for w, total in zip(weights, totals, strict=True)) / found.total_weight
    return tuple(weight / average for weight in weights)
