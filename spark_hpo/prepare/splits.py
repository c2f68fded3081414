"""Assigns rows to splits by a seeded hash, and writes the splits in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark import TaskContext
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.writer import summary_batch, write_splits
from spark_hpo.errors import ConfigError
from spark_hpo.prepare.phases import announce
from spark_hpo.trial import Split

SPLIT = "__split"  # column: name of the split
ORDER = "__order"  # column: hash of the row, by which rows are ordered
# Columns of a copy that `TableSchema.fold_by` refers to.
FOLD, FOLD_STRATUM, FOLD_TIME = "__fold", "__fold_stratum", "__fold_time"
OWN_COLUMNS = (SPLIT, ORDER, FOLD, FOLD_STRATUM, FOLD_TIME)
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
FRACTIONS_OF_FEW = (0.6, 0.2, 0.2)  # of small tables: a tenth is too few rows to measure a metric
FEW_ROWS = 2_000
_ROW_GROUPS_PER_FILE = 16
BUCKETS = 1_000_000  # resolution of the fractions


def column(name: str) -> Column:
    """A column by its name, which may contain any character."""
    return F.col("`{}`".format(name.replace("`", "``")))


def with_split(frame: DataFrame, fractions: Sequence[float], seed: int) -> DataFrame:
    """Add the columns `SPLIT` and `ORDER`, from a hash of the seed and all columns without maps.

    Without one of the columns, rows get other splits.

    A row gets the same split in every run, however the table is partitioned, and equal rows get the same
    split. The hash also shuffles: a table that is sorted by its label is not written in that order.
    """
    check_fractions(fractions)
    frame = with_order(frame, seed)
    bucket = F.pmod(column(ORDER), F.lit(BUCKETS))
    train, validation = bucket_cuts(fractions)
    split = (
        F.when(bucket < train, F.lit(str(Split.TRAIN)))
        .when(bucket < validation, F.lit(str(Split.VALIDATION)))
        .otherwise(F.lit(str(Split.TEST)))
    )
    return frame.withColumn(SPLIT, split)


def bucket_cuts(fractions: Sequence[float]) -> tuple[int, int]:
    """Return the first bucket of validation, and of test."""
    train, validation = (round(sum(fractions[: i + 1]) * BUCKETS) for i in range(2))
    return train, validation


def with_order(frame: DataFrame, seed: int) -> DataFrame:
    """Add the column `ORDER`, which shuffles the rows."""
    hashed = [column(field.name) for field in frame.schema if not holds_map(field.dataType)]
    return frame.withColumn(ORDER, F.xxhash64(F.lit(seed), *hashed))


def holds_map(stored: T.DataType) -> bool:
    """Return True if a type contains a map, which Spark cannot hash because its order is undefined."""
    match stored:
        case T.ArrayType():
            return holds_map(stored.elementType)
        case T.StructType():
            return any(holds_map(field.dataType) for field in stored)
    return isinstance(stored, T.MapType)


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ConfigError unless there are three fractions, all above 0, that sum to 1."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            "must be three numbers above 0 (train, validation, test) that sum to 1",
            key="fractions",
            value=list(fractions),
            cure="For example 0.8,0.1,0.1",
        )


def write(frame: DataFrame, folder: str, *, total_rows: int, row_group_rows: int) -> Counter[str]:
    """Write a frame with the columns `SPLIT` and `ORDER`; the rows of each split are ordered by their hash.

    The same rows give the same files on any cluster: the number of files depends only on `total_rows`.

    Returns:
        The number of rows written, by split.
    """
    check_row_group_rows(row_group_rows)
    announce(f"writing {total_rows:,} rows")
    names = [name for name in frame.columns if name not in (SPLIT, ORDER)]
    parts = frame.repartition(num_files(total_rows, row_group_rows), column(ORDER)).sortWithinPartitions(
        SPLIT, ORDER
    )
    # mapInArrow reads a column name `a.b` as field b of a, so columns are numbered meanwhile.
    numbered = parts.select(column(SPLIT), *(column(name).alias(f"c{i}") for i, name in enumerate(names)))
    return run(numbered, partial(_write_part, folder=folder, row_group_rows=row_group_rows, names=names))


def num_files(total_rows: int, row_group_rows: int) -> int:
    """Return the number of files of each split."""
    return -(-total_rows // (row_group_rows * _ROW_GROUPS_PER_FILE))


def file_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def hash_partition(values: npt.NDArray[np.int64], partitions: int) -> npt.NDArray[np.int32]:
    """Return the partition that `DataFrame.repartition` by a long column gives to each row.

    Spark hashes with Murmur3 (x86, 32 bits) and the seed 42.
    """
    words = values.view(np.uint64)
    with np.errstate(over="ignore"):
        hashes = np.full(len(values), 42, np.uint32)
        for half in (words & np.uint64(2**32 - 1), words >> np.uint64(32)):
            mixed = _rotated(half.astype(np.uint32) * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
            hashes = _rotated(hashes ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
        hashes ^= np.uint32(8)  # bytes
        hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        hashes ^= hashes >> np.uint32(16)
    return hashes.view(np.int32) % np.int32(partitions)


def _rotated(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def check_row_group_rows(row_group_rows: int) -> None:
    if row_group_rows < 1:
        raise ConfigError("must be an integer >= 1", key="row_group_rows", value=row_group_rows)


def run(frame: DataFrame, function: Any) -> Counter[str]:
    """Run a function that writes Arrow batches, and sum the rows that its tasks report."""
    rows: Counter[str] = Counter()
    for row in frame.mapInArrow(function, "split string, rows long").collect():
        rows[row["split"]] += row["rows"]
    return rows


def task_number() -> int:
    """The index of the partition that this process works on."""
    context = TaskContext.get()
    assert context is not None
    return context.partitionId()


def _write_part(
    batches: Iterator[Any], *, folder: str, row_group_rows: int, names: Sequence[str]
) -> Iterator[Any]:
    name = file_name(task_number())
    yield summary_batch(write_splits(batches, folder, name, row_group_rows, names))
