"""From an analysed table to the columns of a prepared one."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.prepare.columns import Analysis, NumberFacts, TextFacts, class_name, number
from spark_hpo.prepare.splits import ORDER, SPLIT, column

MISSING_SUFFIX = "_missing"


def original(frame: DataFrame, null_values: Sequence[str]) -> DataFrame:
    """The table as it came: text trimmed, what counts as missing null, dates as seconds since 1970."""
    columns = []
    for field in frame.schema:
        value = column(field.name)
        match field.dataType:
            case T.StringType():
                text = F.trim(value)
                value = F.when(~text.isin("", *null_values), text)
            case T.BooleanType():
                value = value.cast("string")
            case T.DateType() | T.TimestampType():
                value = value.cast("timestamp").cast("double")
        columns.append(value.alias(field.name))
    return frame.select(columns)


def encode(frame: DataFrame, analysis: Analysis) -> DataFrame:
    """Features and label as numbers, none of them null; `SPLIT` and `ORDER` stay."""
    columns: list[Column] = []
    for facts in analysis.features:
        if isinstance(facts, TextFacts):
            code = _position(F.coalesce(column(facts.name), F.lit("")), facts.values)
            columns.append(code.alias(facts.name))
            continue
        value = number(frame, facts.name)
        scaled = (F.coalesce(value, F.lit(facts.mean)) - facts.mean) / facts.deviation
        columns.append(scaled.cast("float").alias(facts.name))
        if facts.has_missing:
            flag = F.when(value.isNull(), 1.0).otherwise(0.0).cast("float")
            columns.append(flag.alias(_flag_name(facts, analysis)))
    label = analysis.label
    if isinstance(label, TextFacts):
        code = _position(class_name(frame, label.name), label.values) - 1
    else:
        code = number(frame, label.name).cast("float")
    return frame.select(*columns, code.alias(label.name), column(SPLIT), column(ORDER))


def schema_of(analysis: Analysis) -> TableSchema:
    """What `encode` returns, as `schema.json` says it."""
    features: list[Feature] = []
    for facts in analysis.features:
        name = facts.name
        if isinstance(facts, TextFacts):
            features.append(
                Feature(name=name, kind=ColumnKind.CATEGORICAL, vocabulary=facts.values, source=name)
            )
            continue
        features.append(
            Feature(
                name=name,
                kind=ColumnKind.NUMERIC,
                mean=facts.mean,
                deviation=facts.deviation,
                source=name,
            )
        )
        if facts.has_missing:
            features.append(Feature(name=_flag_name(facts, analysis), kind=ColumnKind.NUMERIC, source=name))
    label = analysis.label
    return TableSchema(
        features=tuple(features),
        label=Label(name=label.name, classes=label.values)
        if isinstance(label, TextFacts)
        else Label(name=label.name, mean=label.mean, deviation=label.deviation),
    )


def _position(value: Column, values: Sequence[str]) -> Column:
    """1 for the first of the values, 2 for the second; 0 for any other."""
    return F.array_position(F.array(*map(F.lit, values)), value).cast("bigint")


def _flag_name(facts: NumberFacts, analysis: Analysis) -> str:
    """`<name>_missing`, with more underscores while another column is called so."""
    taken = {analysis.label.name, *(feature.name for feature in analysis.features)}
    name = facts.name + MISSING_SUFFIX
    while name in taken:
        name += "_"
    return name
