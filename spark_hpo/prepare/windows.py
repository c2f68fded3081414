"""Forms windows from a table with a row per series and time step, and splits them by time.

A window is a row: the last `history` values of a series and of its other numbers, and the next `horizon`
values as a list, the label. A window belongs to a split if all values to forecast are in its period, so no
value that a model is trained on is measured as well. The history may begin in an earlier period, as it does
when a model is used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.config.windows import WindowsConfig
from spark_hpo.data.schema import ColumnKind, TableSchema, Windows
from spark_hpo.errors import DataError
from spark_hpo.prepare import splits
from spark_hpo.prepare.column_kinds import time_in_text
from spark_hpo.prepare.phases import announce
from spark_hpo.prepare.spark_columns import converted, number, original
from spark_hpo.prepare.spark_rows import SparkRows
from spark_hpo.prepare.splits import SPLIT, column
from spark_hpo.trial import Split

logger = logging.getLogger(__name__)

NEXT_SUFFIX = "_next"  # of the label: the values to forecast
_FIRST, _LAST, _NUMBER = "__first", "__last", "__number"  # times of the forecast; number of a step
_TIME, _MOMENT = "__time", "__moment"  # as a number, and as the table has it
_ACCURACY = 1_000_000  # of quantiles: a relative error of one in a million
_LONG_STEP = 1.5  # times the usual one, above which steps are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    """Windows in their splits."""

    frame: DataFrame  # with the columns of `splits`
    kept: DataFrame  # what the caller has to unpersist
    label: str
    remarks: tuple[str, ...]


def form_windows(
    frame: DataFrame,
    windows: WindowsConfig,
    *,
    value: str,
    drop: Sequence[str],
    null_values: Sequence[str],
    fractions: Sequence[float],
    seed: int,
) -> Formed:
    """Form the windows of a table.

    Args:
        frame: a row per series and step.
        value: the column to forecast.
        drop: columns to leave out.
        fractions: shares of the windows for train, validation and test.
        seed: of the order in which windows are written.

    Raises:
        DataError: a column does not fit its use, two rows of a series have the same time, or a split gets no
            window.
    """
    label = value + NEXT_SUFFIX
    if label in frame.columns:
        raise DataError(f"column {label!r} has the name of the values to forecast. Rename it, or drop it")
    steps, numbers, texts = _steps(frame.drop(*map(column, drop)), windows, value, null_values)
    remarks = _check_steps(steps, windows, value)
    rows = _windows(steps, windows, value, numbers, texts).persist()
    announce("dividing the windows by time")
    assigned, more = _split(rows, windows, fractions)
    frame = splits.with_order(assigned.drop(_FIRST, _LAST), seed)
    return Formed(frame=frame, kept=rows, label=label, remarks=(*remarks, *more))


def _steps(
    frame: DataFrame, windows: WindowsConfig | Windows, value: str, null_values: Sequence[str]
) -> tuple[DataFrame, list[str], list[str]]:
    """Return the steps with numbers as doubles, the names of the columns of numbers, and those of texts."""
    flags = [f.name for f in frame.schema if isinstance(f.dataType, T.BooleanType)]
    frame = frame.withColumns({name: column(name).cast("int") for name in flags})
    frame = original(frame.withColumn(_MOMENT, column(windows.time).cast("string")), null_values)
    found = [f for f in frame.schema if f.name not in (windows.time, _MOMENT, *windows.series)]
    strings = [f.name for f in found if isinstance(f.dataType, T.StringType)]
    other = [f for f in found if not isinstance(f.dataType, T.StringType | T.NumericType)]
    if other:
        raise DataError(
            f"column {other[0].name!r} is {other[0].dataType.simpleString()[:60]}; a step has numbers and "
            f"texts. Leave it out (--drop {other[0].name})"
        )
    texts = _texts(frame, strings)
    numbers = [f.name for f in found if f.name not in texts]
    for name in (value, *windows.known):
        if name in texts:
            raise DataError(f"column {name!r} holds text; it must be numbers")
    time = number(frame, windows.time)
    if isinstance(frame.schema[windows.time].dataType, T.StringType):
        form = time_in_text(SparkRows(frame).text_facts(windows.time))
        if form is None:
            raise DataError(
                f"the time {windows.time!r} is text that is neither dates in one format nor numbers. Write "
                "it as year-month-day"
            )
        time = converted(frame, windows.time, form)
    series = [F.coalesce(column(name).cast("string"), F.lit("")).alias(name) for name in windows.series]
    steps = frame.select(
        time.alias(_TIME),
        column(_MOMENT),
        *series,
        *(number(frame, name).alias(name) for name in numbers),
        *(F.coalesce(column(name), F.lit("")).alias(name) for name in texts),
    )
    return steps, numbers, texts


def _texts(frame: DataFrame, strings: Sequence[str]) -> list[str]:
    """Return the columns that hold something else than numbers."""
    if not strings:
        return []
    counts = frame.agg(
        *(F.count(column(name)).alias(f"present_{i}") for i, name in enumerate(strings)),
        *(F.count(number(frame, name)).alias(f"numbers_{i}") for i, name in enumerate(strings)),
    ).collect()[0]
    return [name for i, name in enumerate(strings) if counts[f"numbers_{i}"] < counts[f"present_{i}"]]


def _check_steps(steps: DataFrame, windows: WindowsConfig | Windows, value: str) -> list[str]:
    """Refuse steps without a time or with the same one, and remark on steps or values that are missing."""
    of_series = _in_order(windows)
    gaps = steps.select(
        _TIME,
        column(value).alias("value"),
        (F.col(_TIME) - F.lag(_TIME).over(of_series)).alias("gap"),
    )
    counted = gaps.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if(F.col(_TIME).isNull()).alias("untimed"),
        F.count_if(F.col("value").isNull()).alias("missing"),
        F.count_if(F.col("gap") == 0).alias("repeated"),
        F.percentile_approx("gap", 0.5).alias("usual"),
    ).collect()[0]
    named = " and ".join(map(repr, (*windows.series, windows.time)))
    if counted["untimed"]:
        raise DataError(f"{counted['untimed']:,} rows have no time ({windows.time!r}). Leave them out")
    if counted["repeated"]:
        cure = "Sum them up" if windows.series else "Name the columns that tell series apart (windows.series)"
        raise DataError(f"{counted['repeated']:,} rows have the same {named} as another one. {cure}")
    remarks = []
    usual = counted["usual"]
    if usual and (long := gaps.where(F.col("gap") > _LONG_STEP * usual).count()):
        remarks.append(
            f"{long:,} steps are longer than the usual one; a window takes them for one step. If steps are "
            "missing, add them"
        )
    if counted["missing"]:
        remarks.append(
            f"{value!r} is missing in {counted['missing']:,} of {counted['rows']:,} rows; windows with such "
            "steps are left out"
        )
    return remarks


def _windows(
    steps: DataFrame, windows: WindowsConfig, value: str, numbers: Sequence[str], texts: Sequence[str]
) -> DataFrame:
    """Return the windows without missing values, with the times of the first and the last forecast."""
    of_series = _in_order(windows)
    history, horizon = windows.history, windows.horizon
    lists = _lists(windows, numbers)
    lists[value + NEXT_SUFFIX] = (_listed(value, of_series, 1, horizon), horizon)
    formed = steps.select(
        *map(column, (*windows.series, *texts)),
        *(elements.alias(name) for name, (elements, _) in lists.items()),
        F.lead(_TIME, 1).over(of_series).alias(_FIRST),
        F.lead(_TIME, horizon).over(of_series).alias(_LAST),
        F.row_number().over(of_series).alias(_NUMBER),
    )
    due = (F.col(_NUMBER) - history) % windows.stride == 0
    return formed.where(F.col(_LAST).isNotNull() & due & _are_whole(lists)).drop(_NUMBER)


def takes_steps(frame: DataFrame, schema: TableSchema) -> bool:
    """Return True if a table has a row per step, for a model of windows that were formed from steps."""
    windows = schema.windows
    if windows is None or not windows.time or windows.value not in frame.columns:
        return False
    return not isinstance(frame.schema[windows.value].dataType, T.ArrayType)


def latest_windows(frame: DataFrame, schema: TableSchema) -> DataFrame:
    """Return the window of each series at its last step with a value, for a forecast of the steps after it.

    Later rows of a series, without a value, may hold what is known ahead.

    Args:
        frame: a row per series and step.
        schema: of the windows that a model was trained on.

    Returns:
        The features; the time of the last step is text.

    Raises:
        DataError: a column is missing or does not fit its use, or no series has a whole window.
    """
    windows = schema.windows
    assert windows is not None, "the caller has checked that the model takes windows"
    features = [feature.source or feature.name for feature in schema.features]
    needed = list(dict.fromkeys([windows.time, *windows.series, *features]))
    if missing := [name for name in needed if name not in frame.columns]:
        raise DataError(f"the steps have no column {', '.join(missing)}")
    steps, *_ = _steps(frame.select(*map(column, needed)), windows, windows.value, schema.null_values)
    _check_steps(steps, windows, windows.value)
    numbers = [feature.name for feature in schema.of_kind(ColumnKind.ARRAY)]
    lists = _lists(windows, numbers)
    whole_series = Window.partitionBy(*map(column, windows.series))
    last = F.max(F.when(column(windows.value).isNotNull(), F.col(_TIME))).over(whole_series)
    beside = [name for name in needed if name not in (windows.time, *numbers)]
    formed = steps.select(
        *map(column, beside),
        column(_MOMENT).alias(windows.time),
        *(elements.alias(name) for name, (elements, _) in lists.items()),
        (F.col(_TIME) == last).alias(_LAST),
    )
    latest = formed.where(F.col(_LAST)).drop(_LAST)
    found = latest.agg(
        F.count(F.lit(1)).alias("series"), F.count_if(_are_whole(lists)).alias("whole")
    ).collect()[0]
    if not found["whole"]:
        known = f", or no {' and '.join(windows.known)} for the steps to forecast" if windows.known else ""
        raise DataError(
            f"none of the {found['series']:,} series can be forecast: they have fewer than {windows.history} "
            f"steps without missing values{known}"
        )
    if found["whole"] < found["series"]:
        logger.warning(
            "%d of %d series are left out, because values are missing within their last %d steps or those to "
            "forecast",
            found["series"] - found["whole"],
            found["series"],
            windows.history,
        )
    return latest.where(_are_whole(lists))


def _in_order(windows: WindowsConfig | Windows) -> WindowSpec:
    return Window.partitionBy(*map(column, windows.series)).orderBy(_TIME)


def _listed(name: str, of_series: WindowSpec, first: int, last: int) -> Column:
    """Return the values of the rows from `first` to `last`, relative to each row. Nulls are left out."""
    return F.collect_list(column(name)).over(of_series.rowsBetween(first, last))


def _lists(windows: WindowsConfig | Windows, numbers: Sequence[str]) -> dict[str, tuple[Column, int]]:
    """Return the lists of a window, with their lengths if no value is missing."""
    lists: dict[str, tuple[Column, int]] = {}
    for name in numbers:
        ahead = windows.horizon if name in windows.known else 0
        values = _listed(name, _in_order(windows), 1 - windows.history, ahead)
        lists[name] = (values, windows.history + ahead)
    return lists


def _are_whole(lists: Mapping[str, tuple[Column, int]]) -> Column:
    condition = F.lit(True)
    for name, (_, size) in lists.items():
        condition = condition & (F.size(column(name)) == size)
    return condition


def _split(
    rows: DataFrame, windows: WindowsConfig, fractions: Sequence[float]
) -> tuple[DataFrame, list[str]]:
    """Assign windows to splits by the time of their forecasts."""
    shares = [fractions[0], round(fractions[0] + fractions[1], 12)]
    cuts = rows.agg(F.percentile_approx(_FIRST, shares, _ACCURACY).alias("cuts")).collect()[0]["cuts"]
    if not cuts:
        raise DataError(
            f"no series has {windows.history + windows.horizon} steps in a row without missing values, which "
            "a window needs. Use a shorter history or horizon"
        )
    first, last = F.col(_FIRST), F.col(_LAST)
    split = (
        F.when(last < cuts[0], str(Split.TRAIN))
        .when((first >= cuts[0]) & (last < cuts[1]), str(Split.VALIDATION))
        .when(first >= cuts[1], str(Split.TEST))
    )
    assigned = rows.withColumn(SPLIT, split)
    counts: dict[Any, int] = {row[SPLIT]: row["count"] for row in assigned.groupBy(SPLIT).count().collect()}
    if empty := [str(part) for part in Split if not counts.get(str(part))]:
        raise DataError(
            f"no window has all {windows.horizon} values to forecast in the period of {', '.join(empty)} "
            f"({sum(counts.values()):,} windows). Use more steps, a shorter horizon or other fractions"
        )
    remarks = []
    if across := counts.get(None, 0):
        remarks.append(
            f"{across:,} of {sum(counts.values()):,} windows are left out: their forecasts begin in the "
            "period of one split and end in another"
        )
    return assigned.where(F.col(SPLIT).isNotNull()), remarks
