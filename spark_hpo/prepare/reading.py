"""Reads the input table with Spark."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data import files
from spark_hpo.data.lake.formats import read_version
from spark_hpo.data.plan.footers import column_names, read_footer
from spark_hpo.data.plan.listing import list_files
from spark_hpo.data.schema import Source, TableFormat
from spark_hpo.prepare.dialect import UTF_8, Dialect
from spark_hpo.prepare.dialect import column_names as names_in_csv
from spark_hpo.prepare.table_files import for_spark, source_of, version_frame

_MOST_NAMES = 50  # in a message
_TIME_ZONE = "spark.sql.session.timeZone"
_CHARSETS = "spark.sql.legacy.javaCharsets"  # Spark 4 needs it to read windows-1252, as Excel writes it
_NANOSECONDS = "spark.sql.legacy.parquet.nanosAsLong"  # or Spark refuses the timestamps that pandas writes
_SMALL_BYTES = 16 * 2**20  # of files
_TINY_BYTES = 2**20  # 500 rows take a third less time interpreted than compiled, 2 MiB of CSV as long
_MANY_FILES, _SMALL_FILE_BYTES = 100, 2**20
_FEW_TASKS = {
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
}
_CHEAP_FILES = {"spark.sql.files.openCostInBytes": "65536"}  # of 4 MiB, a task would get only 30 files
_INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
_MALFORMED = ("MALFORMED_RECORD", "Malformed records")


def read(spark: SparkSession, arguments: Mapping[str, Any], table: Source) -> DataFrame:
    """Return the input of a request. Only its columns are read yet.

    Args:
        table: the input as readers will find it.
    """
    if table.version is not None:
        return version_frame(spark, table)
    url = for_spark(arguments["input"])
    if arguments["format"] == "parquet":
        return _with_timestamps(spark.read.parquet(url), arguments["input"])
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


def _with_timestamps(frame: DataFrame, url: str) -> DataFrame:
    """Convert timestamps of nanoseconds, which Spark has read as integers, to timestamps."""
    longs = [field.name for field in frame.schema if isinstance(field.dataType, T.LongType)]
    if not longs:
        return frame
    first = list_files(url)[0]
    stored = read_footer(files.filesystem(url)[0], first.path, first.size).schema
    for name in longs:
        kind = stored.field(name).type if stored.get_field_index(name) >= 0 else None
        if kind is not None and pa.types.is_timestamp(kind) and kind.unit == "ns":
            micros = F.expr("`{}` div 1000".format(name.replace("`", "``")))
            frame = frame.withColumn(name, F.timestamp_micros(micros))
    return frame


def _file_sizes(arguments: Mapping[str, Any]) -> Sequence[int]:
    """Return the bytes of each file of the input of a request; none of a table in the catalog."""
    table = source_of(arguments)
    if table.version is None:
        return [int(size) for _, size, *_ in arguments["input_files"]]
    return _sizes_at(table.url, table.format, table.version)


@lru_cache(maxsize=1)
def _sizes_at(url: str, format: TableFormat, version: int) -> tuple[int, ...]:
    return tuple(file.size for file in read_version(url, format, version).files)


def is_small(arguments: Mapping[str, Any]) -> bool:
    """Return True if the input of a request fits into the memory of one task, decoded."""
    return _has_at_most(arguments, _SMALL_BYTES)


def has_many_small_files(arguments: Mapping[str, Any]) -> bool:
    """Return True if the files of the input take longer to open than to read."""
    sizes = _file_sizes(arguments)
    return len(sizes) > _MANY_FILES and sum(sizes) <= len(sizes) * _SMALL_FILE_BYTES


def _has_at_most(arguments: Mapping[str, Any], size: int) -> bool:
    sizes = _file_sizes(arguments)
    return bool(sizes) and sum(sizes) <= size


@contextlib.contextmanager
def settings(spark: SparkSession, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Set the session for a request, and restore it afterwards."""
    with changed_settings(spark, settings_for(arguments)):
        yield


def settings_for(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings with which dates and times mean the same as to the readers, and small inputs are
    read fast."""
    wanted = {_TIME_ZONE: "UTC", _NANOSECONDS: "true"}
    if is_small(arguments):
        # One task is faster than finding out how many there should be.
        wanted |= _FEW_TASKS
    if is_small(arguments) or has_many_small_files(arguments):
        wanted |= _CHEAP_FILES
    if _has_at_most(arguments, _TINY_BYTES):
        # Spark takes longer to compile the many expressions than to interpret them for so few rows.
        wanted |= _INTERPRETED
    if arguments.get("encoding", UTF_8) != UTF_8:
        wanted[_CHARSETS] = "true"
    return wanted


@contextlib.contextmanager
def changed_settings(spark: SparkSession, wanted: Mapping[str, str]) -> Iterator[None]:
    """Change settings of the session, and restore them afterwards."""
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


def columns_of(url: str, dialect: Dialect | None, *, header: bool) -> str:
    """A sentence that lists the columns of a table.

    Args:
        dialect: of a CSV; None: it is Parquet.
    """
    names = list(column_names(url)) if dialect is None else names_in_csv(dialect, header=header)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{url} has {', '.join(names[:_MOST_NAMES])}{more}"


def cause_of(exc: Exception) -> str:
    """The innermost cause in an error of Spark, in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if malformed := [line for line in lines if any(sign in line for sign in _MALFORMED)]:
        line = malformed[-1][:300]
        return f"a line has more or fewer fields than the first, or a quote is not closed: {line}"
    causes = [line for line in lines if line.startswith("Caused by:")]
    return (causes or lines or [repr(exc)])[-1 if causes else 0][:300]


def _numbered(width: int) -> list[str]:
    return [f"column{i + 1}" for i in range(width)]
