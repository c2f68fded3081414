"""Splits a table by its columns, for a copy and in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from spark_hpo.config import SplitConfig
from spark_hpo.data.filter.sql import quoted
from spark_hpo.data.schema import FoldBy, Source
from spark_hpo.errors import DataError, located
from spark_hpo.prepare import in_place, splits
from spark_hpo.prepare.cleaning import time_in_text
from spark_hpo.prepare.in_place import SplitInPlace
from spark_hpo.prepare.split_conditions import Counts, Stratum, conditions_of
from spark_hpo.prepare.splits import column

_TIME = "__time"  # column: the seconds or numbers in a text column
_ACCURACY = 1_000_000  # of quantiles: a relative error of one in a million


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitByColumns:
    """The rows of a table in the splits that its columns give."""

    split: SplitInPlace
    where: Mapping[str, str]  # the condition of each split
    remarks: tuple[str, ...]
    fold_by: FoldBy | None
    unfit: tuple[str, ...]  # columns that are not features, because other splits have other values


def split_by_columns(
    frame: DataFrame,
    table: Source,
    split: SplitConfig,
    *,
    fractions: Sequence[float] | None,
    keep: Sequence[str] = (),
    is_copy: bool,
) -> SplitByColumns:
    """Assign rows to splits.

    Args:
        frame: the original columns; of a CSV, as `original` returns them.
        table: its absolute URL, format and version.
        fractions: None: they depend on the number of rows.
        keep: columns that may be features even if they decide the split.
        is_copy: add the columns that the rows of a copy are ordered and folded by, and parse times in text.

    Raises:
        DataError: a column is missing, or cannot decide a split of three parts.
    """
    called = {}
    original_columns = frame.columns
    if is_copy:
        frame = splits.with_order(frame, split.seed)
        if split.time in original_columns and isinstance(frame.schema[split.time].dataType, T.StringType):
            frame = frame.withColumn(_TIME, _parsed_time(frame, split.time, table.url))
            called = {_TIME: split.time}
            split = split.model_copy(update={"time": _TIME})
    if fractions is None:
        is_small = frame.limit(splits.FEW_ROWS).count() < splits.FEW_ROWS
        fractions = splits.FRACTIONS_OF_FEW if is_small else splits.DEFAULT_FRACTIONS
    facts = SparkFacts(frame.select(*map(column, (*original_columns, *called))))
    with located(table.url, DataError):
        conditions = conditions_of(split, facts, fractions, called=called)
    assigned = in_place.by_conditions(frame, table, conditions.where)
    remarks = list(conditions.remarks)
    if assigned.left_out:
        total = assigned.left_out + sum(assigned.rows.values())
        remarks.append(
            f"{assigned.left_out:,} of {total:,} rows are left out: "
            "they are in the groups of one split and in the period of another"
        )
    unfit = [name for name in (split.column, *split.group, *split.key) if name and name not in keep]
    remarks += [
        f"column {name!r} decides the split and is not a feature (to prevent this: --keep {name})"
        for name in unfit
    ]
    split_frame, fold_by = assigned.frame, conditions.fold_by
    if is_copy:
        split_frame, fold_by = _with_fold_columns(split_frame, fold_by)
    return SplitByColumns(
        split=replace(assigned, frame=split_frame.drop(*called)),
        fold_by=fold_by,
        where=conditions.where,
        remarks=tuple(remarks),
        unfit=tuple(unfit),
    )


def _with_fold_columns(frame: DataFrame, fold_by: FoldBy | None) -> tuple[DataFrame, FoldBy | None]:
    """Add the columns by which a copy, which has lost its original values, is divided into folds."""
    if fold_by is None:
        return frame, None
    frame = frame.withColumn(splits.FOLD, F.expr(fold_by.term))
    stratum, time = fold_by.stratum, fold_by.time
    if stratum:
        frame, stratum = frame.withColumn(splits.FOLD_STRATUM, column(stratum)), splits.FOLD_STRATUM
    if time:
        frame, time = frame.withColumn(splits.FOLD_TIME, column(time)), splits.FOLD_TIME
    return frame, replace(
        fold_by, term=quoted(splits.FOLD), columns=(splits.FOLD,), stratum=stratum, time=time
    )


def _parsed_time(frame: DataFrame, name: str, url: str) -> Column:
    parsed = time_in_text(frame, name)
    if parsed is None:
        raise DataError(
            f"{url}: the time {name!r} is text that is neither dates in one format nor numbers. Write it as "
            "year-month-day, or split by another column"
        )
    return parsed[1]


class SparkFacts:
    """Answers questions about the rows of a DataFrame. The session's time zone must be UTC."""

    def __init__(self, frame: DataFrame) -> None:
        self._frame = frame
        self.types: Mapping[str, pa.DataType] = {
            field.name: to_arrow_type(field.dataType)
            for field in frame.schema
            if _has_arrow_type(field.dataType)
        }

    def counts(self, expression: str, limit: int) -> Counts | None:
        value = self._collectable(F.expr(expression))
        rows = self._frame.groupBy(value.alias("value")).agg(F.count(F.lit(1)).alias("rows"))
        found = rows.orderBy(F.asc_nulls_first("value")).limit(limit + 1).collect()
        return [(row["value"], row["rows"]) for row in found] if len(found) <= limit else None

    def quantiles(self, name: str, shares: Sequence[float]) -> Sequence[Any]:
        value = self._collectable(column(name))
        row = self._frame.agg(F.percentile_approx(value, list(shares), _ACCURACY).alias("cuts")).collect()[0]
        return list(row["cuts"])

    def strata(self, name: str, expression: str, fractions: Sequence[float]) -> Sequence[Stratum]:
        own = Window.partitionBy("value")
        ranked = self._frame.select(
            self._collectable(column(name)).alias("value"), F.expr(expression).alias("hash")
        ).select(
            "value",
            "hash",
            (F.row_number().over(own.orderBy("hash")) - 1).alias("rank"),
            F.count(F.lit(1)).over(own).alias("rows"),
        )

        def at(share: float) -> Column:
            return F.min(F.when(F.col("rank") == F.floor(F.col("rows") * share + 0.5), F.col("hash")))

        train, validation = fractions[0], round(fractions[0] + fractions[1], 12)
        found = ranked.groupBy("value", "rows").agg(at(train).alias("low"), at(validation).alias("high"))
        return [
            Stratum(value=row["value"], rows=row["rows"], cuts=(row["low"], row["high"]))
            for row in found.orderBy(F.asc_nulls_first("value")).collect()
        ]

    def _collectable(self, value: Column) -> Column:
        """Times with a zone as UTC: PySpark would collect them in the time zone of this machine."""
        is_zoned = isinstance(self._frame.select(value).schema[0].dataType, T.TimestampType)
        return value.cast("timestamp_ntz") if is_zoned else value


def _has_arrow_type(kind: T.DataType) -> bool:
    try:
        to_arrow_type(kind)
    except Exception:  # of Spark's own types, such as intervals, which no reader takes
        return False
    return True
