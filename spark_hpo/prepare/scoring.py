"""Scores the rows of a table with a function on executors, and writes them as Parquet."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.prepare.dialect import UTF_8, find_dialect
from spark_hpo.prepare.output import fingerprint
from spark_hpo.prepare.reading import cause_of, read, settings
from spark_hpo.prepare.splits import column as column
from spark_hpo.prepare.table_files import for_spark, source_of

Score = Callable[[Iterator[Any], Sequence[str]], Iterator[Any]]
"""Takes Arrow batches and the names of their columns; yields batches with the answers as further columns."""

_LARGE = 2**62  # bytes of a table whose size is not known
_RAISED = re.compile(r"spark_hpo\.errors\.DataError: (.+)")


@contextlib.contextmanager
def opened(
    spark: SparkSession,
    url: str,
    *,
    format: str | None = None,
    version: str | None = None,
    header: bool = True,
) -> Iterator[DataFrame]:
    """Yield a table as Spark reads it for `prepare csv`.

    Args:
        format: csv or parquet; None: a Delta or Iceberg table, or by the ending.
        version: of a Delta or Iceberg table; None: the newest.

    Raises:
        DataError: the table is missing or malformed, or Spark fails inside the block.
    """
    if (lake := table_format(url)) is not TableFormat.PARQUET:
        format = lake
    is_lake = format in (TableFormat.DELTA, TableFormat.ICEBERG)
    listed = [] if is_lake else fingerprint(url)
    if version is not None and not is_lake:
        find_version(url, TableFormat.PARQUET, version)  # raises
    if format is None:
        is_parquet = any(name.endswith((".parquet", ".pq")) for name, *_ in listed)
        format = "parquet" if is_parquet else "csv"
    arguments: dict[str, Any] = {"input": files.absolute(url), "input_files": listed, "format": format}
    arguments |= {} if version is None else {"version": int(version) if version.isdigit() else version}
    if format == "csv":
        dialect = find_dialect(url, listed, None, header=header)
        arguments |= {"separator": dialect.separator, "many_lines": dialect.many_lines, "header": header}
        arguments |= {"encoding": dialect.encoding} if dialect.encoding != UTF_8 else {}
    with settings(spark, arguments), _of_table(url):
        yield read(spark, arguments, source_of(arguments))


@contextlib.contextmanager
def opened_name(spark: SparkSession, table: str, version: str | None) -> Iterator[DataFrame]:
    """Yield a table of Spark's catalog, at a version or the newest one.

    Raises:
        ConfigError: there is no such table.
        DataError: Spark fails inside the block.
    """
    arguments = {"input": "", "format": "parquet", "input_files": [["", _LARGE]]}
    with settings(spark, arguments), _of_table(table):
        yield open_frame(spark, table=table, version=version)


@contextlib.contextmanager
def _of_table(name: str) -> Iterator[None]:
    try:
        yield
    except (PySparkException, Py4JJavaError) as exc:
        raised = _RAISED.search(str(exc))
        raise DataError(f"{name}: {raised[1] if raised else cause_of(exc)}") from exc


def check_output(url: str, input: str | None, *, overwrite: bool) -> None:
    """Raise ConfigError if the output exists and must not be replaced, or is part of the input."""
    there, here = (f"{files.absolute(place).rstrip('/')}/" for place in (url, input or url))
    if input is not None and (there.startswith(here) or here.startswith(there)):
        raise ConfigError(
            f"overlaps with the input {input}", key="output", value=url, cure="Choose another folder"
        )
    if files.exists(url) and not overwrite:
        raise ConfigError("exists", key="output", value=url, cure="Choose another folder, or use --overwrite")


_TYPES = {
    "string": T.StringType(),
    "boolean": T.BooleanType(),
    "bigint": T.LongType(),
    "float": T.FloatType(),
    "double": T.DoubleType(),
}


def _type_of(kind: str) -> T.DataType:
    element = kind.removeprefix("array<").removesuffix(">")
    return _TYPES[kind] if element == kind else T.ArrayType(_type_of(element))


def write_scored(
    frame: DataFrame, score: Score, answers: Mapping[str, str], url: str, *, copied: Sequence[str]
) -> None:
    """Write the rows of a table with the answers for them.

    Args:
        score: runs on executors; must be picklable.
        answers: Spark types by name, in the order in which `score` appends the columns.
        copied: the columns of the table to write.
    """
    names = frame.columns
    # mapInArrow reads a column name `a.b` as field b of a, so columns are numbered meanwhile.
    numbered = frame.toDF(*(f"c{i}" for i in range(len(names))))
    schema = copy.deepcopy(numbered.schema)
    for i, kind in enumerate(answers.values()):
        schema.add(f"a{i}", _type_of(kind))
    scored = numbered.mapInArrow(lambda batches: score(iter(batches), names), schema)
    wanted = [*(f"c{names.index(name)}" for name in copied), *(f"a{i}" for i in range(len(answers)))]
    named = scored.select(*wanted).toDF(*copied, *answers)
    named.write.mode("overwrite").parquet(for_spark(files.absolute(url)))
