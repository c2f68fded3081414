"""Encodes Arrow arrays of a table's columns, or rows to predict, into checked NumPy columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from spark_hpo.data import encoders
from spark_hpo.data.encoders import BadColumn, Column
from spark_hpo.data.prepared_rows import Range, check_prepared
from spark_hpo.data.raw_rows import RawColumn, raw_columns
from spark_hpo.data.schema import LENGTH_SUFFIX, ColumnKind, Encoding, ExtraLabel, Feature, TableSchema
from spark_hpo.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Columns = dict[str, Column]
"""Columns by name: float32 [rows] or [rows, *shape], codes and class labels int64 [rows], texts uint8."""


UNFIT = (BadColumn, pa.ArrowException, ValueError, TypeError)  # raised for values that cannot be encoded

Encoder = tuple[str, Callable[[pa.Array], Columns]]
"""The name of a stored column, and a function that decodes it into one or more delivered columns."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivered column: its name, its dtype and the shape of one row."""

    name: str
    dtype: type[np.float32] | type[np.int64] | type[np.uint8]
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)


def encode_rows(rows: pd.DataFrame, schema: TableSchema, ranges: Mapping[str, Range]) -> Columns:
    """Encode the features of rows of the original table.

    If the schema does not describe the original table, the rows must be in the format of the table's files.

    Args:
        ranges: of standardised columns, as `stored_ranges` gives them.

    Raises:
        DataError: a column is missing, or a value cannot be encoded.
    """
    check_columns(schema, rows.columns)
    if schema.takes_raw_rows:
        return _encode_raw(rows, schema, len(rows), lambda row: f"row {rows.index[row]}, ")
    columns: Columns = {}
    for feature, (name, encode) in zip(
        schema.features, _feature_encoders(schema, schema.features), strict=True
    ):
        try:
            values = whole_array(pa.chunked_array([pa.Array.from_pandas(rows[name])]))
            if schema.encoding is Encoding.PREPARED:
                check_prepared(values, feature, ranges.get(feature.name))
            columns.update(encode(values))
        except UNFIT as exc:
            raise DataError(f"column {name!r}: {exc}") from exc
    return columns


def encode_batch(batch: Mapping[str, pa.Array], schema: TableSchema) -> Columns:
    """Encode the features of rows of the original table, as `encode_rows`, from Arrow arrays by column.

    Raises:
        DataError: a value cannot be encoded.
    """
    return _encode_raw(batch, schema, len(next(iter(batch.values()))), lambda _: "")


def _encode_raw(
    given: Mapping[str, Any] | pd.DataFrame, schema: TableSchema, rows: int, place: Callable[[int], str]
) -> Columns:
    """Encode rows of the original table.

    Args:
        given: arrays or series by column; optional ones may be missing.
        place: names a row in messages.
    """
    columns: Columns = {}
    for column in raw_columns(schema):
        name = column.original.name
        values = given[name] if name in given else pa.nulls(rows)
        try:
            columns.update(_encoded_raw(column, values))
        except UNFIT:
            for row in range(rows):  # to say which one it is
                try:
                    _encoded_raw(column, values[row : row + 1])
                except UNFIT as exc:
                    raise DataError(f"{place(row)}column {name!r}: {exc}") from exc
            raise
    return columns


def with_answers(batch: pa.RecordBatch, answers: pd.DataFrame) -> pa.RecordBatch:
    """Append the columns of a DataFrame to a batch, under numbers."""
    arrays = [pa.Array.from_pandas(answers[name]) for name in answers]
    names = [*batch.schema.names, *(f"a{i}" for i in range(len(arrays)))]
    return pa.RecordBatch.from_arrays([*batch.columns, *arrays], names)


def _encoded_raw(column: RawColumn, given: pd.Series[Any] | Sequence[Any] | pa.Array) -> Columns:
    columns: Columns = {}
    for feature, values in column.stored(given):
        columns.update(_encoded(feature, not column.is_copied, values))
    return columns


def input_names(schema: TableSchema) -> list[str]:
    """Return the columns that a model takes."""
    if schema.takes_raw_rows:
        return [column.original.name for column in raw_columns(schema)]
    return list(dict.fromkeys(name for name, _ in _feature_encoders(schema, schema.features)))


def check_columns(schema: TableSchema, given: Iterable[str]) -> None:
    """Raise DataError unless the columns that a model needs are there."""
    there = {*given, *(column.name for column in schema.original if column.is_optional)}
    missing = [name for name in input_names(schema) if name not in there]
    if missing:
        raise DataError(f"the rows to predict have no column {', '.join(missing)}")


