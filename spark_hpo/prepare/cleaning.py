"""Cleans a table: parses dates and numbers that are written as text, and drops useless columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.errors import DataError
from spark_hpo.prepare.columns import MAX_INTEGER_CLASSES, number
from spark_hpo.prepare.splits import column

_FEW_ROWS = 20  # with fewer rows, distinct values do not make a column an id
_COUNT_ERROR = 0.05  # relative error to allow for in approximate counts of distinct values
_SCALARS = (T.StringType, T.NumericType)
_MAX_STRAY_SHARE = 0.1  # of values that are not numbers, in a column that is still read as numbers
_MAX_CLASSES = 100  # of a column that may be an alias of the label
_MIN_ROWS_PER_CLASS = 10  # of such a column: with fewer, two columns may match by chance
_ID_NAME = re.compile(r"(^|[^a-z0-9])(id|uuid|guid|index|idx|key|rowid|row_?n(um(ber)?)?)$", re.IGNORECASE)
_ISO = r"^\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?$"
_DATES = {  # form: regular expression, Spark's format, readable format
    "day_month_year": (r"^\d{1,2}\.\d{1,2}\.\d{4}$", "d.M.yyyy", "day.month.year"),
    "month_day_year": (r"^\d{1,2}/\d{1,2}/\d{4}$", "M/d/yyyy", "month/day/year"),
    "day_slash_month": (r"^\d{1,2}/\d{1,2}/\d{4}$", "d/M/yyyy", "day/month/year"),
}
_WITH_SIGNS = r"^[+-]?[$€£]?\s?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\s?[%$€£]?$"  # $1,200.50  12 %
_WITH_COMMA = r"^[+-]?[€]?\s?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?\s?[%€]?$"  # 1.200,50 €


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned table, with one sentence for the user about each change."""

    frame: DataFrame
    remarks: tuple[str, ...]
    rows: int = 0  # 0: not counted


@dataclass
class _Changes:
    """The changes to make, by column."""

    replaced: dict[str, Column] = field(default_factory=dict)
    parsed_as: dict[str, list[str]] = field(default_factory=dict)  # names of columns, by the format
    dropped: dict[str, str] = field(default_factory=dict)  # reasons
    remarks: list[str] = field(default_factory=list)


def parse_text_columns(
    frame: DataFrame, *, label: str, keep: Collection[str], comma_is_decimal: bool
) -> Cleaned:
    """Turn text columns of dates or numbers, apart from a few stray values, into numbers. One Spark job.

    Args:
        frame: as `original` returns it.
        keep: columns to leave as they are.
        comma_is_decimal: how to read a column in which a comma may separate decimals or thousands.
    """
    texts = [f.name for f in frame.schema if isinstance(f.dataType, T.StringType) and f.name not in keep]
    if not texts:
        return Cleaned(frame, ())
    counts = [fact for i, name in enumerate(texts) for fact in _text_facts(frame, name, i)]
    facts, changes = frame.agg(*counts).collect()[0].asDict(), _Changes()
    for i, name in enumerate(texts):
        present = facts[f"present_{i}"]
        if present and facts[f"number_{i}"] != present:
            forms = [form for form in _FORMS if facts[f"{form}_{i}"] == present]
            _parse(changes, name, forms, label, comma_is_decimal=comma_is_decimal)
            strays = present - facts[f"number_{i}"]
            has_many_values = facts[f"distinct_{i}"] > MAX_INTEGER_CLASSES
            is_numeric = has_many_values and strays <= _MAX_STRAY_SHARE * present
            if name not in changes.replaced and name != label and is_numeric:
                changes.replaced[name] = number(frame, name)
                changes.remarks.append(
                    f"column {name!r} is read as numbers: {strays} of {present} values are not numbers, such "
                    f"as {facts[f'stray_{i}'][:40]!r}, and count as missing (to prevent this: --keep {name})"
                )
    columns = [
        changes.replaced[name].alias(name) if name in changes.replaced else column(name)
        for name in frame.columns
    ]
    remarks = [f"read as {format}: {', '.join(names)}" for format, names in changes.parsed_as.items()]
    return Cleaned(frame.select(*columns), (*remarks, *changes.remarks))


