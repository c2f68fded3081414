"""Drops columns that carry no information or repeat a label."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyspark.sql import types as T

from spark_hpo.errors import DataError
from spark_hpo.prepare.rows import Cleaned, Rows

_FEW_ROWS = 20  # with fewer rows, distinct values do not make a column an id
_COUNT_ERROR = 0.05  # relative error to allow for in approximate counts of distinct values
SCALARS = (T.StringType, T.NumericType)
SCALAR_FACTS = ("present", "numbers", "distinct", "first", "last", "whole", "low", "high")
_MAX_CLASSES = 100  # of a column that may be an alias of the label
_MIN_ROWS_PER_CLASS = 10  # of such a column: with fewer, two columns may match by chance
_ID_NAME = re.compile(r"(^|[^a-z0-9])(id|uuid|guid|index|idx|key|rowid|row_?n(um(ber)?)?)$", re.IGNORECASE)


def drop_useless_columns(
    table: Rows,
    names: Sequence[str],
    facts: Mapping[str, Any],
    *,
    labels: Sequence[str],
    keep: Collection[str],
    max_vocabulary: int,
    may_drop_rows: bool,
) -> Cleaned:
    """Drop the columns that `clean` describes, and in a copy the rows without a label.

    Args:
        names: the scalar columns.
        facts: `SCALAR_FACTS` of these columns, as `<fact>_<index in names>`, the number of `rows` and of
            those that are `labelled`, and `same<j>_<index in names>`: the rows that equal label j.
        labels, keep, max_vocabulary: as for `clean`.
        may_drop_rows: the table is a copy.

    Raises:
        DataError: a label is the same in every row, or no other column is left.
    """
    dropped: dict[str, str] = {}  # reasons
    notes = []
    for other in table.schema:
        if other.name not in keep and not _is_supported(other.dataType):
            stored = other.dataType.simpleString()[:60]
            dropped[other.name] = f"is {stored}, which is neither text nor numbers"
    candidates: dict[str, list[str]] = {label: [] for label in labels}
    rows, labelled = facts["rows"], facts["labelled"]
    places = {label: names.index(label) for label in labels}
    for label, at in places.items():
        if rows and facts[f"first_{at}"] == facts[f"last_{at}"]:
            value = repr(facts[f"first_{at}"]) if facts[f"present_{at}"] else "missing"
            raise DataError(
                f"the label {label!r} is {value} in every row, so there is nothing to predict. "
                "Choose another one"
            )
    if labelled < rows and may_drop_rows:
        absent = [label for label, at in places.items() if facts[f"present_{at}"] < rows]
        for label in absent:
            table = table.where_present(label)
        named = " or ".join(map(repr, absent))
        notes.append(f"{rows - labelled:,} of {rows:,} rows are left out: {named} is missing")
    for i, name in enumerate(names):
        if name in labels or name in keep:
            continue
        own = {key: facts[f"{key}_{i}"] for key in SCALAR_FACTS}
        copied = (
            label
            for j, (label, at) in enumerate(places.items())
            if facts[f"same{j}_{i}"] == facts[f"present_{at}"]
        )
        if label := next(copied, ""):
            dropped[name] = f"is a copy of the label {label!r}"
            continue
        if (reason := _why_useless(name, own, rows)) is not None:
            dropped[name] = reason
            continue
        is_class = 1 < own["distinct"] <= min(_MAX_CLASSES, rows / _MIN_ROWS_PER_CLASS)
        for label, at in places.items():
            difference = abs(own["distinct"] - facts[f"distinct_{at}"])
            if is_class and difference <= 1 + _COUNT_ERROR * own["distinct"] and own["present"] == rows:
                candidates[label].append(name)
        if own["numbers"] < own["present"] and own["distinct"] > max_vocabulary:
            notes.append(
                f"column {name!r} has about {own['distinct']:,} different values; only the "
                f"{max_vocabulary:,} most frequent get a code (--max-vocabulary)"
            )
    for label in labels:
        for name in _aliases(table, label, candidates[label]):
            dropped[name] = f"is an alias of the label {label!r}: its values correspond one to one"
    if dropped and {field.name for field in table.schema} <= {*labels, *dropped}:
        reasons = "; ".join(f"{name!r} {reason}" for name, reason in dropped.items())
        cure = f"Add columns, or keep one of these, as with --keep {next(iter(dropped))}"
        raise DataError(f"no column is left to learn from: {reasons}. {cure}")
    remarks = [
        f"column {name!r} is left out: it {reason} (to prevent this: --keep {name})"
        for name, reason in dropped.items()
    ]
    return Cleaned(
        table.without(dropped),
        (*remarks, *notes),
        count=labelled if may_drop_rows else rows,
        dropped=dropped,
    )


def _is_supported(stored: T.DataType) -> bool:
    if isinstance(stored, T.ArrayType):
        return isinstance(stored.elementType, SCALARS)
    return isinstance(stored, (*SCALARS, T.BinaryType))


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


def _aliases(table: Rows, label: str, candidates: Sequence[str]) -> list[str]:
    """The columns whose values correspond one to one to the values of the label."""
    if not candidates:
        return []
    found = zip(candidates, table.pairs(candidates, label), strict=True)
    return [name for name, own in found if _is_one_to_one(own)]


def _is_one_to_one(pairs: Collection[Any]) -> bool:
    left, right = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(pairs) == len(left) == len(right) > 1
