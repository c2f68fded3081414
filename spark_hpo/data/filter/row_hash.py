"""Spark's SQL function `xxhash64`, computed by NumPy with equal results for every type of a key.

A condition such as `xxhash64(0, customer_id) < 0` therefore selects the same rows in Spark and in a reader,
whatever the batches and the encoding of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

Words = npt.NDArray[np.uint64]

_SPARK_SEED = 42
# The primes and the round functions of XXH64: https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
_MAX_LONG_DECIMAL = 18  # digits that Spark stores as a long


@dataclass(frozen=True, slots=True)
class Key:
    """An argument of `xxhash64`: a column, or an integer."""

    column: str = ""
    value: int = 0  # without a column
    as_bigint: bool = False  # cast(column as bigint)


@dataclass(frozen=True, slots=True)
class RowHash:
    """`xxhash64(...)` of constants and columns, an int64 that is never null."""

    keys: tuple[Key, ...]
    name: str  # the text of the call

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.column for key in self.keys if key.column))

    def of(self, table: pa.Table) -> pa.Array:
        """Return int64 [rows]."""
        hashes = np.full(table.num_rows, _SPARK_SEED, np.uint64)
        with np.errstate(over="ignore"):
            for key in self.keys:
                if key.column:
                    hashes = _hashed(_one_array(table.column(key.column)), hashes, as_bigint=key.as_bigint)
                else:
                    hashes = _of_integer(key.value, hashes)
        return pa.array(hashes.view(np.int64))


def hash_columns(seed: int, columns: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
    """Return `xxhash64(seed, *columns)` of each row, int64 [rows]. Columns may also be lists or structs."""
    hashes = np.full(len(columns[0]), _SPARK_SEED, np.uint64)
    with np.errstate(over="ignore"):
        hashes = _of_integer(seed, hashes)
        for values in columns:
            hashes = _hashed(values, hashes, as_bigint=False)
    return hashes.view(np.int64)


def hash_values(values: pa.Array) -> Words:
    """Return `xxhash64` of each value, as the sketches of Spark compute it; null is the seed itself."""
    with np.errstate(over="ignore"):
        return _hashed(values, np.full(len(values), _SPARK_SEED, np.uint64), as_bigint=False)


def _of_integer(value: int, hashes: Words) -> Words:
    if -(2**31) <= value < 2**31:
        return _of_ints(np.full(len(hashes), value, np.int32), hashes)
    return _of_longs(np.full(len(hashes), value, np.int64), hashes)


def check_key(name: str, kind: pa.DataType) -> None:
    """Raise TypeError unless a column of this type can be hashed."""
    kind = kind.value_type if t.is_dictionary(kind) else kind
    is_supported = (
        t.is_integer(kind)
        or t.is_boolean(kind)
        or t.is_floating(kind)
        or t.is_date(kind)
        or t.is_timestamp(kind)
        or t.is_decimal128(kind)
        or _is_bytes(kind)
    )
    if not is_supported:
        raise TypeError(f"column {name!r} is {kind}, and xxhash64 takes numbers, text, dates and times")


def _hashed(values: pa.Array, seeds: Words, *, as_bigint: bool) -> Words:
    """Hash each value with the seed of its row. A null leaves the seed unchanged, as in Spark."""
    if not len(values):
        return seeds
    kind = values.type
    if t.is_null(kind):
        return seeds
    is_valid = values.is_valid().to_numpy(zero_copy_only=False)
    if not is_valid.all():
        hashes = seeds.copy()
        hashes[is_valid] = _hashed(values.drop_null(), seeds[is_valid], as_bigint=as_bigint)
        return hashes
    if _is_bytes(kind):
        return _of_bytes(values, seeds)
    if t.is_list(kind):
        return _of_lists(values, seeds)
    if t.is_struct(kind):
        for part in values.flatten():
            seeds = _hashed(part, seeds, as_bigint=False)
        return seeds
    if t.is_decimal(kind) and kind.precision > _MAX_LONG_DECIMAL:
        unscaled = (int(value.scaleb(kind.scale)) for value in values.to_pylist())
        texts = [
            n.to_bytes((n if n >= 0 else ~n).bit_length() // 8 + 1, "big", signed=True) for n in unscaled
        ]
        return _of_bytes(pa.array(texts, pa.binary()), seeds)
    if t.is_decimal(kind):
        low_words = np.frombuffer(values.buffers()[1], np.int64)[::2]
        return _of_longs(low_words[values.offset : values.offset + len(values)], seeds)
    if t.is_floating(kind):
        return _of_floats(values, seeds)
    if t.is_timestamp(kind):
        return _of_longs(_microseconds(values), seeds)
    if t.is_date64(kind):
        values = values.cast(pa.date32())
    if t.is_date(kind):
        return _of_ints(values.cast(pa.int32()).to_numpy(), seeds)
    if t.is_boolean(kind):
        values = values.cast(pa.int8())
    numbers = values.to_numpy()
    # Spark has no unsigned integers and reads them as the next wider type.
    is_long = as_bigint or kind in (pa.int64(), pa.uint32(), pa.uint64())
    return (_of_longs if is_long else _of_ints)(numbers, seeds)


def _of_lists(values: pa.Array, seeds: Words) -> Words:
    """Hash the elements one after another: each step works on all lists that have an element left."""
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    first, elements = np.cumsum(lengths) - lengths, values.flatten()
    hashes = seeds.copy()
    for i in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > i)
        hashes[rows] = _hashed(elements.take(pa.array(first[rows] + i)), hashes[rows], as_bigint=False)
    return hashes


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_binary(kind) or t.is_large_binary(kind))


def _microseconds(values: pa.Array) -> npt.NDArray[np.int64]:
    ticks: npt.NDArray[np.int64] = values.cast(pa.int64()).to_numpy()
    match values.type.unit:
        case "s":
            return ticks * 1_000_000
        case "ms":
            return ticks * 1_000
        case "ns":
            return ticks // 1_000
    return ticks


def _of_floats(values: pa.Array, seeds: Words) -> Words:
    numbers = values.to_numpy()
    numbers = np.where(numbers == 0, numbers.dtype.type(0), numbers)  # -0.0 equals 0.0
    numbers = np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers)
    if numbers.dtype == np.float32:
        return _of_ints(numbers.view(np.int32), seeds)
    return _of_longs(numbers.astype(np.float64).view(np.int64), seeds)


def _rotated(words: Words, bits: int) -> Words:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))


def _finished(hashes: Words) -> Words:
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _P2
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _P3
    return hashes ^ (hashes >> np.uint64(32))


def _round(lane: Words, words: Words) -> Words:
    return _rotated(lane + words * _P2, 31) * _P1


def _mixed_long(hashes: Words, words: Words) -> Words:
    return _rotated(hashes ^ _round(np.zeros_like(words), words), 27) * _P1 + _P4


def _mixed_int(hashes: Words, words: Words) -> Words:
    return _rotated(hashes ^ (words * _P1), 23) * _P2 + _P3


def _of_ints(numbers: npt.NDArray[Any], seeds: Words) -> Words:
    words = numbers.astype(np.int32).view(np.uint32).astype(np.uint64)
    return _finished(_mixed_int(seeds + _P5 + np.uint64(4), words))


def _of_longs(numbers: npt.NDArray[Any], seeds: Words) -> Words:
    words = numbers.astype(np.int64).view(np.uint64)
    return _finished(_mixed_long(seeds + _P5 + np.uint64(8), words))


def _of_bytes(values: pa.Array, seeds: Words) -> Words:
    """Hash texts of any length: each step works on all texts that have bytes left for it."""
    values = values.cast(pa.large_binary())
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    at, stop = ends[:-1].copy(), ends[1:]
    length = (stop - at).astype(np.uint64)

    def taken(rows: npt.NDArray[np.intp], width: int) -> Words:
        """The next `width` bytes of these rows as a little-endian integer."""
        indices = at[rows, None] + np.arange(width)
        at[rows] += width
        return content[indices].view(f"<u{width}").ravel().astype(np.uint64)

    def with_left(width: int) -> npt.NDArray[np.intp]:
        return np.flatnonzero(stop - at >= width)

    hashes = seeds + _P5
    if len(long := with_left(32)):
        lanes = [seeds + _P1 + _P2, seeds + _P2, seeds.copy(), seeds - _P1]
        rows = long
        while len(rows):
            for lane in lanes:
                lane[rows] = _round(lane[rows], taken(rows, 8))
            rows = with_left(32)
        merged = sum(
            (_rotated(lane[long], bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)),
            np.zeros(len(long), np.uint64),
        )
        for lane in lanes:
            merged = (merged ^ _round(np.zeros(len(long), np.uint64), lane[long])) * _P1 + _P4
        hashes[long] = merged
    hashes += length
    while len(rows := with_left(8)):
        hashes[rows] = _mixed_long(hashes[rows], taken(rows, 8))
    if len(rows := with_left(4)):
        hashes[rows] = _mixed_int(hashes[rows], taken(rows, 4))
    while len(rows := with_left(1)):
        hashes[rows] = _rotated(hashes[rows] ^ (taken(rows, 1) * _P5), 11) * _P1
    return _finished(hashes)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if t.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    chunks: Sequence[pa.Array] = column.chunks
    return (
        chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    )
