"""Folds that keep groups together, follow time or have equal shares of strata, as conditions on rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.filter.condition import Comparison, select_rows
from spark_hpo.data.filter.sql import any_of, literal, quoted
from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.schema import FoldBy, FoldOrder, TableSchema
from spark_hpo.errors import ConfigError, DataError

_THREADS = 8
_KEY = "__key"  # column: the value of `FoldBy.term`

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Side:
    """The rows of one side of a fold: a condition, and the rows that meet it."""

    where: str
    rows: Mask  # [rows of the table]


_Sides = tuple[_Side, _Side]
"""Training rows and held-out rows."""


def divide(manifest: Manifest, schema: TableSchema, count: int) -> tuple[tuple[Manifest, Manifest], ...]:
    """Return the training rows and the held-out rows of each fold.

    Reads the columns that decide into the memory of the driver, once.

    Args:
        manifest: all rows to divide.
        schema: with `fold_by`.

    Raises:
        ConfigError: there are fewer groups or times than the folds need.
        DataError: a file cannot be read, or the time is missing in a row.
    """
    by = schema.fold_by
    assert by is not None, "the caller has checked it"
    with ThreadPoolExecutor(_THREADS) as pool:
        read = partial(_deciding_columns, manifest, schema, by)
        tables = list(pool.map(read, range(len(manifest.row_groups))))
    sides: Iterator[_Sides]
    starts = np.cumsum([0, *(len(table) for table in tables)])
    whole = pa.concat_tables(tables).combine_chunks()
    match by.order:
        case FoldOrder.STRATUM:
            sides = _by_stratum(whole, by, count)
        case FoldOrder.TIME:
            sides = _by_values(whole.column(_KEY), by.term, count, is_time=True)
        case FoldOrder.GROUP:
            sides = _by_values(whole.column(_KEY), by.term, count, is_time=False)
            if by.time:
                later = _by_values(whole.column(by.time), quoted(by.time), count, is_time=True)
                sides = map(_both, sides, later)
    return tuple(
        (_restricted(manifest, by, starts, training), _restricted(manifest, by, starts, held_out))
        for training, held_out in sides
    )


def balanced_cuts(rows: Sequence[int], parts: int) -> list[int]:
    """Return where each part but the first begins, so that the parts are as equal as whole items allow.

    balanced_cuts([5, 1, 1, 5], 2) -> [2]

    Args:
        rows: of at least `parts` items, which stay in this order.
    """
    ends = np.cumsum([0, *rows])
    cuts: list[int] = []
    for part in range(1, parts):
        low, high = (cuts[-1] if cuts else 0) + 1, len(rows) - (parts - part)
        cuts.append(low + int(np.argmin(np.abs(ends[low : high + 1] - ends[-1] * part / parts))))
    return cuts


def _deciding_columns(manifest: Manifest, schema: TableSchema, by: FoldBy, number: int) -> pa.Table:
    """Return the key and the stratum of the matching rows of a row group."""
    group = manifest.row_groups[number]
    file = manifest.files[group.file]
    fs, _ = files.filesystem(manifest.url)
    wanted = [*dict.fromkeys((*by.all_columns, *manifest.where_columns))]
    stored = [name for name in wanted if name not in manifest.partitions]
    with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
        table = pq.ParquetFile(source).read_row_group(group.index, columns=stored)
    table = partitions.add_columns(table, manifest.constants(group.file, table.column_names)).select(wanted)
    kinds = {column.name: column.type for column in table.schema}
    if group.rows < group.stored_rows:
        table = select_rows(table, parse_where(manifest.where, schema, kinds))
    if len(table) != group.rows:
        raise files.changed(file.path, f"{len(table)} rows match the filter, {group.rows} planned")
    if by.is_hash:
        comparison = parse_where(f"{by.term} >= 0", None, kinds)
        assert isinstance(comparison, Comparison)
        assert comparison.row_hash is not None
        key = comparison.row_hash.of(table)
    else:
        key = table.column(by.columns[0])
    return pa.table({_KEY: key} | {name: table.column(name) for name in (by.stratum, by.time) if name})


def _both(first: _Sides, second: _Sides) -> _Sides:
    """Return the rows that are on the same side of two folds; the others are left out of both sides."""
    training, held_out = (
        _Side(f"({a.where}) and ({b.where})", a.rows & b.rows) for a, b in zip(first, second, strict=True)
    )
    return training, held_out


def _by_values(key: pa.ChunkedArray, term: str, count: int, *, is_time: bool) -> Iterator[_Sides]:
    """Yield the sides of folds that are ranges of the key: of hashes of groups, or of time."""
    if key.null_count:
        raise DataError(f"{term} is missing in {key.null_count:,} rows, so they cannot be divided by time")
    values = _comparable(key)
    found, first, position, rows = np.unique(
        values, return_index=True, return_inverse=True, return_counts=True
    )
    parts = count + is_time  # the first period is only trained on
    if len(found) < parts:
        noun = "different times" if is_time else "groups"
        raise ConfigError(
            f"must be at most {len(found) - is_time} folds, because {term} has {len(found)} "
            f"{noun} in the training and validation rows",
            key="search.max_resource",
            value=count,
        )
    cuts = balanced_cuts(rows.tolist(), parts)
    texts = [literal(key[int(first[cut])].as_py()) for cut in cuts]
    part_of = np.searchsorted(cuts, position, side="right")
    for part in range(is_time, parts):
        low = [f"{term} < {texts[part - 1]}"] if part else []
        high = [f"{term} >= {texts[part]}"] if part < parts - 1 and not is_time else []
        inside = [f"{term} >= {texts[part - 1]}"] if part else []
        inside += [f"{term} < {texts[part]}"] if part < parts - 1 else []
        training = part_of < part if is_time else part_of != part
        yield _Side(any_of([*low, *high]), training), _Side(" and ".join(inside), part_of == part)


def _by_stratum(table: pa.Table, by: FoldBy, count: int) -> Iterator[_Sides]:
    """Yield the sides of folds with equal shares of each stratum, in the order of the hashes in it."""
    hashes = table.column(_KEY).to_numpy()
    encoded = table.column(by.stratum).combine_chunks().dictionary_encode("encode")
    names, strata = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    training: list[list[str]] = [[] for _ in range(count)]
    held_out: list[list[str]] = [[] for _ in range(count)]
    fold_of = np.zeros(len(hashes), np.int64)
    for number, name in enumerate(names):
        own = strata == number
        mine = np.sort(hashes[own])
        # Equal rows have equal hashes, and stay together.
        cuts = [int(mine[min(fold * len(mine) // count, len(mine) - 1)]) for fold in range(1, count)]
        fold_of[own] = np.searchsorted(cuts, hashes[own], side="right")
        stratum = (
            f"{quoted(by.stratum)} is null" if name is None else f"{quoted(by.stratum)} = {literal(name)}"
        )
        for fold in range(count):
            inside = [f"{by.term} >= {cuts[fold - 1]}"] if fold else []
            inside += [f"{by.term} < {cuts[fold]}"] if fold < count - 1 else []
            outside = [f"{by.term} < {cuts[fold - 1]}"] if fold else []
            outside += [f"{by.term} >= {cuts[fold]}"] if fold < count - 1 else []
            held_out[fold].append(" and ".join([stratum, *inside]))
            training[fold].append(f"{stratum} and {any_of(outside)}")
    for fold in range(count):
        yield (
            _Side(any_of([f"({part})" for part in training[fold]]), fold_of != fold),
            _Side(any_of([f"({part})" for part in held_out[fold]]), fold_of == fold),
        )


def _comparable(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return values in an array whose order is that of the column."""
    kind, t = column.type, pa.types
    if t.is_date32(kind):
        column = column.cast(pa.int32())
    elif t.is_date64(kind) or t.is_timestamp(kind):
        column = column.cast(pa.int64())
    is_number = t.is_integer(column.type) or t.is_floating(column.type)
    return np.asarray(column.to_numpy()) if is_number else np.array(column.to_pylist(), object)


def _restricted(manifest: Manifest, by: FoldBy, starts: npt.NDArray[np.int64], side: _Side) -> Manifest:
    """Return the rows of a manifest that meet a condition too.

    Args:
        starts: the first row of each row group in the table.
    """
    counts = np.add.reduceat(side.rows, starts[:-1], dtype=np.int64)
    groups = tuple(
        replace(group, rows=int(rows))
        for group, rows in zip(manifest.row_groups, counts, strict=True)
        if rows
    )
    where = f"({manifest.where}) and ({side.where})" if manifest.where else side.where
    return replace(
        manifest,
        row_groups=groups,
        rows=int(side.rows.sum()),
        where=where,
        where_columns=tuple(dict.fromkeys((*manifest.where_columns, *by.all_columns))),
        fingerprint=hashlib.sha256(f"{manifest.fingerprint} {where}".encode()).hexdigest()[:32],
    )
