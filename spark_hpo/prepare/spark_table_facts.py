"""Answers questions about the rows of a DataFrame, for a split by columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from spark_hpo.prepare.split_conditions import Counts, Stratum
from spark_hpo.prepare.splits import column

_ACCURACY = 1_000_000  # of quantiles: a relative error of one in a million


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
