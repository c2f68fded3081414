"""Splits a table that is read in place, by conditions on its rows or by row groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pyspark.sql.pandas.types import to_arrow_type

from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.plan.listing import relative, root_of
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.schema import Source
from spark_hpo.errors import DataError
from spark_hpo.prepare.rows import AssignedGroup, Rows
from spark_hpo.prepare.table_files import folder_of
from spark_hpo.trial import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInPlace:
    """The rows of a table in the splits in which readers of the sources will find them."""

    rows: Rows  # of all splits, with `splits.SPLIT`
    counts: Mapping[str, int]
    sources: Mapping[str, Source]
    left_out: int = 0  # rows in no split


def by_conditions(rows: Rows, table: Source, where: Mapping[str, str]) -> SplitInPlace:
    """Split rows by a condition for each split. Rows that meet no condition are in no split.

    Args:
        rows: with the original columns.
        table: its absolute URL, format and version.
        where: conditions by split, in the language of `data.where`.

    Raises:
        DataError: readers cannot parse a condition, no row meets it, or some rows meet two conditions.
    """
    url = table.url
    types = {field.name: to_arrow_type(field.dataType) for field in rows.schema}
    for split in Split:
        parse_where(where[split], None, types)
    conditions = {split: where[split] for split in Split}
    counted = rows.count_matches(conditions)
    for a, b in combinations(Split, 2):
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
    return SplitInPlace(
        rows=rows.split_where(conditions),
        counts={str(split): counted[split] for split in Split},
        sources={str(split): replace(table, where=where[split]) for split in Split},
        left_out=counted["rows"] - sum(counted[split] for split in Split),
    )


def by_row_groups(rows: Rows, table: Source, fractions: Sequence[float], seed: int) -> SplitInPlace:
    """Split whole row groups, by a hash of the file's name and the row group's index.

    Args:
        rows: with the original columns, as they are stored.
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
    url = table.url
    manifest = read_manifest(url, format=table.format, version=table.version)
    groups = [
        AssignedGroup(
            file=name, index=index, start=start, stop=stop, split=_split_of(name, index, shares, seed)
        )
        for name, index, start, stop in _groups(manifest)
    ]
    counts = {str(s): sum(group.stop - group.start for group in groups if group.split is s) for s in Split}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"{url}: none of its {len(groups)} row groups is assigned to {', '.join(empty)}. Split by "
            "columns (split.key ...) or by conditions (where_train ...), write smaller row groups, or use "
            "another seed or other fractions"
        )
    return SplitInPlace(
        rows=rows.split_by_row_groups(groups, folder_of(url)),
        counts=counts,
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
