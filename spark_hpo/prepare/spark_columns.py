"""Columns of Spark: how values are read as numbers, times, categories and lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import DATES, IGNORED, PATTERNS, WHITESPACE, TextForm
from spark_hpo.prepare.column_facts import (
    Analysis,
    FeatureFacts,
    ListFacts,
    NumberFacts,
    ProseFacts,
    TextFacts,
)
from spark_hpo.prepare.rows import Reading
from spark_hpo.prepare.splits import OWN_COLUMNS, column


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


def instant(value: Column, form: TextForm) -> Column:
    """The timestamp in a text; null if the text does not have this form."""
    if form is TextForm.ISO:
        return F.when(value.rlike(PATTERNS[form]), F.try_to_timestamp(value))
    date = DATES[form]
    return F.when(value.rlike(date.pattern), F.try_to_timestamp(value, F.lit(date.spark)))


def converted(frame: DataFrame, name: str, reading: TextForm | Reading) -> Column:
    """The values of a column as `Rows.converted` describes them."""
    value = column(name)
    match reading:
        case Reading.CATEGORY:
            return class_name(frame, name, in_place=True)
        case Reading.TOKENS:
            return value.cast("array<string>")
        case Reading.FLAG:
            return value.cast("int")
        case TextForm.SIGNS | TextForm.COMMA:
            plain = F.regexp_replace(value, IGNORED[reading], "")
            return F.regexp_replace(plain, ",", ".").cast("double")
        case TextForm.NUMBER | TextForm.NUMBER_OR_WORD:
            return number(frame, name)
        case TextForm.NONE:
            return value
        case form:
            return instant(value, form).cast("double")


def original(frame: DataFrame, null_values: Sequence[str]) -> DataFrame:
    """Return what `Rows.original` describes.

    The session's time zone must be UTC, because Spark reads dates and times without a zone in it.
    """

    def trimmed(text: Column) -> Column:
        return F.btrim(text, F.lit(WHITESPACE))

    def element(text: Column) -> Column:
        return F.when(trimmed(text).isin(*null_values), "").otherwise(trimmed(text))

    columns = []
    for field in frame.schema:
        value = column(field.name)
        match field.dataType:
            case T.StringType():
                text = trimmed(value)
                value = F.when(~text.isin("", *null_values), text)
            case T.ArrayType(elementType=T.StringType()):
                value = F.transform(value, element)
            case T.BooleanType():
                value = value.cast("string")
            case T.DateType() | T.TimestampType() | T.TimestampNTZType():
                value = value.cast("timestamp").cast("double")
        columns.append(value.alias(field.name))
    return frame.select(columns)


def encode(frame: DataFrame, analysis: Analysis) -> DataFrame:
    """Return features and label as numbers, lists of numbers or bytes, none null; and the split columns."""
    columns: list[Column] = []
    for facts in analysis.features:
        columns.append(_encoded(frame, facts).alias(facts.name))
        if isinstance(facts, NumberFacts) and facts.has_missing:
            flag = F.when(number(frame, facts.name).isNull(), 1.0).otherwise(0.0).cast("float")
            columns.append(flag.alias(analysis.flag_name(facts)))
    for extra in analysis.extra_labels:
        if isinstance(extra, TextFacts):
            columns.append(_position(class_name(frame, extra.name), extra.values).alias(extra.name))
        else:
            columns.append(_encoded(frame, extra).alias(extra.name))
    label = analysis.label
    if isinstance(label, TextFacts):
        code = _position(class_name(frame, label.name), label.values) - 1
    elif isinstance(label, ListFacts):
        code = column(label.name).cast("array<float>")
    else:
        code = number(frame, label.name).cast("float")
    kept = [column(name) for name in OWN_COLUMNS if name in frame.columns]
    return frame.select(*columns, code.alias(label.name), *kept)


def _encoded(frame: DataFrame, facts: FeatureFacts) -> Column:
    value = column(facts.name)
    match facts:
        case NumberFacts():
            filled = F.coalesce(number(frame, facts.name), F.lit(facts.mean))
            return ((filled - facts.mean) / facts.deviation).cast("float")
        case TextFacts():
            return _position(F.coalesce(value, F.lit("")), facts.values)
        case ListFacts(values=()):
            return F.coalesce(value.cast("array<float>"), F.array().cast("array<float>"))
        case ListFacts():
            codes = F.transform(value, lambda element: _position(element, facts.values))
            return F.coalesce(codes, F.array().cast("array<bigint>"))
        case ProseFacts():
            return F.coalesce(value, F.lit(""))
    return value


def _position(value: Column, values: Sequence[str]) -> Column:
    """The position of a value, from 1; 0 if it is not among the values."""
    return F.array_position(F.array(*map(F.lit, values)), value).cast("bigint")


def summarised(i: int, kind: ColumnKind, stored: T.DataType, in_train: Column) -> Mapping[str, Column]:
    """Return what `Rows.summary` counts of the columns `v<i>` and `n<i>`, by the name of the fact."""
    value = F.col(f"v{i}")
    match kind:
        case ColumnKind.BINARY:
            return {"present": F.count(value)}
        case ColumnKind.TEXT:
            return {"present": F.count(value), "longest": F.max(F.octet_length(value))}
        case ColumnKind.SEQUENCE:
            return _of_lists(value, stored, in_train)
    parsed = F.col(f"n{i}")
    present = parsed if kind is ColumnKind.NUMERIC else value
    return {
        "present": F.count(present),
        "train": F.count(F.when(in_train, present)),
        "numbers": F.count(parsed),
        "whole": F.count(F.when(parsed == F.floor(parsed), 1)),
        "mean": F.mean(F.when(in_train, parsed)),
        "deviation": F.stddev_pop(F.when(in_train, parsed)),
    }


def _of_lists(value: Column, stored: T.DataType, in_train: Column) -> Mapping[str, Column]:
    assert isinstance(stored, T.ArrayType)
    of_text = isinstance(stored.elementType, T.StringType)

    def is_bad(element: Column) -> Column:
        if of_text:
            return element.isNull()
        as_double = element.cast("double")
        return element.isNull() | F.isnan(as_double) | (F.abs(as_double) == math.inf)

    facts = {
        "present": F.count(value),
        "longest": F.max(F.when(value.isNotNull(), F.size(value))),
        "shortest": F.min(F.when(value.isNotNull(), F.size(value))),
        "bad": F.count(F.when(F.exists(value, is_bad), 1)),
    }
    if of_text:
        return facts

    def total(of: Callable[[Column], Column]) -> Column:
        summed = F.aggregate(value, F.lit(0.0), lambda sum_, element: sum_ + of(element.cast("double")))
        return F.sum(F.when(in_train, summed))

    return facts | {
        "elements": F.sum(F.when(in_train & value.isNotNull(), F.size(value))),
        "sum": total(lambda element: element),
        "squares": total(lambda element: element * element),
    }
