"""scikit-learn's handwritten digits: 1,797 real images that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.sql import SparkSession

from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.errors import ConfigError
from spark_hpo.prepare import splits
from spark_hpo.prepare.output import Prepared, Request

_SCHEMA = TableSchema(
    features=(Feature(name="pixels", kind=ColumnKind.ARRAY, shape=(1, 8, 8), source="images"),),
    label=Label(name="digit", classes=tuple("0123456789")),
)
_DARKEST = 16.0  # pixels are 0..16


def request(
    output: str,
    *,
    fractions: Sequence[float] = splits.DEFAULT_FRACTIONS,
    seed: int = 0,
    row_group_rows: int = 128,
    overwrite: bool = False,
) -> Request:
    """Check the arguments of `digits`.

    Raises:
        ConfigError: an argument is invalid.
    """
    splits.check_fractions(fractions)
    splits.check_row_group_rows(row_group_rows)
    arguments = {
        "table": "digits",
        "fractions": list(fractions),
        "seed": seed,
        "row_group_rows": row_group_rows,
    }
    return Request(output=output, arguments=arguments, overwrite=overwrite)


def digits(spark: SparkSession, output: str, **options: Any) -> Prepared:
    """Write the digits: `pixels`, float32 [1, 8, 8] in 0..1, and the label `digit`, "0".."9".

    Args:
        output: the folder to write, a local path or fsspec URL.
        options: fractions (of train, validation and test), seed, row_group_rows, overwrite.

    Raises:
        ConfigError: scikit-learn is not installed, or `output` is another table.
    """
    return request(output, **options).fulfil(write, lambda: spark)


def write(spark: SparkSession, request: Request) -> Prepared:
    """Write the requested table, replacing one that is there."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise ConfigError(
            "scikit-learn, which contains the digits, is not installed", cure="pip install scikit-learn"
        ) from exc
    found = load_digits()
    rows = list(zip((found.data / _DARKEST).tolist(), found.target.tolist(), strict=True))
    frame = spark.createDataFrame(rows, "pixels array<float>, digit long")
    arguments = request.arguments
    frame = splits.with_split(frame, arguments["fractions"], arguments["seed"])
    with request.writing() as folder:
        counts = splits.write(frame, folder, total_rows=len(rows), row_group_rows=arguments["row_group_rows"])
        return request.finish(folder, _SCHEMA, counts)
