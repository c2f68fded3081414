"""Cleans a table: parses dates and numbers that are written as text, and drops useless columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.text_forms import DATES, IGNORED, PATTERNS, TextForm
from spark_hpo.prepare.columns import number
from spark_hpo.prepare.labels import MAX_INTEGER_CLASSES
from spark_hpo.prepare.splits import column
from spark_hpo.prepare.useless_columns import SCALARS, Cleaned, drop_useless_columns

_HEAD_ROWS = 200  # that are looked at for forms of text
_MAX_STRAY_SHARE = 0.1  # of values that are not numbers, in a column that is still read as numbers


@dataclass
class _Changes:
    """The changes to make, by column."""

    replaced: dict[str, Column] = field(default_factory=dict)
    forms: dict[str, TextForm] = field(default_factory=dict)  # of the replaced columns
    parsed_as: dict[str, list[str]] = field(default_factory=dict)  # names of columns, by the format
    remarks: list[str] = field(default_factory=list)


def clean(
    frame: DataFrame,
    *,
    labels: Sequence[str],
    keep: Collection[str],
    keep_texts: Collection[str] = (),
    comma_is_decimal: bool = False,
    max_vocabulary: int,
    is_small: bool,
    in_place: bool,
) -> Cleaned:
    """Parse text columns of dates or numbers, and drop columns that carry no information or repeat a label.

    The latter are empty and constant columns; text that differs in nearly every row (names, ids, free text);
    row numbers, and integers that are called an id and differ in every row; and copies of a label. In a
    copy, rows without a label are dropped, too. One to four Spark jobs, of which one reads all columns.

    Args:
        frame: as `original` returns it.
        keep: columns to leave as they are.
        keep_texts: columns to leave as text, but not to keep if they are useless.
        comma_is_decimal: how to read a column in which a comma may separate decimals or thousands.
        is_small: whether distinct values can be held in memory; otherwise they are estimated.
        in_place: parse no texts and drop no rows, because readers find them in the table.

    Raises:
        DataError: a label is the same in every row.
    """
    names = [f.name for f in frame.schema if isinstance(f.dataType, SCALARS)]
    if not set(labels) <= set(names):
        return Cleaned(frame, ())  # the analysis raises the error
    unparsed = {*keep, *keep_texts}
    texts = [name for name in names if isinstance(frame.schema[name].dataType, T.StringType)]
    parsable = [] if in_place else [name for name in texts if name not in unparsed]
    forms = _possible_forms(frame, parsable)
    facts = _facts(frame, names, names, labels, forms, is_small=is_small)
    changes = _Changes()
    for i, name in enumerate(names):
        if name in forms:
            is_label = name in labels
            _parse_text(
                changes, frame, name, i, facts, forms[name], is_label, comma_is_decimal=comma_is_decimal
            )
    remarks = [f"read as {format}: {', '.join(names)}" for format, names in changes.parsed_as.items()]
    remarks += changes.remarks
    if changes.replaced:
        frame = frame.select(
            *(
                changes.replaced[name].alias(name) if name in changes.replaced else column(name)
                for name in frame.columns
            )
        )
        again = list(changes.replaced) if changes.replaced.keys().isdisjoint(labels) else names
        facts |= _facts(frame, names, again, labels, {}, is_small=is_small)
    cleaned = drop_useless_columns(
        frame,
        names,
        facts,
        labels=labels,
        keep=keep,
        max_vocabulary=max_vocabulary,
        may_drop_rows=not in_place,
    )
    return replace(cleaned, remarks=(*remarks, *cleaned.remarks), forms=changes.forms)


def time_in_text(frame: DataFrame, name: str) -> tuple[TextForm, Column] | None:
    """Return how a text column spells times in every row with a value, and the times as seconds or numbers.

    None if it holds something else.
    """
    readings = {form: _instant(column(name), form).cast("double") for form in (TextForm.ISO, *DATES)}
    readings[TextForm.NUMBER] = number(frame, name)
    found = frame.agg(
        F.count(column(name)).alias("present"), *(F.count(r).alias(form) for form, r in readings.items())
    ).collect()[0]
    return next(((form, r) for form, r in readings.items() if found[form] == found["present"]), None)


_TEXT_FORMS = {  # patterns of texts without surrounding space
    TextForm.ISO: PATTERNS[TextForm.ISO],
    **{form: date.pattern for form, date in DATES.items()},
    TextForm.SIGNS: PATTERNS[TextForm.SIGNS],
    TextForm.COMMA: PATTERNS[TextForm.COMMA],
}


def _possible_forms(frame: DataFrame, texts: Sequence[str]) -> dict[str, list[TextForm]]:
    """The forms that all values of a text column may have, as far as its first values show.

    All values must have a form, so one value that has not rules it out. This spares nearly all of the
    expressions that look for forms, which take Spark seconds to compile.
    """
    if not texts:
        return {}
    head = frame.select(*(column(name).alias(f"v{i}") for i, name in enumerate(texts))).limit(_HEAD_ROWS)
    rows = head.collect()
    return {
        name: [
            form
            for form, pattern in _TEXT_FORMS.items()
            if all(row[i] is None or re.search(pattern, row[i], re.ASCII) for row in rows)
        ]
        for i, name in enumerate(texts)
    }


def _facts(
    frame: DataFrame,
    names: Sequence[str],
    wanted: Collection[str],
    labels: Sequence[str],
    forms: Mapping[str, Sequence[TextForm]],
    *,
    is_small: bool,
) -> dict[str, Any]:
    """The facts about the wanted columns, by `<fact>_<index in names>`, and the number of rows.

    `labelled` are the rows with all labels. `same<j>` counts the rows in which a number equals the label `j`.

    Args:
        forms: the forms to count, for texts that may be parsed.
    """
    # Numbers are parsed once per row instead of once per fact.
    known = [(i, name) for i, name in enumerate(names) if name in wanted]
    values = [column(name).alias(f"v{i}") for i, name in known]
    numbers = [number(frame, name).alias(f"n{i}") for i, name in known]
    targets = [number(frame, name).alias(f"label{j}") for j, name in enumerate(labels)]
    is_labelled = reduce(and_, (column(name).isNotNull() for name in labels))
    projected = frame.select(*values, *numbers, *targets, is_labelled.alias("is_labelled"))
    counted = [F.count(F.lit(1)).alias("rows"), F.count(F.when(F.col("is_labelled"), 1)).alias("labelled")]
    for i, name in known:
        counted += _scalar_facts(i, is_small=is_small)
        for j in range(len(labels)):
            counted.append(F.count(F.when(F.col(f"n{i}") == F.col(f"label{j}"), 1)).alias(f"same{j}_{i}"))
        if name in forms:
            counted += _text_facts(i, forms[name])
    return projected.agg(*counted).collect()[0].asDict()


def _scalar_facts(i: int, *, is_small: bool) -> Iterator[Column]:
    value, numbers = F.col(f"v{i}"), F.col(f"n{i}")
    # The sketch has hundreds of fields, with which Spark compiles for seconds.
    distinct = F.size(F.collect_set(value)) if is_small else F.approx_count_distinct(value, 0.02)
    yield F.count(value).alias(f"present_{i}")
    yield F.count(numbers).alias(f"numbers_{i}")
    yield distinct.alias(f"distinct_{i}")
    yield F.min(value).alias(f"first_{i}")
    yield F.max(value).alias(f"last_{i}")
    yield F.count(F.when(numbers == F.floor(numbers), 1)).alias(f"whole_{i}")
    yield F.min(numbers).alias(f"low_{i}")
    yield F.max(numbers).alias(f"high_{i}")


def _text_facts(i: int, forms: Sequence[TextForm]) -> Iterator[Column]:
    value = F.col(f"v{i}")
    yield F.min(F.when(F.col(f"n{i}").isNull(), value)).alias(f"stray_{i}")
    for form in forms:
        matches = _instant(value, form).isNotNull() if form.is_date else value.rlike(PATTERNS[form])
        yield F.count(F.when(matches, 1)).alias(f"{form}_{i}")


def _instant(value: Column, form: TextForm) -> Column:
    """The timestamp in a text; null if the text does not have this form."""
    if form is TextForm.ISO:
        return F.when(value.rlike(PATTERNS[form]), F.try_to_timestamp(value))
    date = DATES[form]
    return F.when(value.rlike(date.pattern), F.try_to_timestamp(value, F.lit(date.spark)))


def _parse_text(
    changes: _Changes,
    frame: DataFrame,
    name: str,
    i: int,
    facts: Mapping[str, Any],
    possible: Sequence[TextForm],
    is_label: bool,
    *,
    comma_is_decimal: bool,
) -> None:
    """Parse a text column of dates or numbers, apart from a few stray values."""
    present, numbers = facts[f"present_{i}"], facts[f"numbers_{i}"]
    if not present or numbers == present:
        return
    forms = [form for form in possible if facts[f"{form}_{i}"] == present]
    _parse(changes, name, forms, is_label, comma_is_decimal=comma_is_decimal)
    strays = present - numbers
    has_many_values = facts[f"distinct_{i}"] > MAX_INTEGER_CLASSES
    if name in changes.replaced or is_label or not has_many_values:
        return
    if strays <= _MAX_STRAY_SHARE * present:
        changes.replaced[name], changes.forms[name] = number(frame, name), TextForm.NUMBER_OR_WORD
        changes.remarks.append(
            f"column {name!r} is read as numbers: {strays} of {present} values are not numbers, such "
            f"as {facts[f'stray_{i}'][:40]!r}, and count as missing (to prevent this: --keep {name})"
        )


def _parse(
    changes: _Changes, name: str, forms: Sequence[TextForm], is_label: bool, *, comma_is_decimal: bool
) -> None:
    """Parse a column by the first of the forms that all its values have."""
    value = column(name)
    dates = [form for form in forms if form.is_date]
    if dates and not is_label:
        form = dates[0]
        readable = "year-month-day" if form is TextForm.ISO else DATES[form].readable
        changes.replaced[name], changes.forms[name] = _instant(value, form).cast("double"), form
        ambiguous = " (day/month/year is possible, too)" if len(dates) > 1 else ""
        changes.parsed_as.setdefault(f"dates, {readable}{ambiguous}", []).append(name)
        return
    both = (TextForm.SIGNS, TextForm.COMMA)
    for form in reversed(both) if comma_is_decimal else both:
        if form not in forms:
            continue
        plain = F.regexp_replace(value, IGNORED[form], "")
        changes.replaced[name] = F.regexp_replace(plain, ",", ".").cast("double")
        changes.forms[name] = form
        is_comma = form is TextForm.COMMA
        readable = "a decimal comma" if is_comma else "currency signs or thousands separators"
        changes.parsed_as.setdefault(f"numbers with {readable}", []).append(name)
        return
