"""Profiles the columns of a Parquet table from its footers and a sample of rows, without Spark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_hpo.data import encoders, files, petastorm_codecs
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.footers import Footers, check_names, read_footers
from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.table import Table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

T = TypeVar("T")

_SAMPLED_GROUPS = 16
_SAMPLED_ROWS = 10_000  # of each row group
_WORDS = 5  # of the median text, and above: texts that a task reads, if few are equal
_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """Profile of one column, from a sample of the rows."""

    name: str
    stored: str  # Arrow type, as text
    kind: ColumnKind | None  # kind in a prepared table; None if the column cannot be used
    counts: tuple[int, ...]  # frequency of each value, descending; scalars only
    present: int  # rows that are not null
    is_whole: bool  # all numbers are integers
    shape: tuple[int, ...] = ()  # of one decoded value
    transform: str = ""  # function that decodes bytes

    @property
    def distinct(self) -> int:
        return len(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProfile:
    """Profile of a Parquet table that has not been prepared."""

    url: str
    rows: int
    bytes: int
    row_groups: int
    columns: tuple[ColumnProfile, ...]
    sample: pa.Table
    is_petastorm: bool

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)


def profile(url: str, *, trust_petastorm_metadata: bool = False) -> TableProfile:
    """Profile a Parquet table.

    Args:
        trust_petastorm_metadata: allow unpickling Petastorm's metadata of the table.

    Raises:
        DataError: `url` has no Parquet files, or they cannot be read.
    """
    found = read_footers(url)
    codecs = petastorm_codecs.trusted_codecs(found.url) if trust_petastorm_metadata else {}
    sample = _sample(found)
    groups = [group for footer in found.footers for group in footer.row_groups]
    columns = [_profile(name, sample.column(name), codecs.get(name, "")) for name in sample.column_names]
    return TableProfile(
        url=found.url,
        rows=sum(rows for rows, _ in groups),
        bytes=sum(file.size for file in found.files),
        row_groups=len(groups),
        columns=tuple(columns),
        sample=sample,
        is_petastorm=petastorm_codecs.has_metadata(found.url),
    )


def profile_sample(url: str, sample: pa.Table, *, rows: int, size: int) -> TableProfile:
    """Profile a table without Parquet files from a sample of its rows.

    Args:
        rows: of the whole table.
        size: of the whole table, in bytes.
    """
    return TableProfile(
        url=url,
        rows=rows,
        bytes=size,
        row_groups=0,
        columns=tuple(_profile(name, sample.column(name), "") for name in sample.column_names),
        sample=sample,
        is_petastorm=False,
    )


def label_counts(table: Table, name: str) -> dict[str, int]:
    """Return the frequency of each value of a label, as text, in a sample of the training split."""
    manifest = table.manifest(Split.TRAIN)
    fs, _ = files.filesystem(manifest.url)
    parts = []
    for group in _spread(manifest.row_groups):
        file = manifest.files[group.file]
        if name in manifest.partitions:
            value = manifest.constants(group.file, manifest.absent)[name].as_py()
            parts.append(pa.array([None if value is None else str(value)] * group.rows, pa.string()))
            continue
        with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
            first = _first_rows(source, group.index, [name])
        parts.append(_plain(first.column(0)).cast(pa.string()).combine_chunks())
    return value_counts(pa.chunked_array(parts, pa.string()))


def _sample(found: Footers) -> pa.Table:
    """Sample rows from row groups spread over the whole table, because its ends may differ."""
    fs, _ = files.filesystem(found.url)
    everywhere = [(n, i) for n, f in enumerate(found.footers) for i in range(len(f.row_groups))]
    if not everywhere:
        raise DataError(
            f"{found.url} has {len(found.files)} Parquet files, but no rows. Write the table again"
        )
    check_names(found.url, found.schemas[0].names)
    parts = []
    for number, index in _spread(everywhere):
        file, constants = found.files[number], found.constants(number)
        stored = [name for name in found.schemas[number].names if name not in constants]
        with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
            rows = _first_rows(source, index, stored)
        parts.append(partitions.add_columns(rows, constants))
    with files.reading(found.url):
        return pa.concat_tables(parts, promote_options="default")


def _first_rows(source: Any, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Read only the first rows of a row group, because it may be larger than memory."""
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
    is_scalar = kind in (ColumnKind.NUMERIC, ColumnKind.CATEGORICAL, ColumnKind.TEXT)
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
    """Return the kind that fits the values, and the shape of one. `prepare` has to be told of texts."""
    stored = values.type
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    if _is_text(stored):
        if _are_numbers(values):
            return ColumnKind.NUMERIC, ()
        return (ColumnKind.TEXT if _are_texts(values) else ColumnKind.CATEGORICAL), ()
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


def _are_texts(values: pa.ChunkedArray) -> bool:
    """Return True for messages or descriptions, which are longer than names and mostly different."""
    text = pc.utf8_trim_whitespace(_plain(values).drop_null())
    if not len(text) or pc.count_distinct(text).as_py() < len(text) / 2:
        return False
    words = pc.add(pc.count_substring_regex(text, r"\s+"), 1)
    return bool(pc.approximate_median(words).as_py() >= _WORDS)


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


def value_counts(values: pa.ChunkedArray) -> dict[str, int]:
    """Return the frequency of each value, as text. Nulls do not count."""
    counted = pc.value_counts(_plain(values).drop_null().cast(pa.string()))
    names, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    return dict(zip(names, counts, strict=True))


def _counts(values: pa.ChunkedArray) -> tuple[int, ...]:
    counted = pc.value_counts(_plain(values).drop_null())
    return tuple(sorted((int(n) for n in counted.field("counts").to_pylist()), reverse=True))


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    return values
