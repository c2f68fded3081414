"""What the columns of a table hold: kinds, vocabularies, means, deviations. Two Spark jobs in all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.splits import ORDER, SPLIT, column
from spark_hpo.trial import Split

MAX_CLASSES = 1000
MAX_INTEGER_CLASSES = 20  # label_type auto: integers with more values are a regression
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """A numeric column, as the training split has it."""

    name: str
    mean: float
    deviation: float  # 1.0 for a constant
    has_missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A text column. The values are in the order of their codes; "" stands for missing ones."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All that encoding needs to know."""

    features: tuple[NumberFacts | TextFacts, ...]
    label: NumberFacts | TextFacts
    total_rows: int


def number(frame: DataFrame, name: str) -> Column:
    """The value as a double; null where it is missing, NaN or not a number."""
    value = column(name)
    if isinstance(frame.schema[name].dataType, T.StringType):
        cast = F.expr("try_cast(`{}` as double)".format(name.replace("`", "``")))
        return F.when(value.rlike(_NUMBER), cast)
    value = value.cast("double")
    return F.when(~F.isnan(value), value)


def class_name(frame: DataFrame, name: str) -> Column:
    """The value as text: whole numbers without a decimal point, so that 1 and 1.0 are one class."""
    text = column(name).cast("string")
    value = number(frame, name)
    whole = (value == F.floor(value)) & (F.abs(value) < 2.0**53)
    return F.when(whole, F.floor(value).cast("bigint").cast("string")).otherwise(text)


def analyse(frame: DataFrame, *, place: str, label: str, label_type: str, max_vocabulary: int) -> Analysis:
    """Look at all rows for the kinds of columns, at the training split for their contents.

    Args:
        frame: what `splits.with_split` returned.

    Raises:
        DataError: the table is empty, a column is of a type that has no meaning here, a number is
            infinite, or the label is missing somewhere.
        ConfigError: `label_type` does not fit the label.
    """
    names = [name for name in frame.columns if name not in (SPLIT, ORDER)]
    for field in frame.schema:
        if not isinstance(field.dataType, T.StringType | T.NumericType):
            raise DataError(
                f"{place}: column {field.name!r} is {field.dataType.simpleString()}, and text or numbers "
                f"are needed: leave it out (--drop {field.name}), or cast it"
            )
    facts = _summary(frame, names)
    total = facts["rows"]
    if not total or not facts["train"]:
        raise DataError(f"{place}: {total} rows, {facts['train']} of them for training: use more rows")
    missing = total - facts[f"present_{names.index(label)}"]
    if missing:
        raise DataError(
            f"{place}: the label {label!r} is missing in {missing} of {total} rows: drop these rows first"
        )
    kinds = {name: _is_number(facts, i) for i, name in enumerate(names)}
    at = names.index(label)
    maybe_class = label_type == "class" or (
        label_type == "auto" and (not kinds[label] or facts[f"whole_{at}"] == total)
    )
    if label_type == "number" and not kinds[label]:
        raise ConfigError(f"{place}: label_type is number, and the label {label!r} holds text: choose class")
    texts = [name for name in names if name != label and not kinds[name]]
    values = _values(frame, texts, label if maybe_class else None, max(max_vocabulary, MAX_CLASSES + 1))
    classes = _classes(values.get(label, []), place, label)
    if label_type == "auto" and kinds[label] and len(classes) > MAX_INTEGER_CLASSES:
        classes = ()
    return Analysis(
        features=tuple(
            _number_facts(facts, i, name, place)
            if kinds[name]
            else TextFacts(name=name, values=tuple(values[name][:max_vocabulary]))
            for i, name in enumerate(names)
            if name != label
        ),
        label=TextFacts(name=label, values=classes) if classes else _number_facts(facts, at, label, place),
        total_rows=total,
    )


def _summary(frame: DataFrame, names: Sequence[str]) -> Mapping[str, Any]:
    """Counts and moments of all columns, by `<fact>_<number of the column>`."""
    in_train = column(SPLIT) == str(Split.TRAIN)
    wanted = [F.count(F.lit(1)).alias("rows"), F.count(F.when(in_train, 1)).alias("train")]
    for i, name in enumerate(names):
        value = number(frame, name)
        present = value if not isinstance(frame.schema[name].dataType, T.StringType) else column(name)
        wanted += [
            F.count(present).alias(f"present_{i}"),
            F.count(F.when(in_train, present)).alias(f"train_{i}"),
            F.count(value).alias(f"numbers_{i}"),
            F.count(F.when(value == F.floor(value), 1)).alias(f"whole_{i}"),
            F.mean(F.when(in_train, value)).alias(f"mean_{i}"),
            F.stddev_pop(F.when(in_train, value)).alias(f"deviation_{i}"),
        ]
    return frame.agg(*wanted).collect()[0].asDict()


def _is_number(facts: Mapping[str, Any], i: int) -> bool:
    return bool(0 < facts[f"present_{i}"] == facts[f"numbers_{i}"])


def _number_facts(facts: Mapping[str, Any], i: int, name: str, place: str) -> NumberFacts:
    # Twelve digits: the last few depend on the order in which Spark's tasks end.
    mean, deviation = (
        float(f"{facts[f'{fact}_{i}'] if facts[f'{fact}_{i}'] is not None else 0.0:.12g}")
        for fact in ("mean", "deviation")
    )
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise DataError(
            f"{place}: column {name!r} has infinite values, or some too large to square: bound or drop them"
        )
    missing = facts["train"] - facts[f"train_{i}"]
    return NumberFacts(name=name, mean=mean, deviation=deviation or 1.0, has_missing=missing > 0)


def _values(frame: DataFrame, texts: Sequence[str], label: str | None, limit: int) -> dict[str, list[str]]:
    """The `limit` most frequent values of each column: of the training split, of a label all."""
    named = [(name, F.coalesce(column(name), F.lit(""))) for name in texts]
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    pairs = [F.struct(F.lit(i).alias("i"), value.alias("value")) for i, (_, value) in enumerate(named)]
    in_train = F.when(column(SPLIT) == str(Split.TRAIN), F.array(*pairs)) if pairs else None
    parts = [F.coalesce(in_train, F.array())] if in_train is not None else []
    if label is not None:
        of_label = F.struct(F.lit(len(texts)).alias("i"), class_name(frame, label).alias("value"))
        parts.append(F.array(of_label))
    if not parts:
        return {}
    counted = (
        frame.select(F.explode(F.concat(*parts)).alias("pair"))
        .groupBy("pair.i", "pair.value")
        .agg(F.count(F.lit(1)).alias("rows"))
    )
    rank = F.row_number().over(Window.partitionBy("i").orderBy(F.desc("rows"), "value"))
    names = [*texts, label]
    for row in counted.withColumn("rank", rank).where(F.col("rank") <= limit).collect():
        found[str(names[row["i"]])].append((row["rank"], row["value"]))
    return {name: [value for _, value in sorted(ranked)] for name, ranked in found.items()}


def _classes(values: Sequence[str], place: str, label: str) -> tuple[str, ...]:
    """The classes in the order of their codes: by number where all are whole, else by text."""
    if len(values) > MAX_CLASSES:
        raise DataError(
            f"{place}: the label {label!r} has more than {MAX_CLASSES} classes: "
            "name another column, or choose --label-type number"
        )
    try:
        return tuple(sorted(values, key=int))
    except ValueError:
        return tuple(sorted(values))
