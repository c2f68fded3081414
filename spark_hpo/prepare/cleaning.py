"""Cleans a table: parses dates and numbers that are written as text, and drops useless columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import types as T

from spark_hpo.data.text_forms import DATES, PATTERNS, TextForm
from spark_hpo.prepare.labels import MAX_INTEGER_CLASSES
from spark_hpo.prepare.rows import Cleaned, Rows
from spark_hpo.prepare.useless_columns import SCALARS, drop_useless_columns

_HEAD_ROWS = 200  # that are looked at for forms of text
_MAX_STRAY_SHARE = 0.1  # of values that are not numbers, in a column that is still read as numbers


@dataclass
class _Changes:
    """The changes to make, by column."""

    forms: dict[str, TextForm] = field(default_factory=dict)  # of the columns to parse
    parsed_as: dict[str, list[str]] = field(default_factory=dict)  # names of columns, by the format
    remarks: list[str] = field(default_factory=list)


def clean(
    rows: Rows,
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
    copy, rows without a label are dropped, too. One to four passes, of which one reads all columns.

    Args:
        rows: with the original values.
        keep: columns to leave as they are.
        keep_texts: columns to leave as text, but not to keep if they are useless.
        comma_is_decimal: how to read a column in which a comma may separate decimals or thousands.
        is_small: whether distinct values can be held in memory; otherwise they are estimated.
        in_place: parse no texts and drop no rows, because readers find them in the table.

    Raises:
        DataError: a label is the same in every row.
    """
    names = [f.name for f in rows.schema if isinstance(f.dataType, SCALARS)]
    if not set(labels) <= set(names):
        return Cleaned(rows, ())  # the analysis raises the error
    unparsed = {*keep, *keep_texts}
    texts = [name for name in names if isinstance(rows.schema[name].dataType, T.StringType)]
    parsable = [] if in_place else [name for name in texts if name not in unparsed]
    forms = _possible_forms(rows, parsable)
    facts = rows.scalar_facts(names, names, labels, forms, is_small=is_small)
    changes = _Changes()
    for i, name in enumerate(names):
        if name in forms:
            is_label = name in labels
            _parse_text(changes, name, i, facts, forms[name], is_label, comma_is_decimal=comma_is_decimal)
    remarks = [f"read as {format}: {', '.join(names)}" for format, names in changes.parsed_as.items()]
    remarks += changes.remarks
    if changes.forms:
        rows = rows.converted(changes.forms)
        again = list(changes.forms) if changes.forms.keys().isdisjoint(labels) else names
        facts |= rows.scalar_facts(names, again, labels, {}, is_small=is_small)
    cleaned = drop_useless_columns(
        rows,
        names,
        facts,
        labels=labels,
        keep=keep,
        max_vocabulary=max_vocabulary,
        may_drop_rows=not in_place,
    )
    return replace(cleaned, remarks=(*remarks, *cleaned.remarks), forms=changes.forms)


_TEXT_FORMS = {  # patterns of texts without surrounding space
    TextForm.ISO: PATTERNS[TextForm.ISO],
    **{form: date.pattern for form, date in DATES.items()},
    TextForm.SIGNS: PATTERNS[TextForm.SIGNS],
    TextForm.COMMA: PATTERNS[TextForm.COMMA],
}


def _possible_forms(rows: Rows, texts: Sequence[str]) -> dict[str, list[TextForm]]:
    """The forms that all values of a text column may have, as far as its first values show.

    All values must have a form, so one value that has not rules it out. This spares nearly all of the
    expressions that look for forms, which take Spark seconds to compile.
    """
    if not texts:
        return {}
    head = rows.head(texts, _HEAD_ROWS)
    return {
        name: [
            form
            for form, pattern in _TEXT_FORMS.items()
            if all(row[i] is None or re.search(pattern, row[i], re.ASCII) for row in head)
        ]
        for i, name in enumerate(texts)
    }


def _parse_text(
    changes: _Changes,
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
    if name in changes.forms or is_label or not has_many_values:
        return
    if strays <= _MAX_STRAY_SHARE * present:
        changes.forms[name] = TextForm.NUMBER_OR_WORD
        changes.remarks.append(
            f"column {name!r} is read as numbers: {strays} of {present} values are not numbers, such "
            f"as {facts[f'stray_{i}'][:40]!r}, and count as missing (to prevent this: --keep {name})"
        )


def _parse(
    changes: _Changes, name: str, forms: Sequence[TextForm], is_label: bool, *, comma_is_decimal: bool
) -> None:
    """Parse a column by the first of the forms that all its values have."""
    dates = [form for form in forms if form.is_date]
    if dates and not is_label:
        form = dates[0]
        readable = "year-month-day" if form is TextForm.ISO else DATES[form].readable
        changes.forms[name] = form
        ambiguous = " (day/month/year is possible, too)" if len(dates) > 1 else ""
        changes.parsed_as.setdefault(f"dates, {readable}{ambiguous}", []).append(name)
        return
    both = (TextForm.SIGNS, TextForm.COMMA)
    for form in reversed(both) if comma_is_decimal else both:
        if form not in forms:
            continue
        changes.forms[name] = form
        is_comma = form is TextForm.COMMA
        readable = "a decimal comma" if is_comma else "currency signs or thousands separators"
        changes.parsed_as.setdefault(f"numbers with {readable}", []).append(name)
        return
