"""Opens tables of Spark's catalog and queries as DataFrames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from spark_hpo.errors import ConfigError
from spark_hpo.prepare.reading import cause_of


def open_frame(
    spark: SparkSession,
    *,
    table: str | None = None,
    query: str | None = None,
    version: int | str | None = None,
) -> DataFrame:
    """Return the rows of a table or of a query, which Spark has analysed and not read yet.

    Args:
        table: a name in Spark's catalog, or of a view. Either `table` or `query` is given.
        query: a query in SQL.
        version: of a Delta or Iceberg table: a number, or a time. None: the newest.

    Raises:
        ConfigError: there is no such table or version, or the query is wrong. The key is `table`, `query` or
            `version`.
    """
    if query is not None:
        with _refusing("query", query, "Check the query"):
            return spark.sql(query)
    assert table is not None, "the caller passes one of them"
    with _refusing("table", table, "Check the name (catalog.schema.table), and that you may read the table"):
        frame = spark.table(table)
        frame.columns  # noqa: B018 - a Connect server analyses it only now
    if version is None:
        return frame
    # pyspark's own readers of versions differ between formats; the syntax of SQL does not.
    text = str(version).replace("'", "")
    kind = f"VERSION AS OF {text}" if text.isdigit() else f"TIMESTAMP AS OF '{text}'"
    with _refusing("version", version, f"Use a version of {table}, which must be a Delta or Iceberg table"):
        frame = spark.sql(f"SELECT * FROM {table} {kind}")
        frame.columns  # noqa: B018
        return frame


@contextlib.contextmanager
def _refusing(key: str, value: object, cure: str) -> Iterator[None]:
    try:
        yield
    except (PySparkException, Py4JJavaError) as exc:
        raise ConfigError(f"is refused by Spark: {cause_of(exc)}", key=key, value=value, cure=cure) from exc
