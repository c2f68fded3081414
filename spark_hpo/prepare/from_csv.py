"""Any CSV or Parquet table: text becomes codes, numbers are standardised, nothing is missing any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from spark_hpo.data import files
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare import splits
from spark_hpo.prepare.columns import analyse
from spark_hpo.prepare.encode import encode, original, schema_of
from spark_hpo.prepare.output import Prepared, Request, fingerprint

DEFAULT_NULL_VALUES = ("NaN", "nan", "NULL", "null")  # besides the empty text


def request(
    output: str,
    *,
    input: str,
    label: str,
    format: str | None = None,
    label_type: str = "auto",
    null_values: Sequence[str] = DEFAULT_NULL_VALUES,
    max_vocabulary: int = 1000,
    drop: Sequence[str] = (),
    separator: str = ",",
    fractions: Sequence[float] = splits.DEFAULT_FRACTIONS,
    seed: int = 0,
    row_group_rows: int = 16_384,
    overwrite: bool = False,
) -> Request:
    """What `csv` is asked for. The files at `input` are part of it: newer ones are another request."""
    splits.check_fractions(fractions)
    splits.check_row_group_rows(row_group_rows)
    if max_vocabulary < 1:
        raise ConfigError(f"max_vocabulary is {max_vocabulary}; it must be at least 1")
    if label_type not in ("auto", "class", "number"):
        raise ConfigError(f"label_type is {label_type!r}; it must be auto, class or number")
    if format not in (None, "csv", "parquet"):
        raise ConfigError(f"format is {format!r}; it must be csv or parquet")
    files_found = fingerprint(input)
    if format is None:
        is_parquet = any(name.endswith((".parquet", ".pq")) for name, *_ in files_found)
        format = "parquet" if is_parquet else "csv"
    arguments = {
        "table": "csv",
        "input": files.absolute(input),
        "input_files": files_found,
        "format": format,
        "label": label,
        "label_type": label_type,
        "null_values": list(null_values),
        "max_vocabulary": max_vocabulary,
        "drop": list(drop),
        "separator": separator,
        "fractions": list(fractions),
        "seed": seed,
        "row_group_rows": row_group_rows,
    }
    return Request(output=output, arguments=arguments, overwrite=overwrite)


def csv(spark: SparkSession, output: str, **options: Any) -> Prepared:
    """Prepare the table at `input`, a CSV with a header or Parquet.

    Text columns become codes by frequency in the training split: 0 is unseen, a missing value is the
    category "". A column is numeric when all its values are; it is standardised with the mean and
    deviation of the training split, and a missing value becomes the mean, with a feature
    `<name>_missing` that is 1.0 there (where the training split has missing values).

    Args:
        output: local path or fsspec URL of the folder to write.
        options: input, label, format (csv or parquet; None: by the ending), label_type (auto: a class
            for text and for at most 20 integers, else a number), null_values, max_vocabulary (codes of
            a text column; rarer values count as unseen), drop (columns to leave out), separator,
            fractions, seed, row_group_rows, overwrite.

    Raises:
        ConfigError: an argument means nothing, or `output` is another table.
        DataError: the input is missing, empty or malformed, the label is missing or has nulls.
    """
    asked = request(output, **options)
    return asked.found() or make(spark, asked)


def make(spark: SparkSession, asked: Request) -> Prepared:
    """Write what is asked for, in place of what is there."""
    arguments = asked.arguments
    place = arguments["input"]
    try:
        frame = original(_read(spark, arguments), arguments["null_values"])
        unknown = [n for n in (arguments["label"], *arguments["drop"]) if n not in frame.columns]
        if unknown:
            raise DataError(
                f"{place}: there is no column {unknown[0]!r}: name one of {', '.join(frame.columns)}"
            )
        frame = splits.with_split(frame, arguments["fractions"], arguments["seed"])
        frame = frame.drop(*(splits.column(name) for name in arguments["drop"]))
        analysis = analyse(
            frame,
            place=place,
            label=arguments["label"],
            label_type=arguments["label_type"],
            max_vocabulary=arguments["max_vocabulary"],
        )
        with asked.writing() as folder:
            counts = splits.write(
                encode(frame, analysis),
                folder,
                total_rows=analysis.total_rows,
                row_group_rows=arguments["row_group_rows"],
            )
            return asked.finish(folder, schema_of(analysis), counts)
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{place}: Spark cannot prepare it: {_cause(exc)}") from exc


def _read(spark: SparkSession, arguments: Any) -> DataFrame:
    # A plain path is a local one here, as everywhere; Spark would look in its default file system.
    place = arguments["input"]
    url = f"file://{place}" if files.is_local(place) else place
    if arguments["format"] == "parquet":
        return spark.read.parquet(url)
    return spark.read.csv(
        url, header=True, sep=arguments["separator"], quote='"', escape='"', mode="FAILFAST"
    )


def _cause(exc: Exception) -> str:
    """The innermost reason that Spark gives, in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return (causes or lines or [repr(exc)])[-1 if causes else 0][:300]
