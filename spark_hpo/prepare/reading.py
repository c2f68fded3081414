"""A table as Spark reads it, before anything is done to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_hpo.data import files
from spark_hpo.data.plan.footers import read_footers
from spark_hpo.prepare.dialect import UTF_8, Dialect

_MOST_NAMES = 50  # in a message
_TIME_ZONE = "spark.sql.session.timeZone"
_CHARSETS = "spark.sql.legacy.javaCharsets"  # Excel writes windows-1252, and Spark 4 reads few by itself
_TORN = ("MALFORMED_RECORD", "Malformed records")


def read(spark: SparkSession, arguments: Mapping[str, Any]) -> DataFrame:
    """The table that a request names. Nothing but its columns is looked at yet."""
    url = _for_spark(arguments["input"])
    if arguments["format"] == "parquet":
        return spark.read.parquet(url)
    has_header = arguments.get("header", True)
    frame = spark.read.csv(
        url,
        header=has_header,
        sep=arguments["separator"],
        encoding=arguments.get("encoding", UTF_8),
        multiLine=arguments.get("many_lines", False),
        quote='"',
        escape='"',
        mode="FAILFAST",
    )
    if not has_header:
        return frame.toDF(*_numbered(len(frame.columns)))
    trimmed = [name.strip() for name in frame.columns]
    return frame.toDF(*trimmed) if len(set(trimmed)) == len(trimmed) else frame


def _for_spark(place: str) -> str:
    """A place as Spark's JVM calls it."""
    if not files.is_local(place):
        return place
    # Databricks' mounts are there for Python alone; its JVM knows the same files by these names.
    if place.startswith("/Volumes/"):
        return f"dbfs:{place}"
    if place.startswith("/dbfs/"):
        return f"dbfs:{place.removeprefix('/dbfs')}"
    # A plain path is a local one here, as everywhere; Spark would look in its default file system.
    return f"file://{place}"


@contextlib.contextmanager
def settings(spark: SparkSession, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Dates, times without a zone, and conditions on times mean what they mean to the readers."""
    wanted = {_TIME_ZONE: "UTC"}
    if arguments.get("encoding", UTF_8) != UTF_8:
        wanted[_CHARSETS] = "true"
    before = {key: spark.conf.get(key, None) for key in wanted}
    for key, value in wanted.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, earlier in before.items():
            if earlier is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, earlier)


def columns_of(place: str, dialect: Dialect | None, *, header: bool) -> str:
    """The columns that a table has, in words.

    Args:
        dialect: of a CSV; None: it is Parquet.
    """
    if dialect is None:
        names = list(read_footers(place).schemas[0].names)
    elif header:
        names = [name or f"_c{i}" for i, name in enumerate(dialect.columns)]
    else:
        names = _numbered(len(dialect.columns))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{place} has {', '.join(names[:_MOST_NAMES])}{more}"


def cause_of(exc: Exception) -> str:
    """The innermost reason that Spark gives, in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if torn := [line for line in lines if any(sign in line for sign in _TORN)]:
        return f"a line has more or fewer fields than the first, or a quote is not closed: {torn[-1][:300]}"
    causes = [line for line in lines if line.startswith("Caused by:")]
    return (causes or lines or [repr(exc)])[-1 if causes else 0][:300]


def _numbered(width: int) -> list[str]:
    return [f"column{i + 1}" for i in range(width)]