def drop_useless_columns(
    frame: DataFrame,
    *,
    label: str,
    keep: Collection[str],
    max_vocabulary: int,
    may_drop_rows: bool,
) -> Cleaned:
    """Drop columns that carry no information, or that repeat the label. One or two Spark jobs.

    These are empty and constant columns; text that differs in nearly every row (names, ids, free text); row
    numbers, and integers that are called an id and differ in every row; and copies of the label. Rows without
    a label are dropped, too.

    Args:
        frame: as `original` returns it.
        keep: columns to leave as they are.

    Raises:
        DataError: the label is the same in every row.
    """
    names = [f.name for f in frame.schema if isinstance(f.dataType, _SCALARS)]
    if label not in names:
        return Cleaned(frame, ())  # the analysis raises the error
    wanted = [F.count(F.lit(1)).alias("rows")]
    for i, name in enumerate(names):
        wanted += _scalar_facts(frame, name, i, label)
    facts, changes = frame.agg(*wanted).collect()[0].asDict(), _Changes()
    for other in frame.schema:
        if other.name not in keep and not _is_supported(other.dataType):
            changes.dropped[other.name] = (
                f"is {other.dataType.simpleString()[:60]}, which is neither text nor numbers"
            )
    candidates = []
    rows, at = facts["rows"], names.index(label)
    labelled = facts[f"present_{at}"]
    if rows and facts[f"first_{at}"] == facts[f"last_{at}"]:
        value = repr(facts[f"first_{at}"]) if labelled else "missing"
        raise DataError(
            f"the label {label!r} is {value} in every row, so there is nothing to predict. Choose another one"
        )
    if labelled < rows and may_drop_rows:
        frame = frame.where(column(label).isNotNull())
        changes.remarks.append(f"{rows - labelled:,} of {rows:,} rows are left out: {label!r} is missing")
    for i, name in enumerate(names):
        if name == label or name in keep:
            continue
        own = {key: facts[f"{key}_{i}"] for key in _SCALAR_FACTS}
        if own["same"] == labelled:
            changes.dropped[name] = f"is a copy of the label {label!r}"
            continue
        if (reason := _why_useless(name, own, rows)) is not None:
            changes.dropped[name] = reason
            continue
        difference = abs(own["distinct"] - facts[f"distinct_{at}"])
        is_class = 1 < own["distinct"] <= min(_MAX_CLASSES, rows / _MIN_ROWS_PER_CLASS)
        if is_class and difference <= 1 + _COUNT_ERROR * own["distinct"] and own["present"] == rows:
            candidates.append(name)
        if own["numbers"] < own["present"] and own["distinct"] > max_vocabulary:
            changes.remarks.append(
                f"column {name!r} has about {own['distinct']:,} different values; only the "
                f"{max_vocabulary:,} most frequent get a code (--max-vocabulary)"
            )
    for name in _aliases(frame, label, candidates):
        changes.dropped[name] = f"is an alias of the label {label!r}: its values correspond one to one"
    remarks = [
        f"column {name!r} is left out: it {reason} (to prevent this: --keep {name})"
        for name, reason in changes.dropped.items()
    ]
    kept = frame.drop(*(column(name) for name in changes.dropped))
    return Cleaned(kept, (*remarks, *changes.remarks), labelled if may_drop_rows else rows)


_FORMS = ("iso", *_DATES, "signs", "comma")
_SCALAR_FACTS = ("present", "numbers", "distinct", "first", "last", "whole", "low", "high", "same")


def _text_facts(frame: DataFrame, name: str, i: int) -> list[Column]:
    value = column(name)

    def count(condition: Column, key: str) -> Column:
        return F.count(F.when(condition, 1)).alias(f"{key}_{i}")

    return [
        F.count(value).alias(f"present_{i}"),
        F.count(number(frame, name)).alias(f"number_{i}"),
        F.min(F.when(number(frame, name).isNull(), value)).alias(f"stray_{i}"),
        F.approx_count_distinct(value).alias(f"distinct_{i}"),
        count(_instant(value, "iso").isNotNull(), "iso"),
        *(count(_instant(value, form).isNotNull(), form) for form in _DATES),
        count(value.rlike(_WITH_SIGNS), "signs"),
        count(value.rlike(_WITH_COMMA), "comma"),
    ]


