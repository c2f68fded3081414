"""Splits a table by its columns, for a copy and in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pyspark.sql import types as T

from spark_hpo.config import SplitConfig
from spark_hpo.data.filter.sql import quoted
from spark_hpo.data.schema import FoldBy, Source
from spark_hpo.data.text_forms import TextForm
from spark_hpo.errors import DataError, located
from spark_hpo.prepare import in_place, splits
from spark_hpo.prepare.column_kinds import time_in_text
from spark_hpo.prepare.in_place import SplitInPlace
from spark_hpo.prepare.rows import Rows
from spark_hpo.prepare.split_conditions import conditions_of

_TIME = "__time"  # column: the seconds or numbers in a text column


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitByColumns:
    """The rows of a table in the splits that its columns give."""

    split: SplitInPlace
    where: Mapping[str, str]  # the condition of each split
    remarks: tuple[str, ...]
    fold_by: FoldBy | None
    unfit: tuple[str, ...]  # columns that are not features, because other splits have other values


def split_by_columns(
    rows: Rows,
    table: Source,
    split: SplitConfig,
    *,
    fractions: Sequence[float] | None,
    keep: Sequence[str] = (),
    is_copy: bool,
) -> SplitByColumns:
    """Assign rows to splits.

    Args:
        rows: the original columns; of a CSV, as `original` returns them.
        table: its absolute URL, format and version.
        fractions: None: they depend on the number of rows.
        keep: columns that may be features even if they decide the split.
        is_copy: add the columns that the rows of a copy are ordered and folded by, and parse times in text.

    Raises:
        DataError: a column is missing, or cannot decide a split of three parts.
    """
    called: dict[str, str] = {}
    original_columns = rows.columns
    if is_copy:
        rows = rows.with_order(split.seed)
        if split.time in original_columns and isinstance(rows.schema[split.time].dataType, T.StringType):
            rows = rows.with_copy(_TIME, split.time, _time_form(rows, split.time, table.url))
            called = {_TIME: split.time}
            split = split.model_copy(update={"time": _TIME})
    if fractions is None:
        is_small = rows.is_fewer_than(splits.FEW_ROWS)
        fractions = splits.FRACTIONS_OF_FEW if is_small else splits.DEFAULT_FRACTIONS
    facts = rows.table_facts([*original_columns, *called])
    with located(table.url, DataError):
        conditions = conditions_of(split, facts, fractions, called=called)
    assigned = in_place.by_conditions(rows, table, conditions.where)
    remarks = list(conditions.remarks)
    if assigned.left_out:
        total = assigned.left_out + sum(assigned.counts.values())
        remarks.append(
            f"{assigned.left_out:,} of {total:,} rows are left out: "
            "they are in the groups of one split and in the period of another"
        )
    unfit = [name for name in (split.column, *split.group, *split.key) if name and name not in keep]
    remarks += [
        f"column {name!r} decides the split and is not a feature (to prevent this: --keep {name})"
        for name in unfit
    ]
    split_rows, fold_by = assigned.rows, conditions.fold_by
    if is_copy:
        split_rows, fold_by = _with_fold_columns(split_rows, fold_by)
    return SplitByColumns(
        split=replace(assigned, rows=split_rows.without([*called])),
        fold_by=fold_by,
        where=conditions.where,
        remarks=tuple(remarks),
        unfit=tuple(unfit),
    )


def _with_fold_columns(rows: Rows, fold_by: FoldBy | None) -> tuple[Rows, FoldBy | None]:
    """Add the columns by which a copy, which has lost its original values, is divided into folds."""
    if fold_by is None:
        return rows, None
    rows = rows.with_fold(fold_by.term)
    stratum, time = fold_by.stratum, fold_by.time
    if stratum:
        rows, stratum = rows.with_copy(splits.FOLD_STRATUM, stratum), splits.FOLD_STRATUM
    if time:
        rows, time = rows.with_copy(splits.FOLD_TIME, time), splits.FOLD_TIME
    return rows, replace(
        fold_by, term=quoted(splits.FOLD), columns=(splits.FOLD,), stratum=stratum, time=time
    )


def _time_form(rows: Rows, name: str, url: str) -> TextForm:
    form = time_in_text(rows.text_facts(name))
    if form is None:
        raise DataError(
            f"{url}: the time {name!r} is text that is neither dates in one format nor numbers. Write it as "
            "year-month-day, or split by another column"
        )
    return form
