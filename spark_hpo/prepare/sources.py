"""Prepares a table from a source by its name: csv, digits or synthetic."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyspark import SparkContext
from pyspark.sql import SparkSession

from spark_hpo.backend.spark.quiet import LOG_LEVEL, is_quiet
from spark_hpo.errors import ConfigError
from spark_hpo.prepare import csv_request, from_csv, from_digits, from_synthetic
from spark_hpo.prepare.output import Prepared, Request
from spark_hpo.prepare.phases import announce

_SOURCES: dict[str, tuple[Callable[..., Request], Callable[[Any, Request], Prepared]]] = {
    "csv": (csv_request.request, from_csv.write),
    "digits": (from_digits.request, from_digits.write),
    "synthetic": (from_synthetic.request, from_synthetic.write),
}


def prepare(
    source: str,
    output: str,
    options: Mapping[str, Any],
    start_spark: Callable[[], SparkSession],
    *,
    on_spark: bool = True,
) -> Prepared:
    """Prepare a table, unless an earlier call with the same arguments did.

    Args:
        source: csv, digits or synthetic.
        output: the folder to write, a local path or fsspec URL.
        options: of the function of that name, except that a CSV is cleaned by default and `null_values`
            come on top of its own.
        start_spark: called only if the table has to be written on Spark.
        on_spark: False: write the table in this process, where it can. The table is the same.

    Raises:
        ConfigError: an option is invalid, or the output is another table or cannot be written.
        DataError: the input cannot be used.
    """
    request = _request(source, output, options)
    is_alone = not on_spark and source == "csv" and not from_csv.needs_spark(request)
    return request.fulfil(_SOURCES[source][1], (lambda: None) if is_alone else start_spark)


def find(source: str, output: str, options: Mapping[str, Any]) -> Prepared | None:
    """Return the table that an earlier `prepare` wrote; None: there is none. Checks the options, too."""
    return _request(source, output, options).find()


@contextlib.contextmanager
def with_keys(name_of: Callable[[str], str]) -> Iterator[None]:
    """Give the keys of a ConfigError, which are names of options, the names that the user knows."""
    try:
        yield
    except ConfigError as exc:
        if exc.key.removeprefix("split.").isidentifier():
            exc.key = name_of(exc.key)
        raise


def key_of_study(option: str) -> str:
    """The name of an option in a study file."""
    return "data.path" if option == "output" else f"data.prepare.{option}"


def _request(source: str, output: str, options: Mapping[str, Any]) -> Request:
    options = dict(options)
    if source == "csv":
        options.setdefault("clean", True)
        if "null_values" in options:
            options["null_values"] = [*csv_request.DEFAULT_NULL_VALUES, *options["null_values"]]
    return _SOURCES[source][0](output, **options)


@contextlib.contextmanager
def own_session() -> Iterator[SparkSession]:
    """Yield the running session, which stays as it is, or a new one with the settings of spark-submit."""
    if SparkSession.getActiveSession() is not None or SparkContext._active_spark_context is not None:
        yield SparkSession.builder.getOrCreate()  # of a notebook, or of all tasks of a Databricks job
        return
    from spark_hpo.backend.spark.start_errors import explained_start  # needs py4j, which Connect clients lack

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or Spark takes the first python3 on the path
    announce("starting Spark")
    builder: Any = SparkSession.builder
    builder = builder.appName("prepare_data")
    if not is_quiet():
        builder = builder.config(LOG_LEVEL, "ERROR")
    with explained_start():
        spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    try:
        yield spark
    finally:
        spark.sparkContext.setLogLevel("OFF")  # tasks that are cancelled log errors
        spark.stop()