def _instant(value: Column, form: str) -> Column:
    """The timestamp in a text; null if the text does not have this form."""
    if form == "iso":
        return F.when(value.rlike(_ISO), F.try_to_timestamp(value))
    pattern, spark_format, _ = _DATES[form]
    return F.when(value.rlike(pattern), F.try_to_timestamp(value, F.lit(spark_format)))


def _parse(changes: _Changes, name: str, forms: Sequence[str], label: str, *, comma_is_decimal: bool) -> None:
    """Parse a column by the first of the forms that all its values have."""
    value = column(name)
    dates = [form for form in forms if form == "iso" or form in _DATES]
    if dates and name != label:
        form = dates[0]
        readable = "year-month-day" if form == "iso" else _DATES[form][2]
        changes.replaced[name] = _instant(value, form).cast("double")
        ambiguous = " (day/month/year is possible, too)" if len(dates) > 1 else ""
        changes.parsed_as.setdefault(f"dates, {readable}{ambiguous}", []).append(name)
        return
    for form in ("comma", "signs") if comma_is_decimal else ("signs", "comma"):
        if form not in forms:
            continue
        pattern = r"[€%\s.]" if form == "comma" else r"[$€£%,\s]"
        plain = F.regexp_replace(value, pattern, "")
        changes.replaced[name] = F.regexp_replace(plain, ",", ".").cast("double")
        readable = "a decimal comma" if form == "comma" else "currency signs or thousands separators"
        changes.parsed_as.setdefault(f"numbers with {readable}", []).append(name)
        return


def _scalar_facts(frame: DataFrame, name: str, i: int, label: str) -> list[Column]:
    value, numbers = column(name), number(frame, name)
    return [
        F.count(value).alias(f"present_{i}"),
        F.count(numbers).alias(f"numbers_{i}"),
        F.approx_count_distinct(value, 0.02).alias(f"distinct_{i}"),
        F.min(value).alias(f"first_{i}"),
        F.max(value).alias(f"last_{i}"),
        F.count(F.when(numbers == F.floor(numbers), 1)).alias(f"whole_{i}"),
        F.min(numbers).alias(f"low_{i}"),
        F.max(numbers).alias(f"high_{i}"),
        F.count(F.when(numbers == number(frame, label), 1)).alias(f"same_{i}"),
    ]


def _is_supported(stored: T.DataType) -> bool:
    if isinstance(stored, T.ArrayType):
        return isinstance(stored.elementType, _SCALARS)
    return isinstance(stored, (*_SCALARS, T.BinaryType))


def _why_useless(name: str, own: Mapping[str, Any], rows: int) -> str | None:
    """Why a column carries no information, as the end of a sentence; None: it may carry some."""
    present, distinct = own["present"], own["distinct"]
    if not present:
        return "is empty"
    if present == rows and own["first"] == own["last"]:
        return f"is {str(own['first'])[:40]!r} in every row"
    if present < _FEW_ROWS:
        return None
    if own["numbers"] < present:  # text
        if distinct > 0.5 * present:
            values = f"{min(distinct, present):,} different values"
            return f"has about {values} in {present:,} rows, as ids and free text have"
        return None
    all_differ = own["whole"] == present == rows and distinct >= (1 - _COUNT_ERROR) * rows
    if all_differ and own["high"] - own["low"] + 1 == rows:
        return f"numbers the rows, from {own['low']:.0f} to {own['high']:.0f}"
    if all_differ and _ID_NAME.search(name):
        return "is an id: an integer that differs in every row"
    return None


def _aliases(frame: DataFrame, label: str, candidates: Sequence[str]) -> list[str]:
    """The columns whose values correspond one to one to the values of the label."""
    if not candidates:
        return []
    # They have few values each, so the sets of pairs are small, and one pass collects them all.
    pairs = [F.collect_set(F.struct(column(name), column(label))) for name in candidates]
    collected = frame.agg(*(pair.alias(f"pairs_{i}") for i, pair in enumerate(pairs))).collect()[0]
    return [name for name, own in zip(candidates, collected, strict=True) if _is_one_to_one(own)]


def _is_one_to_one(pairs: Collection[Any]) -> bool:
    left, right = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(pairs) == len(left) == len(right) > 1
