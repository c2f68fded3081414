"""Samples a table of Spark's catalog, or the rows of a query."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import DataFrame

from spark_hpo.data.profile import TableProfile, profile_sample
from spark_hpo.errors import DataError
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.prepare.sources import own_session

_SAMPLE_ROWS = 20_000


def sample_rows(frame: DataFrame) -> pa.Table:
    """Return the first rows that Spark finds, at most 20,000."""
    return pa.Table.from_pandas(frame.limit(_SAMPLE_ROWS).toPandas(), preserve_index=False)


def profile_catalog(source: dict[str, str]) -> TableProfile:
    """Count the rows of a table or a query, and profile it from some of them.

    Args:
        source: as `files.catalog_source` returns it.

    Raises:
        ConfigError: there is no such table, or the query is wrong.
        DataError: there are no rows.
    """
    [name] = source.values()
    with own_session() as spark:
        frame = open_frame(spark, **source)
        sample = sample_rows(frame)
        rows = frame.count()
    if not sample.num_rows:
        raise DataError(f"{name} has no rows. Check its conditions")
    return profile_sample(name, sample, rows=rows, size=rows * sample.nbytes // sample.num_rows)
