"""Scores the rows of a table with a function on executors, and writes them as Parquet."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.schema import TableFormat
from spark_hpo.data.writer import RowGroupWriter, summary_batch
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.prepare.dialect import UTF_8, find_dialect
from spark_hpo.prepare.output import fingerprint
from spark_hpo.prepare.reading import cause_of, read, settings
from spark_hpo.prepare.splits import column as column
from spark_hpo.prepare.splits import run, task_number
from spark_hpo.prepare.table_files import source_of

Score = Callable[[Iterator[Any], Sequence[str]], Iterator[Any]]
"""Takes Arrow batches and the names of their columns; yields batches with the answers as further columns."""

_ROW_GROUP_ROWS = 131_072
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


def write_scored(
    frame: DataFrame, score: Score, answers: Sequence[str], url: str, *, copied: Sequence[str]
) -> int:
    """Write the rows of a table with the answers for them, and return their number.

    Tasks write the files themselves: sending the rows back to Spark takes longer than writing them.

    Args:
        score: runs on executors; must be picklable.
        answers: the names of the columns that `score` appends, in order.
        copied: the columns of the table to write.
    """
    names = frame.columns
    place = files.absolute(url)
    fs, path = files.filesystem(place)
    with files.accessing(place):
        if fs.exists(path):
            fs.rm(path, recursive=True)
    # mapInArrow reads a column name `a.b` as field b of a, so columns are numbered meanwhile.
    numbered = frame.toDF(*(f"c{i}" for i in range(len(names))))
    kept = [*map(names.index, copied), *range(len(names), len(names) + len(answers))]
    write = partial(
        _write_part, score=score, names=names, kept=kept, written=[*copied, *answers], folder=place
    )
    try:
        rows = run(numbered, write)["rows"]
        with files.accessing(place):
            fs.makedirs(path, exist_ok=True)
            fs.pipe_file(files.join(path, "_SUCCESS"), b"")
    except BaseException:  # also an interrupt: no partial output may stay
        with contextlib.suppress(Exception):
            fs.rm(path, recursive=True)
        raise
    return rows


def _write_part(
    batches: Iterable[Any],
    *,
    score: Score,
    names: Sequence[str],
    kept: Sequence[int],
    written: Sequence[str],
    folder: str,
) -> Iterator[Any]:
    place = files.join(folder, f"part-{task_number():05d}.parquet")
    with RowGroupWriter(place, _ROW_GROUP_ROWS) as writer:
        for batch in score(iter(batches), names):
            writer.write(pa.RecordBatch.from_arrays([batch.column(i) for i in kept], list(written)))
    yield summary_batch({"rows": writer.rows})
