"""scikit-learn's handwritten digits: 1,797 real images that come inside a package."""

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
_DARKEST = 16.0  # the images count 0..16


def request(
    output: str,
    *,
    fractions: Sequence[float] = splits.DEFAULT_FRACTIONS,
    seed: int = 0,
    row_group_rows: int = 128,
    overwrite: bool = False,
) -> Request:
    """What `digits` is asked for."""
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
        output: local path or fsspec URL of the folder to write.
        options: fractions (train, validation, test), seed, row_group_rows, overwrite.

    Raises:
        ConfigError: scikit-learn is not installed, or `output` is another table.
    """
    asked = request(output, **options)
    return asked.found() or make(spark, asked)


def make(spark: SparkSession, asked: Request) -> Prepared:
    """Write what is asked for, in place of what is there."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise ConfigError(
            "the digits come with scikit-learn, which is not installed: `pip install 'spark_hpo[examples]'`"
        ) from exc
    found = load_digits()
    rows = list(zip((found.data / _DARKEST).tolist(), found.target.tolist(), strict=True))
    frame = spark.createDataFrame(rows, "pixels array<float>, digit long")
    arguments = asked.arguments
    frame = splits.with_split(frame, arguments["fractions"], arguments["seed"])
    with asked.writing() as folder:
        counts = splits.write(frame, folder, total_rows=len(rows), row_group_rows=arguments["row_group_rows"])
        return asked.finish(folder, _SCHEMA, counts)