def encoders_of(schema: TableSchema) -> Iterator[Encoder]:
    """Yield the encoders of all columns that are read: features, weight and labels."""
    weight = () if schema.weight is None else (schema.weight.feature,)
    yield from _feature_encoders(schema, (*schema.features, *weight))
    is_raw = schema.encoding is Encoding.RAW
    for extra in schema.extra_labels:
        yield schema.stored_name(extra.feature), partial(_encoded_extra, extra, is_raw)
    yield schema.label.name, partial(_encoded_label, schema, is_raw)


def _feature_encoders(schema: TableSchema, features: Iterable[Feature]) -> Iterator[Encoder]:
    is_raw = schema.encoding is Encoding.RAW
    for feature in features:
        yield schema.stored_name(feature), partial(_encoded, feature, is_raw)


def delivered(schema: TableSchema) -> tuple[Delivered, ...]:
    """Return the delivered columns of a table with this schema."""
    columns = []
    for feature in schema.read_features:
        is_coded = feature.kind is ColumnKind.CATEGORICAL or (
            feature.kind is ColumnKind.SEQUENCE and bool(feature.vocabulary)
        )
        is_text = feature.kind is ColumnKind.TEXT
        dtype = np.uint8 if is_text else np.int64 if is_coded else np.float32
        columns.append(Delivered(feature.name, dtype, feature.shape))
        if feature.kind.has_length:
            columns.append(Delivered(feature.name + LENGTH_SUFFIX, np.int64))
    label = schema.label
    columns.append(Delivered(label.name, np.float32 if label.is_regression else np.int64, label.shape))
    return tuple(columns)


def bytes_per_row(schema: TableSchema) -> int:
    """Return the size of one decoded row in memory."""
    return sum(column.row_bytes for column in delivered(schema))


def _encoded(feature: Feature, is_raw: bool, values: pa.Array) -> Columns:
    name = feature.name
    if feature.marks_missing:
        return {name: encoders.missing_marks(values)}
    match feature.kind:
        case ColumnKind.NUMERIC if is_raw:
            return {name: encoders.standardised(values, feature)}
        case ColumnKind.NUMERIC:
            return {name: encoders.stored_numbers(values, feature)}
        case ColumnKind.CATEGORICAL if is_raw:
            return {name: encoders.looked_up(values, feature)}
        case ColumnKind.CATEGORICAL:
            return {name: encoders.stored_codes(values, feature.num_codes, feature)}
        case ColumnKind.ARRAY:
            return {name: encoders.arrays(values, feature)}
        case ColumnKind.SEQUENCE:
            padded, lengths = encoders.sequences(values, feature, is_raw=is_raw)
            return {name: padded, name + LENGTH_SUFFIX: lengths}
        case ColumnKind.BINARY:
            return {name: encoders.transformed(values, feature)}
        case ColumnKind.TEXT:
            padded, lengths = encoders.texts_as_bytes(values, feature, is_raw=is_raw)
            return {name: padded, name + LENGTH_SUFFIX: lengths}


def _encoded_label(schema: TableSchema, is_raw: bool, values: pa.Array) -> Columns:
    label = schema.label
    if label.shape:
        encoders.refuse_nulls(values, label)
        as_feature = Feature(name=label.name, kind=ColumnKind.ARRAY, shape=label.shape)
        return {label.name: encoders.arrays(values, as_feature)}
    if is_raw:
        return {label.name: encoders.raw_label(values, label)}
    if label.is_regression:
        return {label.name: encoders.stored_numbers(values, label)}
    return {label.name: encoders.stored_codes(values, len(label.classes), label)}


def _encoded_extra(extra: ExtraLabel, is_raw: bool, values: pa.Array) -> Columns:
    """Return a further label as a label is delivered: codes from 0, or numbers in its own units."""
    feature, label = extra.feature, extra.label
    stored = _encoded(feature, is_raw, values)[label.name]
    if label.is_regression:
        return {label.name: (stored * np.float64(feature.deviation) + feature.mean).astype(np.float32)}
    if len(stored) and stored.min() < 1:
        raise BadColumn("a value is not one of the classes, which are those of the training rows")
    position = np.array([label.classes.index(text) for text in feature.vocabulary], np.int64)
    return {label.name: position[stored - 1]}


def whole_array(column: pa.ChunkedArray) -> pa.Array:
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # some versions of pyarrow return a chunked array
        values = pa.concat_arrays(values.chunks)
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
