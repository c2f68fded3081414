"""Seeded splits by hash of the row, written in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pyspark import TaskContext
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.writer import summary_batch, write_splits
from spark_hpo.errors import ConfigError
from spark_hpo.trial import Split

SPLIT = "__split"  # the split's name
ORDER = "__order"  # hash of the row: where it is written
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
FRACTIONS_OF_FEW = (0.6, 0.2, 0.2)  # where a tenth of the rows would be too few to measure with
FEW_ROWS = 2_000
_ROW_GROUPS_PER_FILE = 16
_BUCKETS = 1_000_000  # how finely fractions are cut


def column(name: str) -> Column:
    """A column by its name, whatever is in the name."""
    return F.col("`{}`".format(name.replace("`", "``")))


def with_split(frame: DataFrame, fractions: Sequence[float], seed: int) -> DataFrame:
    """Add the columns `SPLIT` and `ORDER`, from a hash over the seed and all columns that are no maps.

    A row falls into the same split in every run, however the table is partitioned, and equal rows fall
    into one split. The hash also shuffles: a table sorted by its label is not written sorted.
    """
    check_fractions(fractions)
    hashed = [column(field.name) for field in frame.schema if not _holds_map(field.dataType)]
    frame = frame.withColumn(ORDER, F.xxhash64(F.lit(seed), *hashed))
    bucket = F.pmod(column(ORDER), F.lit(_BUCKETS))
    train, validation = (round(sum(fractions[: i + 1]) * _BUCKETS) for i in range(2))
    split = (
        F.when(bucket < train, F.lit(str(Split.TRAIN)))
        .when(bucket < validation, F.lit(str(Split.VALIDATION)))
        .otherwise(F.lit(str(Split.TEST)))
    )
    return frame.withColumn(SPLIT, split)


def _holds_map(stored: T.DataType) -> bool:
    """Maps have no hash in Spark: their order is not defined."""
    match stored:
        case T.ArrayType():
            return _holds_map(stored.elementType)
        case T.StructType():
            return any(_holds_map(field.dataType) for field in stored)
    return isinstance(stored, T.MapType)


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises ConfigError unless there are three, all above 0, that sum to 1."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"fractions are {list(fractions)}; they must be three numbers above 0 (train, validation, test) "
            "that sum to 1: for example 0.8,0.1,0.1"
        )


def write(frame: DataFrame, folder: str, *, total_rows: int, row_group_rows: int) -> Counter[str]:
    """Write a frame that has `SPLIT` and `ORDER`; the rows of each split are in the order of their hash.

    The same rows give the same files on any cluster, because their number depends on `total_rows` alone.

    Returns:
        rows written, by split.
    """
    check_row_group_rows(row_group_rows)
    num_files = -(-total_rows // (row_group_rows * _ROW_GROUPS_PER_FILE))
    names = [name for name in frame.columns if name not in (SPLIT, ORDER)]
    parts = frame.repartition(num_files, column(ORDER)).sortWithinPartitions(SPLIT, ORDER)
    # mapInArrow takes a column `a.b` for the field b of a: numbers travel instead of names.
    numbered = parts.select(column(SPLIT), *(column(name).alias(f"c{i}") for i, name in enumerate(names)))
    return run(numbered, partial(_write_part, folder=folder, row_group_rows=row_group_rows, names=names))


def check_row_group_rows(row_group_rows: int) -> None:
    if row_group_rows < 1:
        raise ConfigError(f"row_group_rows is {row_group_rows}; it must be at least 1")


def run(frame: DataFrame, function: Any) -> Counter[str]:
    """Run a function of Arrow batches that writes; sum the rows that its tasks report."""
    rows: Counter[str] = Counter()
    for row in frame.mapInArrow(function, "split string, rows long").collect():
        rows[row["split"]] += row["rows"]
    return rows


def task_number() -> int:
    """The number of the partition that this process works on."""
    context = TaskContext.get()
    assert context is not None
    return context.partitionId()


def _write_part(
    batches: Iterator[Any], *, folder: str, row_group_rows: int, names: Sequence[str]
) -> Iterator[Any]:
    file_name = f"part-{task_number():05d}.parquet"
    yield summary_batch(write_splits(batches, folder, file_name, row_group_rows, names))
