"""A bounded sample of a table: numbers, codes and marks of missing values as NumPy columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.decode import Decoder
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.manifest import Manifest, RowGroup
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.schema import ColumnKind, Label, TableSchema
from spark_hpo.data.table import Table
from spark_hpo.trial import Split

_ROWS = 20_000
_GROUPS = 16
_MAX_COLUMNS = 500
_MAX_BYTES = 512 * 2**20  # uncompressed, of all groups; a group is read as a whole
_MAX_LABELS, _MAX_LABEL_GROUPS = 2_000_000, 500  # that are read of a split, to count its classes
_EPOCH_SECONDS = (3e8, 4e9)  # 1979 to 2096: numbers in this range with a small spread are dates
_DAY_S = 86_400

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of one split. Columns have the names of the original table."""

    label_name: str
    label: Floats  # values, or positions in `classes`
    classes: tuple[str, ...] = ()  # empty: the label is a number
    numbers: Mapping[str, Floats] = field(default_factory=dict)  # NaN: missing
    codes: Mapping[str, Codes] = field(default_factory=dict)  # 0: many different values, or missing
    missing: Mapping[str, Marks] = field(default_factory=dict)  # only of columns with missing values
    times: frozenset[str] = frozenset()  # the numbers that are dates or times
    group: Codes | None = None  # the row group of each row; None: unknown

    @property
    def rows(self) -> int:
        return len(self.label)

    def take(self, rows: npt.NDArray[np.int64]) -> Sample:
        """Return the rows at these positions."""
        return replace(
            self,
            label=self.label[rows],
            numbers={name: values[rows] for name, values in self.numbers.items()},
            codes={name: values[rows] for name, values in self.codes.items()},
            missing={name: values[rows] for name, values in self.missing.items()},
            group=None if self.group is None else self.group[rows],
        )


