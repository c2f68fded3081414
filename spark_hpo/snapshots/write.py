"""Writes the rows of a DataFrame as plain Parquet that ranks can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from spark_hpo.data import files
from spark_hpo.data.plan.footers import read_footers
from spark_hpo.errors import DataError
from spark_hpo.prepare.reading import cause_of, changed_settings
from spark_hpo.prepare.table_files import for_spark
from spark_hpo.snapshots.frames import is_pandas, is_spark

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

    from spark_hpo.snapshots.frames import Frame

ROW_GROUP_ROWS = 16_384  # as in a prepared copy: small enough for splits by row groups, and for the ranks
_ROW_GROUP_BYTES = 16 * 2**20  # for Spark 3.5, which knows no limit of rows
# Parquet tries a dictionary on the first page of each row group, which doubles the time that the page takes.
_PAGE_ROWS = 4096
_NO_DICTIONARY = ("float", "double")
# Spark's default is INT96, which has nanoseconds and no statistics.
_SETTINGS = {"spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS"}


def write_frame(frame: Frame, url: str, place: str) -> int:
    """Write a DataFrame: Spark's with Spark, that of pandas in this process. Return the number of rows.

    Args:
        url: a folder that does not exist yet.
        place: the name of the DataFrame in messages.

    Raises:
        DataError: Spark cannot compute or write the rows, there are none, or this process does not see them.
    """
    if is_pandas(frame):
        _write_pandas(frame, url)
        return _count(url, place)
    assert is_spark(frame), "there is no third kind"
    try:
        with changed_settings(frame.sparkSession, _SETTINGS):
            frame.write.options(**_options(frame)).parquet(for_spark(url))
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{place}: Spark cannot write its rows to {url}: {cause_of(exc)}") from exc
    if not _has_files(url):
        raise DataError(
            f"{url}: Spark wrote the rows of {place}, but this process does not see them. Set data.snapshots "
            "to storage that driver and executors share"
        )
    return _count(url, place)


def _options(frame: DataFrame) -> dict[str, str]:
    options = {
        "parquet.block.row.count.limit": str(ROW_GROUP_ROWS),
        "parquet.block.size": str(_ROW_GROUP_BYTES),
        "parquet.page.row.count.limit": str(_PAGE_ROWS),
    }
    plain = [name for name, kind in frame.dtypes if kind in _NO_DICTIONARY]
    return options | {f"parquet.enable.dictionary#{name}": "false" for name in plain}


def _has_files(url: str) -> bool:
    fs, path = files.filesystem(url)
    with files.accessing(url):
        return fs.exists(path) and any(name.endswith(".parquet") for name in fs.ls(path, detail=False))


def _write_pandas(frame: pd.DataFrame, url: str) -> None:
    table = arrow_table(frame)
    fs, path = files.filesystem(files.join(url, "part-00000.parquet"))
    with files.accessing(url):
        fs.makedirs(fs._parent(path), exist_ok=True)
        with fs.open(path, "wb") as file:
            pq.write_table(
                table,
                file,
                row_group_size=ROW_GROUP_ROWS,
                coerce_timestamps="us",  # Spark reads no nanoseconds
                allow_truncated_timestamps=True,
            )


def arrow_table(frame: pd.DataFrame) -> pa.Table:
    """Convert a pandas DataFrame, without its index.

    Raises:
        DataError: two columns have one name, or a column has values of different types.
    """
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the DataFrame has several columns named {twice!r}. Rename all but one")
    try:
        table = pa.Table.from_pandas(frame.set_axis(names, axis=1), preserve_index=False)
    except pa.ArrowException as exc:
        raise DataError(f"the DataFrame cannot be stored as Parquet: {exc}") from exc
    for i, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(i, column.name, table.column(i).cast(column.type.value_type))
    return table.replace_schema_metadata(None)


def _count(url: str, place: str) -> int:
    rows = sum(footer.rows for footer in read_footers(url).footers)
    if not rows:
        raise DataError(f"{place} has no rows. Check its conditions")
    return rows
