"""The files of a table as Spark reads them, and the rows of one version of a Delta or Iceberg table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, read_version
from spark_hpo.data.lake.iceberg import METADATA_SUFFIX
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.listing import relative, root_of
from spark_hpo.data.schema import Source, TableFormat

_SCHEME = re.compile("^[a-z0-9]+:/+|^/+")


def source_of(arguments: Mapping[str, Any]) -> Source:
    """Return the input of a request, with the version of a Delta or Iceberg table that is read from now on.

    Raises:
        ConfigError: the wanted version is not one.
        DataError: there is no such version.
    """
    url = arguments["input"]
    if arguments["format"] not in (TableFormat.DELTA, TableFormat.ICEBERG):
        return Source(url=url)
    format = TableFormat(arguments["format"])
    return Source(url=url, format=format, version=find_version(url, format, arguments.get("version")))


def file_key(folder: str, name: str) -> str:
    """Return what `file_column` has in the rows of a file.

    Args:
        folder: that the name is relative to.
    """
    return _SCHEME.sub("", for_spark(files.join(folder, name)))


def file_column() -> Column:
    """The file of each row, as `file_key` names it."""
    # url_decode would read a plus as a space.
    path = F.url_decode(F.replace(F.col("_metadata.file_path"), F.lit("+"), F.lit("%2B")))
    return F.regexp_replace(path, _SCHEME.pattern, "")


def version_frame(spark: SparkSession, table: Source) -> DataFrame:
    """Return the rows of one version of a Delta or Iceberg table: Spark reads its files as plain Parquet."""
    assert table.version is not None, "the caller has checked it"
    lake = read_version(table.url, table.format, table.version)
    root = root_of(table.url)
    folder = folder_of(table.url)
    names = [relative(file.path, root) for file in lake.files]
    types = lake.partition_types
    stored = pa.schema([_spark_readable(column) for column in lake.schema if column.name not in types])
    reader = spark.read.schema(from_arrow_schema(stored, prefer_timestamp_ntz=True))
    # Names of partition folders may contain what Spark would take for a pattern.
    frame = reader.option("__globPaths__", "false").parquet(
        *(for_spark(files.join(folder, name)) for name in names)
    )
    if not types:
        return frame
    values = [
        (file_key(folder, name), *(v.as_py() for v in partitions.values(file.partition, types).values()))
        for name, file in zip(names, lake.files, strict=True)
    ]
    columns = [pa.field("__key", pa.string()), *(_spark_readable(lake.schema.field(name)) for name in types)]
    known = spark.createDataFrame(values, from_arrow_schema(pa.schema(columns), prefer_timestamp_ntz=True))
    placed = frame.withColumn("__file_key", file_column())
    return placed.join(F.broadcast(known), F.col("__file_key") == F.col("__key")).drop("__file_key", "__key")


def folder_of(url: str) -> str:
    """Return the folder that the names of a table's files are relative to."""
    fs, path = files.filesystem(url)
    if url.endswith(METADATA_SUFFIX):
        return url.rsplit("/", 2)[0]
    return url.rpartition("/")[0] if fs.isfile(path) else url


def _spark_readable(column: pa.Field) -> pa.Field:
    """Return a column with a type that every version of Spark can convert."""
    kind = column.type
    if pa.types.is_large_string(kind):
        return column.with_type(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return column.with_type(pa.binary())
    if pa.types.is_large_list(kind):
        return column.with_type(pa.list_(_spark_readable(kind.value_field)))
    return column


def for_spark(path: str) -> str:
    """The path as Spark's JVM knows it."""
    if not files.is_local(path):
        return path
    # Databricks mounts these folders for Python only; its JVM knows the same files by these names.
    if path.startswith("/Volumes/"):
        return f"dbfs:{path}"
    if path.startswith("/dbfs/"):
        return f"dbfs:{path.removeprefix('/dbfs')}"
    # A path without a scheme is local, as everywhere here; Spark would use its default file system.
    return f"file://{path}"
