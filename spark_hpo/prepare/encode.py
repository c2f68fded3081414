"""Describes an analysed table: the schema of its features, and of its original columns."""

from __future__ import annotations

import re

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
from spark_hpo.data.text_forms import TextForm
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
from spark_hpo.prepare.rows import Cleaned, Rows

MAX_TEXT_BYTES = 4096  # about a thousand tokens; data.truncate can raise it
_WHOLE = re.compile(r"-?(0|[1-9]\d*)$")


def schema_of(analysis: Analysis, encoding: Encoding = Encoding.PREPARED) -> TableSchema:
    """Return the schema of what `Rows.write` writes (PREPARED), or of the original table (RAW).

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
                    name=analysis.flag_name(facts),
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
    rows: Rows, cleaned: Cleaned, analysis: Analysis, *, is_typed: bool
) -> tuple[OriginalColumn, ...]:
    """Describe the columns of the original table, for models that encode its rows.

    Args:
        rows: as they were read.
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

    return tuple(map(described, rows.schema))


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
