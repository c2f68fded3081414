"""Analyses the columns of a table: kinds, vocabularies, means, deviations, lengths. Two passes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.errors import DataError, count
from spark_hpo.prepare.column_facts import Analysis, FeatureFacts, ListFacts, NumberFacts, TextFacts
from spark_hpo.prepare.labels import MAX_CLASSES, check_stored_label, classes_of, may_be_classes
from spark_hpo.prepare.list_columns import bytes_facts, list_facts, prose_facts, rounded
from spark_hpo.prepare.phases import announce
from spark_hpo.prepare.rows import Rows
from spark_hpo.prepare.splits import OWN_COLUMNS


def analyse(
    rows: Rows,
    *,
    label: str,
    label_type: str,
    extra_labels: Mapping[str, str] | None = None,
    max_vocabulary: int,
    categorical: Collection[str] = (),
    prose: Collection[str] = (),
    in_place: bool = False,
) -> Analysis:
    """Determine the kinds of columns from all rows, and their contents from the training split.

    Args:
        rows: with the column `splits.SPLIT`.
        label_type: auto, class or number.
        extra_labels: the types of further labels, by name.
        categorical: text columns whose values are categories even if all are numbers.
        prose: text columns that a task reads.
        in_place: whether readers look up the classes in the table itself.

    Raises:
        DataError: the table is empty, the type of a column is not supported, a number is infinite, a list
            has missing elements, or the label is missing in a row.
        ConfigError: `label_type` does not fit the label.
    """
    types = {label: label_type, **(extra_labels or {})}
    names = [name for name in rows.columns if name not in OWN_COLUMNS]
    kinds = {name: _stored_kind(rows, name, in_place=in_place) for name in names}
    kinds |= dict.fromkeys(prose, ColumnKind.TEXT)
    for name, type in types.items():
        check_stored_label(name, type, rows.schema[name].dataType, is_alone=len(types) == 1)
    announce(f"profiling {count(len(names), 'column')}")
    facts = rows.summary(kinds)
    total = facts["rows"]

    def fact(key: str, name: str) -> Any:
        return facts.get(f"{key}_{names.index(name)}")

    if not total or not facts["train"]:
        raise DataError(f"the table has {total} rows, {facts['train']} of them for training: use more rows")
    for name in types:
        if missing := total - fact("present", name):
            raise DataError(
                f"the label {name!r} is missing in {missing} of {total} rows. Drop these rows first"
            )
    numbers = [name for i, name in enumerate(names) if _is_number(facts, i) and name not in categorical]
    kinds |= {name: ColumnKind.NUMERIC for name in numbers}
    counted = [
        name
        for name, type in types.items()
        if may_be_classes(name, type, kinds[name], is_whole=fact("whole", name) == total, in_place=in_place)
    ]
    texts = [name for name in names if name not in types and _has_codes(rows, name, kinds[name])]
    if texts or counted:
        announce(f"counting the values of {count(len(texts) + len(counted), 'column')} of {total:,} rows")
    limit = max(max_vocabulary, MAX_CLASSES + 1)
    values = rows.values(texts, counted, limit, in_place=in_place)
    classes = {name: classes_of(values.pop(name, []), name, types[name], kinds[name]) for name in counted}

    def feature(i: int, name: str) -> FeatureFacts:
        vocabulary = tuple(values.get(name, [])[:max_vocabulary])
        match kinds[name]:
            case ColumnKind.NUMERIC:
                return _number_facts(facts, i, name)
            case ColumnKind.SEQUENCE:
                return list_facts(facts, i, name, vocabulary if name in texts else None)
            case ColumnKind.BINARY:
                return bytes_facts(facts, i, name)
            case ColumnKind.TEXT:
                return prose_facts(facts, i, name)
        return TextFacts(name=name, values=vocabulary)

    def label_facts(name: str) -> NumberFacts | TextFacts | ListFacts:
        at = names.index(name)
        if classes.get(name):
            return TextFacts(name=name, values=classes[name])
        if kinds[name] is not ColumnKind.SEQUENCE:
            return _number_facts(facts, at, name)
        found = list_facts(facts, at, name, None)
        if not found.is_array:
            raise DataError(f"the lists in the label {name!r} must all have one length")
        return found

    return Analysis(
        features=tuple(feature(i, name) for i, name in enumerate(names) if name not in types),
        label=label_facts(label),
        extra_labels=tuple(map(label_facts, extra_labels or ())),
        total_rows=total,
        optional=frozenset(name for i, name in enumerate(names) if facts[f"present_{i}"] < total),
    )


def _stored_kind(rows: Rows, name: str, *, in_place: bool) -> ColumnKind:
    """The kind of a column by its type: SEQUENCE for all lists, CATEGORICAL for all text."""
    match rows.schema[name].dataType:
        case T.StringType():
            return ColumnKind.CATEGORICAL
        case T.NumericType():
            return ColumnKind.NUMERIC
        case T.BinaryType():
            return ColumnKind.BINARY
        case T.ArrayType(elementType=T.StringType() | T.NumericType() as element) if not (
            in_place and isinstance(element, T.DecimalType)  # readers do not convert elements
        ):
            return ColumnKind.SEQUENCE
        case other:
            raise DataError(
                f"column {name!r} is {other.simpleString()}; it must be text or numbers. Leave it out "
                f"(--drop {name}), or cast it"
            )


def _has_codes(rows: Rows, name: str, kind: ColumnKind) -> bool:
    stored = rows.schema[name].dataType
    of_text = isinstance(stored, T.ArrayType) and isinstance(stored.elementType, T.StringType)
    return kind is ColumnKind.CATEGORICAL or of_text


def _is_number(facts: Mapping[str, Any], i: int) -> bool:
    return bool(0 < facts[f"present_{i}"] == facts.get(f"numbers_{i}"))


def _number_facts(facts: Mapping[str, Any], i: int, name: str) -> NumberFacts:
    mean, deviation = (rounded(facts[f"{fact}_{i}"] or 0.0) for fact in ("mean", "deviation"))
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise DataError(
            f"column {name!r} has values that are infinite or too large to square. Clip them, or drop rows"
        )
    missing = facts["train"] - facts[f"train_{i}"]
    return NumberFacts(name=name, mean=mean, deviation=deviation or 1.0, has_missing=missing > 0)
