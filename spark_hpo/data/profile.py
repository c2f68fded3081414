"""What the columns of a Parquet table hold, from its footers and a sample of its rows: no Spark is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_hpo.data import encoders, files
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.footers import Footers, read_footers
from spark_hpo.data.readers import petastorm_codecs
from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.table import Table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

T = TypeVar("T")

_SAMPLED_GROUPS = 16
_SAMPLED_ROWS = 10_000  # of each row group
_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """One column, as a sample of the rows shows it."""

    name: str
    stored: str  # its type in Arrow, as text
    kind: ColumnKind | None  # how a prepared table would have it; None: it has no use there
    counts: tuple[int, ...]  # how often each value occurs, the most frequent first; of scalars only
    present: int  # rows where it is not null
    is_whole: bool  # a number without a fraction wherever it is present
    shape: tuple[int, ...] = ()  # of one value, once it is decoded
    transform: str = ""  # what decodes it

    @property
    def distinct(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProfile:
    """A Parquet table that nobody has prepared."""

    url: str
    rows: int
    bytes: int
    row_groups: int
    columns: tuple[ColumnProfile, ...]
    sampled_rows: int
    is_petastorm: bool

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)


def profile(url: str, *, trust_petastorm_metadata: bool = False) -> TableProfile:
    """Look at a table as it is.

    Args:
        trust_petastorm_metadata: may unpickle what Petastorm has written about the table's columns.

    Raises:
        DataError: there is no Parquet at `url`, or it cannot be read.
    """
    found = read_footers(url)
    codecs = petastorm_codecs.trusted_codecs(found.url) if trust_petastorm_metadata else {}
    sample = _sample(found)
    groups = [(f.row_group(i)) for f in found.footers for i in range(f.metadata.num_row_groups)]
    columns = [_profile(name, sample.column(name), codecs.get(name, "")) for name in sample.column_names]
    return TableProfile(
        url=found.url,
        rows=sum(group.num_rows for group in groups),
        bytes=sum(file.size for file in found.files),
        row_groups=len(groups),
        columns=tuple(columns),
        sampled_rows=sample.num_rows,
        is_petastorm=petastorm_codecs.has_metadata(found.url),
    )


def label_counts(table: Table) -> tuple[int, ...]:
    """How often each value of the label occurs in a sample of the training split, the most frequent first."""
    manifest, name = table.manifest(Split.TRAIN), table.schema.label.name
    fs, _ = files.filesystem(manifest.url)
    parts = []
    for group in _spread(manifest.row_groups):
        file = manifest.files[group.file]
        if name in manifest.partitions:
            types = {name: pa.type_for_alias(manifest.partitions[name])}
            value = partitions.values(file.partition, types)[name]
            parts.append(pa.array([None if value is None else str(value)] * group.rows))
            continue
        with files.reading(file.path), files.opened(fs, file.path) as source:
            first = _first_rows(source, group.index, [name])
        parts.append(_plain(first.column(0)).cast(pa.string()).combine_chunks())
    return _counts(pa.chunked_array(parts, pa.string()))


def _sample(found: Footers) -> pa.Table:
    """Some rows of row groups that lie all over the table: its ends may differ."""
    fs, _ = files.filesystem(found.url)
    everywhere = [(n, i) for n, f in enumerate(found.footers) for i in range(f.metadata.num_row_groups)]
    if not everywhere:
        raise DataError(f"{found.url}: no rows in {len(found.files)} Parquet files: write it again")
    parts = []
    for number, index in _spread(everywhere):
        file = found.files[number]
        stored = [name for name in found.footers[number].schema.names if name not in found.partition_types]
        with files.reading(file.path), files.opened(fs, file.path) as source:
            rows = _first_rows(source, index, stored)
        constants = partitions.values(file.partition, found.partition_types)
        parts.append(partitions.add_columns(rows, constants))
    with files.reading(found.url):
        return pa.concat_tables(parts, promote_options="default")


def _first_rows(source: Any, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Of a row group, not more than is looked at: a group may be larger than memory."""
    file = pq.ParquetFile(source)
    batches = file.iter_batches(_SAMPLED_ROWS, row_groups=[row_group], columns=columns)
    first = next(batches, None)
    if first is None:
        return file.schema_arrow.empty_table().select(columns)
    return pa.Table.from_batches([first])


def _spread(groups: Sequence[T]) -> Iterator[T]:
    step = max(1, len(groups) // _SAMPLED_GROUPS)
    yield from groups[::step][:_SAMPLED_GROUPS]


def _profile(name: str, values: pa.ChunkedArray, transform: str) -> ColumnProfile:
    kind, shape = _kind(values, transform)
    is_scalar = kind in (ColumnKind.NUMERIC, ColumnKind.CATEGORICAL)
    return ColumnProfile(
        name=name,
        stored=str(values.type),
        kind=kind,
        counts=_counts(values) if is_scalar else (),
        present=len(values) - values.null_count,
        is_whole=kind is ColumnKind.NUMERIC and _is_whole(values),
        shape=shape,
        transform=transform,
    )


def _kind(values: pa.ChunkedArray, transform: str) -> tuple[ColumnKind | None, tuple[int, ...]]:
    """As `prepare` would have it; with the shape of a value."""
    stored = values.type
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    if _is_text(stored):
        return (ColumnKind.NUMERIC if _are_numbers(values) else ColumnKind.CATEGORICAL), ()
    if pa.types.is_boolean(stored):
        return ColumnKind.CATEGORICAL, ()
    if _is_numeric(stored) or pa.types.is_date(stored) or pa.types.is_timestamp(stored):
        return ColumnKind.NUMERIC, ()
    present = values.drop_null()
    if pa.types.is_binary(stored) or pa.types.is_large_binary(stored):
        if not transform or not len(present):
            return ColumnKind.BINARY, ()
        return ColumnKind.BINARY, np.shape(encoders.find_transform(transform)(present[0].as_py()))
    if pa.types.is_list(stored) or pa.types.is_large_list(stored):
        if not (_is_text(stored.value_type) or _is_numeric(stored.value_type)):
            return None, ()
        lengths = pc.min_max(pc.list_value_length(present)).as_py()
        is_array = _is_numeric(stored.value_type) and lengths["min"] == lengths["max"] is not None
        return (ColumnKind.ARRAY if is_array else ColumnKind.SEQUENCE), (lengths["max"] or 0,)
    return None, ()


def _is_text(stored: pa.DataType) -> bool:
    return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored))


def _is_numeric(stored: pa.DataType) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(check(stored) for check in checks)


def _are_numbers(values: pa.ChunkedArray) -> bool:
    text = _plain(values).drop_null()
    text = text.filter(pc.not_equal(pc.utf8_trim_whitespace(text), ""))
    return bool(len(text)) and bool(pc.all(pc.match_substring_regex(text, _NUMBER)).as_py())


def _is_whole(values: pa.ChunkedArray) -> bool:
    values = _plain(values)
    if pa.types.is_date(values.type) or pa.types.is_timestamp(values.type):
        return False
    if _is_text(values.type):
        values = pc.utf8_trim_whitespace(values)
        values = values.filter(pc.not_equal(values, ""))
    numbers = values.cast(pa.float64(), safe=False).drop_null()
    numbers = numbers.filter(pc.is_finite(numbers))
    return bool(len(numbers)) and bool(pc.all(pc.equal(numbers, pc.floor(numbers))).as_py())


def _counts(values: pa.ChunkedArray) -> tuple[int, ...]:
    counted = pc.value_counts(_plain(values).drop_null())
    return tuple(sorted((int(n) for n in counted.field("counts").to_pylist()), reverse=True))


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values