def sample_of(table: Table, split: Split, label: Label | None = None) -> Sample:
    """Sample a split of a prepared table, from row groups that are spread over it.

    Args:
        label: one of several; None: the first.

    Raises:
        DataError: the table cannot be read.
    """
    schema, manifest = table.schema, table.manifest(split)
    label = label or schema.label
    scalars = schema.of_kind(ColumnKind.NUMERIC, ColumnKind.CATEGORICAL)[:_MAX_COLUMNS]
    narrow = replace(schema, features=scalars)
    spread = manifest.row_groups[:: max(1, len(manifest.row_groups) // _GROUPS)][:_GROUPS]
    ends = np.cumsum([group.bytes for group in spread])
    groups = [group for group, end in zip(spread, ends, strict=True) if end <= _MAX_BYTES]
    if not groups:  # even the first is too large to read
        return Sample(label_name=label.name, label=np.zeros(0), classes=label.classes)
    per_group = -(-_ROWS // len(groups))
    parts, numbers = [], []
    for number, (group, columns) in enumerate(_decoded(manifest, narrow, groups, per_group)):
        parts.append(columns)
        numbers.append(np.full(min(per_group, group.rows), number))
    return _of_delivered(narrow, label, parts, np.concatenate(numbers), manifest)


def class_counts(table: Table, split: Split) -> Codes | None:
    """Count the rows of each class in a split; None: the label is a number, or there are too many rows."""
    schema, manifest = table.schema, table.manifest(split)
    is_large = manifest.rows > _MAX_LABELS or len(manifest.row_groups) > _MAX_LABEL_GROUPS
    if schema.label.is_regression or is_large:
        return None
    narrow = replace(schema, features=())
    counts = np.zeros(len(schema.label.classes), np.int64)
    for _, columns in _decoded(manifest, narrow, manifest.row_groups, manifest.rows):
        counts += np.bincount(np.asarray(columns[schema.label.name]), minlength=len(counts))
    return counts


def sample_of_rows(rows: pa.Table, label: str) -> Sample:
    """The sample of a table that is not prepared.

    Args:
        rows: original columns; their order is not used.
    """
    numbers: dict[str, Floats] = {}
    codes: dict[str, Codes] = {}
    missing: dict[str, Marks] = {}
    times = []
    for name in rows.column_names:
        values = rows.column(name)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_large_string(values.type):  # of pandas 3
            values = values.cast(pa.string())
        values = _parsed_times(values)
        if _is_time(values.type):
            times.append(name)
            values = values.cast(pa.timestamp("us")).cast(pa.int64())
        numeric = _numbers(values)
        if numeric is not None:
            numbers[name] = numeric
            absent = np.isnan(numeric)
        elif pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
            texts = values.cast(pa.string()).combine_chunks().dictionary_encode()
            codes[name] = pc.fill_null(texts.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
            absent = codes[name] == 0
        else:
            continue
        if absent.any():
            missing[name] = absent
    classes: tuple[str, ...] = ()
    if label in codes:
        known = codes.pop(label)
        classes = tuple(map(str, range(known.max(initial=0))))
        kept, values = known > 0, (known - 1).astype(np.float64)
    else:
        values = numbers.pop(label)
        kept = ~np.isnan(values)
        distinct = np.unique(values[kept])
        if len(distinct) <= 20 and np.array_equal(distinct, np.floor(distinct)):
            classes = tuple(f"{value:.0f}" for value in distinct)
            values = np.searchsorted(distinct, values).astype(np.float64)
    whole = Sample(
        label_name=label,
        label=values,
        classes=classes,
        numbers=numbers,
        codes=codes,
        missing={name: marks for name, marks in missing.items() if name != label},
        times=frozenset(times),
    )
    return whole.take(np.flatnonzero(kept))


def _decoded(
    manifest: Manifest, schema: TableSchema, groups: Sequence[RowGroup], most: int
) -> Iterator[tuple[RowGroup, Columns]]:
    """Decode at most `most` rows of each row group."""
    decoder = Decoder(manifest, schema)
    fs, _ = files.filesystem(manifest.url)
    for group in groups:
        file = manifest.files[group.file]
        with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
            parquet = pq.ParquetFile(source)
            here = [name for name in decoder.columns if name in parquet.schema_arrow.names]
            stored = parquet.read_row_group(group.index, columns=here)
        yield group, decoder.decode(stored, Segment(group.file, group.index, 0, min(most, group.rows)))


def _of_delivered(
    schema: TableSchema, label: Label, parts: Sequence[Columns], group: Codes, manifest: Manifest
) -> Sample:
    """Undo the encoding of numbers, so that sums of columns are sums again."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    marks = {
        feature.source: columns[feature.name] > 0.5
        for feature in schema.of_kind(ColumnKind.NUMERIC)
        if feature.source and feature.source != feature.name
    }
    numbers: dict[str, Floats] = {}
    codes: dict[str, Codes] = {}
    missing: dict[str, Marks] = dict(marks)
    times = set()
    for feature in schema.features:
        name = feature.source or feature.name
        if feature.kind is ColumnKind.CATEGORICAL:
            codes[name] = np.asarray(columns[feature.name], np.int64)
            if "" in feature.vocabulary:
                absent = codes[name] == feature.vocabulary.index("") + 1
                if absent.any():
                    missing[name] = absent
        elif name == feature.name:
            values = columns[feature.name].astype(np.float64) * feature.deviation + feature.mean
            numbers[name] = np.where(marks[name], np.nan, values) if name in marks else values
            low, high = _EPOCH_SECONDS
            spread = feature.deviation
            if manifest.columns.get(name, "").startswith(("date", "timestamp")) or (
                low < feature.mean < high and _DAY_S < spread < 0.3 * feature.mean
            ):
                times.add(name)
    return Sample(
        label_name=label.name,
        label=columns[label.name].astype(np.float64),
        classes=label.classes,
        numbers=numbers,
        codes=codes,
        missing={name: absent for name, absent in missing.items() if absent.any()},
        times=frozenset(times),
        group=group,
    )


def _parsed_times(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse texts that are all dates or times of ISO 8601; return other columns as they are."""
    if pa.types.is_string(values.type) and values.null_count < len(values):
        with contextlib.suppress(pa.ArrowInvalid):
            return values.cast(pa.timestamp("us"))
    return values


def _is_time(stored: pa.DataType) -> bool:
    return bool(pa.types.is_date(stored) or pa.types.is_timestamp(stored))


def _numbers(values: pa.ChunkedArray) -> Floats | None:
    """The values as floats; None: they are not numbers."""
    stored = values.type
    if pa.types.is_decimal(stored) or pa.types.is_integer(stored) or pa.types.is_floating(stored):
        return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    if not pa.types.is_string(stored):
        return None
    texts = pc.utf8_trim_whitespace(values)
    texts = pc.if_else(pc.is_in(texts, pa.array(["", "NaN", "nan", "NULL", "null"])), None, texts)
    try:
        floats = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return np.asarray(floats.to_numpy(zero_copy_only=False), np.float64)
