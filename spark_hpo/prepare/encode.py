"""Encodes an analysed table: from original columns to prepared ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.schema import (
    LENGTH_SUFFIX,
    ColumnKind,
    Encoding,
    ExtraLabel,
    Feature,
    Label,
    NullRule,
    OriginalColumn,
    TableSchema,
)
from spark_hpo.data.text_forms import WHITESPACE, TextForm
from spark_hpo.errors import DataError
from spark_hpo.prepare.column_facts import (
    Analysis,
    BytesFacts,
    FeatureFacts,
    ListFacts,
    NumberFacts,
    ProseFacts,
    TextFacts,
)
from spark_hpo.prepare.columns import class_name, number
from spark_hpo.prepare.splits import OWN_COLUMNS, column
from spark_hpo.prepare.useless_columns import Cleaned

MISSING_SUFFIX = "_missing"
MAX_TEXT_BYTES = 4096  # about a thousand tokens; data.truncate can raise it
_WHOLE = re.compile(r"-?(0|[1-9]\d*)$")


def original(frame: DataFrame, null_values: Sequence[str]) -> DataFrame:
    """Return the original values: text trimmed, missing values null, dates as seconds since 1970.

    In lists, missing texts become the empty text. The session's time zone must be UTC, because Spark reads
    dates and times without a zone in it.
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
            columns.append(flag.alias(_flag_name(facts, analysis)))
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


def schema_of(analysis: Analysis, encoding: Encoding = Encoding.PREPARED) -> TableSchema:
    """Return the schema of what `encode` returns (PREPARED), or of the original table (RAW).

    Raises:
        DataError: a column has the name of the length of a list.
    """
    is_raw = encoding is Encoding.RAW
    filled = NullRule.FILL if is_raw else NullRule.REFUSE
    features: list[Feature] = []
    for facts in analysis.features:
        features.append(_feature(facts, filled))
        if isinstance(facts, NumberFacts) and facts.has_missing:
            features.append(
                Feature(
                    name=_flag_name(facts, analysis),
                    kind=ColumnKind.NUMERIC,
                    source=facts.name,
                    nulls=filled,
                    marks_missing=is_raw,
                )
            )
    label = analysis.label
    extra = tuple(ExtraLabel.of(_feature(facts, NullRule.REFUSE)) for facts in analysis.extra_labels)
    names = {label.name, *(e.label.name for e in extra), *(feature.name for feature in features)}
    for feature in features:
        if feature.kind.has_length and feature.name + LENGTH_SUFFIX in names:
            raise DataError(
                f"column {feature.name + LENGTH_SUFFIX!r} has the name of the length of the values in "
                f"{feature.name!r}. Rename it, or leave it out (--drop)"
            )
    return TableSchema(
        features=tuple(features),
        label=_label(label),
        extra_labels=extra,
        encoding=encoding,
    )


def _label(facts: NumberFacts | TextFacts | ListFacts) -> Label:
    if isinstance(facts, TextFacts):
        return Label(name=facts.name, classes=facts.values)
    shape = (facts.longest,) if isinstance(facts, ListFacts) else ()
    return Label(name=facts.name, mean=facts.mean, deviation=facts.deviation, shape=shape)


def original_columns(
    frame: DataFrame, cleaned: Cleaned, analysis: Analysis, *, is_typed: bool
) -> tuple[OriginalColumn, ...]:
    """Describe the columns of the original table, for models that encode its rows.

    Args:
        frame: the table as Spark read it.
        is_typed: False for a CSV, whose columns all are text: they get the types of what they spell.
    """
    labels: dict[str, FeatureFacts] = {facts.name: facts for facts in analysis.labels}
    used = labels | {facts.name: facts for facts in analysis.features}

    def described(field: T.StructField) -> OriginalColumn:
        name, kind = field.name, field.dataType.simpleString()
        form = cleaned.forms.get(name, TextForm.NONE)
        if name not in used:
            return OriginalColumn(name=name, type=kind, dropped=cleaned.dropped.get(name, "was left out"))
        if form in (TextForm.NONE, TextForm.NUMBER) and kind == "string" and not is_typed:
            facts = used[name]
            if isinstance(facts, NumberFacts):
                form, kind = TextForm.NUMBER, "double"
            elif name in labels and isinstance(facts, TextFacts) and all(map(_WHOLE.match, facts.values)):
                kind = "bigint"
        return OriginalColumn(name=name, type=kind, form=form, is_optional=name in analysis.optional)

    return tuple(map(described, frame.schema))


def _feature(facts: FeatureFacts, filled: NullRule) -> Feature:
    name = facts.name
    match facts:
        case NumberFacts():
            return Feature(
                name=name,
                kind=ColumnKind.NUMERIC,
                mean=facts.mean,
                deviation=facts.deviation,
                source=name,
                nulls=filled,
            )
        case TextFacts():
            kind = ColumnKind.CATEGORICAL
            return Feature(name=name, kind=kind, vocabulary=facts.values, source=name, nulls=filled)
        case ListFacts(is_array=True):
            return Feature(
                name=name,
                kind=ColumnKind.ARRAY,
                shape=(facts.longest,),
                mean=facts.mean,
                deviation=facts.deviation,
                source=name,
            )
        case ListFacts():
            return Feature(
                name=name,
                kind=ColumnKind.SEQUENCE,
                shape=(facts.longest,),
                vocabulary=facts.values,
                mean=facts.mean,
                deviation=facts.deviation,
                source=name,
                nulls=filled,
            )
        case BytesFacts():
            return Feature(name=name, kind=ColumnKind.BINARY, source=name)
        case ProseFacts():
            shape = (min(facts.longest, MAX_TEXT_BYTES),)
            return Feature(name=name, kind=ColumnKind.TEXT, shape=shape, source=name, nulls=filled)


def _position(value: Column, values: Sequence[str]) -> Column:
    """The position of a value, from 1; 0 if it is not among the values."""
    return F.array_position(F.array(*map(F.lit, values)), value).cast("bigint")


def _flag_name(facts: NumberFacts, analysis: Analysis) -> str:
    """`<name>_missing`, with underscores added until no other column has this name."""
    taken = {facts.name for facts in (*analysis.features, *analysis.labels)}
    name = facts.name + MISSING_SUFFIX
    while name in taken:
        name += "_"
    return name
