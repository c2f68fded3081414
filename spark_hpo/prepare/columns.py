"""Analyses the columns of a table: kinds, vocabularies, means, deviations, lengths. Two Spark jobs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import PATTERNS, TextForm
from spark_hpo.errors import DataError
from spark_hpo.prepare.column_facts import Analysis, FeatureFacts, ListFacts, NumberFacts, TextFacts
from spark_hpo.prepare.labels import MAX_CLASSES, check_stored_label, classes_of, may_be_classes
from spark_hpo.prepare.list_columns import bytes_facts, counts_of_lists, list_facts, prose_facts, rounded
from spark_hpo.prepare.phases import announce
from spark_hpo.prepare.splits import OWN_COLUMNS, SPLIT, column
from spark_hpo.trial import Split


def number(frame: DataFrame, name: str) -> Column:
    """The value as a double; null if it is missing, NaN or not a number."""
    value = column(name)
    if isinstance(frame.schema[name].dataType, T.StringType):
        cast = F.expr("try_cast(`{}` as double)".format(name.replace("`", "``")))
        return F.when(value.rlike(PATTERNS[TextForm.NUMBER]), cast)
    value = value.cast("double")
    return F.when(~F.isnan(value), value)


def class_name(frame: DataFrame, name: str, *, in_place: bool = False) -> Column:
    """The value as text: whole numbers without a decimal point, so that 1 and 1.0 are one class.

    Args:
        in_place: leave text as it is, because readers of such a table look it up.
    """
    text = column(name).cast("string")
    if in_place and isinstance(frame.schema[name].dataType, T.StringType):
        return text
    value = number(frame, name)
    whole = (value == F.floor(value)) & (F.abs(value) < 2.0**53)
    return F.when(whole, F.floor(value).cast("bigint").cast("string")).otherwise(text)


def analyse(
    frame: DataFrame,
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
        frame: has the column `splits.SPLIT`.
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
    names = [name for name in frame.columns if name not in OWN_COLUMNS]
    kinds = {name: _stored_kind(frame, name, in_place=in_place) for name in names}
    kinds |= dict.fromkeys(prose, ColumnKind.TEXT)
    for name, type in types.items():
        check_stored_label(name, type, frame.schema[name].dataType, is_alone=len(types) == 1)
    announce(f"profiling {len(names)} columns")
    facts = _summary(frame, kinds)
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
    counted = {
        name: class_name(frame, name, in_place=in_place)
        for name, type in types.items()
        if may_be_classes(name, type, kinds[name], is_whole=fact("whole", name) == total, in_place=in_place)
    }
    texts = [name for name in names if name not in types and _has_codes(frame, name, kinds[name])]
    if texts or counted:
        announce(f"counting the values of {len(texts) + len(counted)} columns of {total:,} rows")
    values = _values(frame, texts, counted, max(max_vocabulary, MAX_CLASSES + 1))
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


def _stored_kind(frame: DataFrame, name: str, *, in_place: bool) -> ColumnKind:
    """The kind of a column by its type: SEQUENCE for all lists, CATEGORICAL for all text."""
    match frame.schema[name].dataType:
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


def _has_codes(frame: DataFrame, name: str, kind: ColumnKind) -> bool:
    stored = frame.schema[name].dataType
    of_text = isinstance(stored, T.ArrayType) and isinstance(stored.elementType, T.StringType)
    return kind is ColumnKind.CATEGORICAL or of_text


def _summary(frame: DataFrame, kinds: Mapping[str, ColumnKind]) -> Mapping[str, Any]:
    """Count values, moments and lengths of all columns, by `<fact>_<index of the column>`."""
    # Numbers are parsed once per row instead of once per fact.
    values = [column(name).alias(f"v{i}") for i, name in enumerate(kinds)]
    numbers = [number(frame, name).alias(f"n{i}") for i, name in enumerate(kinds) if _is_scalar(kinds[name])]
    projected = frame.select((column(SPLIT) == str(Split.TRAIN)).alias("train"), *values, *numbers)
    in_train = F.col("train")
    wanted = [F.count(F.lit(1)).alias("rows"), F.count(F.when(in_train, 1)).alias("train")]
    for i, (name, kind) in enumerate(kinds.items()):
        value = F.col(f"v{i}")
        if kind is ColumnKind.BINARY:
            wanted.append(F.count(value).alias(f"present_{i}"))
            continue
        if kind is ColumnKind.TEXT:
            wanted.append(F.count(value).alias(f"present_{i}"))
            wanted.append(F.max(F.octet_length(value)).alias(f"longest_{i}"))
            continue
        if kind is ColumnKind.SEQUENCE:
            facts = counts_of_lists(value, frame.schema[name].dataType, in_train)
            wanted += [fact.alias(f"{key}_{i}") for key, fact in facts.items()]
            continue
        parsed = F.col(f"n{i}")
        present = parsed if kind is ColumnKind.NUMERIC else value
        wanted += [
            F.count(present).alias(f"present_{i}"),
            F.count(F.when(in_train, present)).alias(f"train_{i}"),
            F.count(parsed).alias(f"numbers_{i}"),
            F.count(F.when(parsed == F.floor(parsed), 1)).alias(f"whole_{i}"),
            F.mean(F.when(in_train, parsed)).alias(f"mean_{i}"),
            F.stddev_pop(F.when(in_train, parsed)).alias(f"deviation_{i}"),
        ]
    return projected.agg(*wanted).collect()[0].asDict()


def _is_scalar(kind: ColumnKind) -> bool:
    return kind in (ColumnKind.NUMERIC, ColumnKind.CATEGORICAL)


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


def _values(
    frame: DataFrame, texts: Sequence[str], labels: Mapping[str, Column], limit: int
) -> dict[str, list[str]]:
    """The `limit` most frequent values of each text column in the training split, of labels in all rows."""

    def counted_as(i: int, value: Column) -> Column:
        return F.struct(F.lit(i).alias("i"), value.alias("value"))

    def counted_in(i: int, name: str) -> Column:
        if isinstance(frame.schema[name].dataType, T.ArrayType):
            elements = F.coalesce(column(name), F.array().cast("array<string>"))
            return F.transform(elements, lambda element: counted_as(i, element))
        return F.array(counted_as(i, F.coalesce(column(name), F.lit(""))))

    parts = []
    if texts:
        of_row = F.concat(*(counted_in(i, name) for i, name in enumerate(texts)))
        parts.append(F.coalesce(F.when(column(SPLIT) == str(Split.TRAIN), of_row), F.array()))
    parts += [F.array(counted_as(i, value)) for i, value in enumerate(labels.values(), len(texts))]
    if not parts:
        return {}
    counted = (
        frame.select(F.explode(F.concat(*parts)).alias("pair"))
        .groupBy("pair.i", "pair.value")
        .agg(F.count(F.lit(1)).alias("rows"))
    )
    rank = F.row_number().over(Window.partitionBy("i").orderBy(F.desc("rows"), "value"))
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    names = [*texts, *labels]
    for row in counted.withColumn("rank", rank).where(F.col("rank") <= limit).collect():
        found[names[row["i"]]].append((row["rank"], row["value"]))
    return {name: [value for _, value in sorted(ranked)] for name, ranked in found.items()}
