"""What a first look puts right: columns that tell nothing or too much, dates and numbers in words."""

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

_FEW_ROWS = 20  # in fewer, that all values differ says nothing
_COARSE = 0.05  # of what an approximate count may be off
_SCALARS = (T.StringType, T.NumericType)
_STRAYS = 0.1  # of the values: so many words make no text of a column of numbers
_MOST_CLASSES = 100  # of a label that another column may say in other words
_REPEATS = 10  # rows of each of these classes, at least: fewer may agree by chance
_ID_NAME = re.compile(r"(^|[^a-z0-9])(id|uuid|guid|index|idx|key|rowid|row_?n(um(ber)?)?)$", re.IGNORECASE)
_ISO = r"^\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?$"
_DATES = {  # a pattern, Spark's format, and its name for people
    "day_month_year": (r"^\d{1,2}\.\d{1,2}\.\d{4}$", "d.M.yyyy", "day.month.year"),
    "month_day_year": (r"^\d{1,2}/\d{1,2}/\d{4}$", "M/d/yyyy", "month/day/year"),
    "day_slash_month": (r"^\d{1,2}/\d{1,2}/\d{4}$", "d/M/yyyy", "day/month/year"),
}
_WITH_SIGNS = r"^[+-]?[$€£]?\s?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\s?[%$€£]?$"  # $1,200.50  12 %
_WITH_COMMA = r"^[+-]?[€]?\s?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?\s?[%€]?$"  # 1.200,50 €


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A table without what is of no use, and what was done to it, for its user to read."""

    frame: DataFrame
    remarks: tuple[str, ...]
    rows: int = 0  # as far as they were counted


@dataclass
class _Findings:
    """What is to be done, column by column."""

    replaced: dict[str, Column] = field(default_factory=dict)
    read_as: dict[str, list[str]] = field(default_factory=dict)  # columns, by what they are read as
    dropped: dict[str, str] = field(default_factory=dict)  # why
    remarks: list[str] = field(default_factory=list)


def read_words(frame: DataFrame, *, label: str, keep: Collection[str], comma: bool) -> Cleaned:
    """Columns of text that are dates or numbers, but for a few words, become numbers. One Spark job.

    Args:
        frame: as `original` gives it.
        keep: columns that stay as they are.
        comma: whether a comma rather stands before decimals than between thousands.
    """
    texts = [f.name for f in frame.schema if isinstance(f.dataType, T.StringType) and f.name not in keep]
    if not texts:
        return Cleaned(frame, ())
    counts = frame.agg(*(fact for i, name in enumerate(texts) for fact in _of_text(frame, name, i))).collect()
    facts, found = counts[0].asDict(), _Findings()
    for i, name in enumerate(texts):
        present = facts[f"present_{i}"]
        if present and facts[f"number_{i}"] != present:
            forms = [form for form in _FORMS if facts[f"{form}_{i}"] == present]
            _read(found, frame, name, forms, label, comma)
            strays = present - facts[f"number_{i}"]
            many = facts[f"distinct_{i}"] > MAX_INTEGER_CLASSES
            if name not in found.replaced and name != label and many and strays <= _STRAYS * present:
                found.replaced[name] = number(frame, name)
                found.remarks.append(
                    f"column {name!r} is read as numbers: {strays} of {present} values are none, such as "
                    f"{facts[f'stray_{i}'][:40]!r}, and count as missing (--keep {name})"
                )
    columns = [
        found.replaced.get(name, column(name)).alias(name) if name in found.replaced else column(name)
        for name in frame.columns
    ]
    remarks = [f"read as {what}: {', '.join(names)}" for what, names in found.read_as.items()]
    return Cleaned(frame.select(*columns), (*remarks, *found.remarks))


def without_useless(
    frame: DataFrame,
    *,
    place: str,
    label: str,
    keep: Collection[str],
    max_vocabulary: int,
    may_drop_rows: bool,
) -> Cleaned:
    """The table without columns that tell nothing, or the label itself. One Spark job, or two.

    Left out are empty and constant columns; texts that are nearly all different (names, ids, free text);
    numbers that count the rows, or are called an id and are all different; what is the label again; and
    rows without a label.

    Args:
        frame: as `original` gives it.
        keep: columns that stay.

    Raises:
        DataError: the label is the same in every row.
    """
    names = [f.name for f in frame.schema if isinstance(f.dataType, _SCALARS)]
    if label not in names:
        return Cleaned(frame, ())  # the analysis says what is wrong with it
    wanted = [F.count(F.lit(1)).alias("rows")]
    for i, name in enumerate(names):
        wanted += _of_scalar(frame, name, i, label)
    facts, found = frame.agg(*wanted).collect()[0].asDict(), _Findings()
    for other in frame.schema:
        if other.name not in keep and not _is_of_use(other.dataType):
            found.dropped[other.name] = f"is {other.dataType.simpleString()[:60]}, no text and no numbers"
    suspects = []
    rows, of_label = facts["rows"], names.index(label)
    labelled = facts[f"present_{of_label}"]
    if rows and facts[f"first_{of_label}"] == facts[f"last_{of_label}"]:
        held = repr(facts[f"first_{of_label}"]) if labelled else "missing"
        raise DataError(
            f"{place}: the label {label!r} is {held} in every row: there is nothing to predict; name another "
            "--label"
        )
    if labelled < rows and may_drop_rows:
        frame = frame.where(column(label).isNotNull())
        found.remarks.append(f"{rows - labelled:,} of {rows:,} rows are left out: they have no {label!r}")
    for i, name in enumerate(names):
        if name == label or name in keep:
            continue
        of = {key: facts[f"{key}_{i}"] for key in _SCALAR_FACTS}
        if of["same"] == labelled:
            found.dropped[name] = f"is the label {label!r} again"
            continue
        if (why := _useless(name, of, rows)) is not None:
            found.dropped[name] = why
            continue
        like_label = abs(of["distinct"] - facts[f"distinct_{of_label}"]) <= 1 + _COARSE * of["distinct"]
        is_class = 1 < of["distinct"] <= min(_MOST_CLASSES, rows / _REPEATS)
        if is_class and like_label and of["present"] == rows:
            suspects.append(name)
        if of["numbers"] < of["present"] and of["distinct"] > max_vocabulary:
            found.remarks.append(
                f"column {name!r} has about {of['distinct']:,} different texts: the {max_vocabulary:,} most "
                "frequent are told apart (--max-vocabulary)"
            )
    for name in _repeating(frame, label, suspects):
        found.dropped[name] = f"is the label {label!r} again, in other words"
    remarks = [
        f"column {name!r} is left out: it {why} (--keep {name})" for name, why in found.dropped.items()
    ]
    kept = frame.drop(*(column(name) for name in found.dropped))
    return Cleaned(kept, (*remarks, *found.remarks), labelled if may_drop_rows else rows)


_FORMS = ("iso", *_DATES, "signs", "comma")
_SCALAR_FACTS = ("present", "numbers", "distinct", "first", "last", "whole", "low", "high", "same")


def _of_text(frame: DataFrame, name: str, i: int) -> list[Column]:
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
    """The time that a text means; null where it is not of this form."""
    if form == "iso":
        return F.when(value.rlike(_ISO), F.try_to_timestamp(value))
    pattern, spark_format, _ = _DATES[form]
    return F.when(value.rlike(pattern), F.try_to_timestamp(value, F.lit(spark_format)))


def _read(
    found: _Findings, frame: DataFrame, name: str, forms: Sequence[str], label: str, comma: bool
) -> None:
    """Choose one of the forms that all values of a column have."""
    value = column(name)
    dates = [form for form in forms if form == "iso" or form in _DATES]
    if dates and name != label:
        form = dates[0]
        written = "year-month-day" if form == "iso" else _DATES[form][2]
        found.replaced[name] = _instant(value, form).cast("double")
        unsure = " (day/month/year fits as well)" if len(dates) > 1 else ""
        found.read_as.setdefault(f"dates, {written}{unsure}", []).append(name)
        return
    order = ("comma", "signs") if comma else ("signs", "comma")
    for form in order:
        if form not in forms:
            continue
        pattern = r"[€%\s.]" if form == "comma" else r"[$€£%,\s]"
        plain = F.regexp_replace(value, pattern, "")
        found.replaced[name] = F.regexp_replace(plain, ",", ".").cast("double")
        says = "a comma before decimals" if form == "comma" else "signs or commas in them"
        found.read_as.setdefault(f"numbers, with {says}", []).append(name)
        return


def _of_scalar(frame: DataFrame, name: str, i: int, label: str) -> list[Column]:
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


def _is_of_use(stored: T.DataType) -> bool:
    if isinstance(stored, T.ArrayType):
        return isinstance(stored.elementType, _SCALARS)
    return isinstance(stored, (*_SCALARS, T.BinaryType))


def _useless(name: str, of: Mapping[str, Any], rows: int) -> str | None:
    present, distinct = of["present"], of["distinct"]
    if not present:
        return "is empty"
    if present == rows and of["first"] == of["last"]:
        return f"is {str(of['first'])[:40]!r} in every row"
    if present < _FEW_ROWS:
        return None
    if of["numbers"] < present:  # texts
        if distinct > 0.5 * present:
            texts = f"{min(distinct, present):,} different texts"
            return f"has about {texts} in {present:,} rows: an id, or free text"
        return None
    all_differ = of["whole"] == present == rows and distinct >= (1 - _COARSE) * rows
    if all_differ and of["high"] - of["low"] + 1 == rows:
        return f"counts the rows, from {of['low']:.0f} to {of['high']:.0f}"
    if all_differ and _ID_NAME.search(name):
        return "is an id: a whole number, another one in every row"
    return None


def _repeating(frame: DataFrame, label: str, suspects: Sequence[str]) -> list[str]:
    """Columns each of whose values goes with one value of the label, and the other way round."""
    if not suspects:
        return []
    # Of few values each: sets of pairs are small, and Spark takes one pass for them all.
    pairs = [F.collect_set(F.struct(column(name), column(label))) for name in suspects]
    found = frame.agg(*(pair.alias(f"pairs_{i}") for i, pair in enumerate(pairs))).collect()[0]
    return [name for name, of in zip(suspects, found, strict=True) if _is_one_to_one(of)]


def _is_one_to_one(pairs: Collection[Any]) -> bool:
    ours, theirs = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(pairs) == len(ours) == len(theirs) > 1
