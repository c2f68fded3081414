"""Splits a table that is read in place, by conditions on its rows or by row groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type

from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.plan.listing import relative, root_of
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.schema import Source
from spark_hpo.errors import DataError
from spark_hpo.prepare.splits import SPLIT, column
from spark_hpo.prepare.table_files import file_column, file_key, folder_of
from spark_hpo.trial import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInPlace:
    """The rows of a table in the splits in which readers of the sources will find them."""

    frame: DataFrame  # the rows of all splits, with `splits.SPLIT`
    rows: Mapping[str, int]
    sources: Mapping[str, Source]
    left_out: int = 0  # rows in no split


def by_conditions(frame: DataFrame, table: Source, where: Mapping[str, str]) -> SplitInPlace:
    """Split rows by a condition for each split. Rows that meet no condition are in no split.

    Args:
        frame: the original columns.
        table: its absolute URL, format and version.
        where: conditions by split, in the language of `data.where`.

    Raises:
        DataError: readers cannot parse a condition, no row meets it, or some rows meet two conditions.
    """
    url = table.url
    types = {field.name: to_arrow_type(field.dataType) for field in frame.schema}
    meets: dict[Split, Column] = {}
    for split in Split:
        parse_where(where[split], None, types)
        meets[split] = F.coalesce(F.expr(where[split]), F.lit(False))
    pairs = list(combinations(Split, 2))
    counted = frame.agg(
        F.count(F.lit(1)).alias("rows"),
        *(F.count_if(meets[split]).alias(split) for split in Split),
        *(F.count_if(meets[a] & meets[b]).alias(f"{a}, {b}") for a, b in pairs),
    ).collect()[0]
    for a, b in pairs:
        shared = counted[f"{a}, {b}"]
        if shared:
            raise DataError(
                f"{url}: {shared} rows meet the conditions of both {a} ({where[a]}) and {b} ({where[b]}). "
                "A row may meet at most one"
            )
    for split in Split:
        if not counted[split]:
            raise DataError(
                f"{url}: no row meets the condition of {split} ({where[split]}). Use another condition, "
                "other fractions or more rows"
            )
    cases = F.when(meets[Split.TRAIN], F.lit(str(Split.TRAIN)))
    for split in (Split.VALIDATION, Split.TEST):
        cases = cases.when(meets[split], F.lit(str(split)))
    return SplitInPlace(
        frame=frame.withColumn(SPLIT, cases).where(column(SPLIT).isNotNull()),
        rows={str(split): counted[split] for split in Split},
        sources={str(split): replace(table, where=where[split]) for split in Split},
        left_out=counted["rows"] - sum(counted[split] for split in Split),
    )


def by_row_groups(frame: DataFrame, table: Source, fractions: Sequence[float], seed: int) -> SplitInPlace:
    """Split whole row groups, by a hash of the file's name and the row group's index.

    Args:
        frame: the original columns, as Spark's Parquet reader returns them.
        table: its absolute URL, format and version.
        fractions: shares of the row groups for train, validation and test.

    Raises:
        DataError: a file cannot be read, or a split gets no row group.
    """
    train, validation, _ = fractions
    shares = {
        Split.TRAIN: (0.0, train),
        Split.VALIDATION: (train, round(train + validation, 12)),
        Split.TEST: (round(train + validation, 12), 1.0),
    }
    url, folder = table.url, folder_of(table.url)
    manifest = read_manifest(url, format=table.format, version=table.version)
    assigned = [
        (file_key(folder, name), start, stop, _split_of(name, index, shares, seed))
        for name, index, start, stop in _groups(manifest)
    ]
    rows = {str(s): sum(stop - start for _, start, stop, split in assigned if split is s) for s in Split}
    empty = [name for name, count in rows.items() if not count]
    if empty:
        raise DataError(
            f"{url}: none of its {len(assigned)} row groups is assigned to {', '.join(empty)}. Split by "
            "columns (split.key ...) or by conditions (where_train ...), write smaller row groups, or use "
            "another seed or other fractions"
        )
    # Spark knows the file and the position of each row, so statistics can be limited to the training rows.
    names = frame.columns
    placed = frame.select(
        *map(column, names),
        file_column().alias("__file"),
        F.col("_metadata.row_index").alias("__row"),
    )
    groups = frame.sparkSession.createDataFrame(
        [(name, start, stop, str(split)) for name, start, stop, split in assigned],
        f"__of string, __start long, __stop long, {SPLIT} string",
    )
    row = F.col("__row")
    within = (F.col("__file") == F.col("__of")) & (F.col("__start") <= row) & (row < F.col("__stop"))
    return SplitInPlace(
        frame=placed.join(F.broadcast(groups), within).select(*map(column, names), column(SPLIT)),
        rows=rows,
        sources={str(s): replace(table, share=share, seed=seed) for s, share in shares.items()},
    )


def _groups(manifest: Manifest) -> Iterator[tuple[str, int, int, int]]:
    """Yield for each row group its file (path below the table), index, first row, and last row + 1."""
    root = root_of(manifest.url)
    ends: dict[int, int] = {}
    for group in manifest.row_groups:
        file = manifest.files[group.file]
        start = ends.get(group.file, 0)
        ends[group.file] = stop = start + group.stored_rows
        yield relative(file.path, root), group.index, start, stop


def _split_of(name: str, index: int, shares: Mapping[Split, tuple[float, float]], seed: int) -> Split:
    return next(split for split, share in shares.items() if in_share(name, index, share, seed))
