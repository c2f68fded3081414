"""From an Arrow table to checked NumPy columns: the same types and rules whoever has read it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spark_hpo.data.files import changed
from spark_hpo.data.manifest import Manifest
from spark_hpo.data.schema import ColumnKind, TableSchema
from spark_hpo.data.shards import Segment
from spark_hpo.errors import DataError

Column = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Columns = dict[str, Column]
"""Columns by name: float32 [rows] or [rows, *shape], codes and class labels int64 [rows]."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """One column as it is delivered: the type of its values, the shape of one row."""

    name: str
    dtype: type[np.float32] | type[np.int64]
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a column is delivered as, and which codes it may hold."""

    name: str
    dtype: type[np.float32] | type[np.int64]
    shape: tuple[int, ...] = ()
    num_codes: int = 0  # integers: codes are 0..num_codes-1


class Decoder:
    """Turns what was read of a segment into columns. It checks every row, and changes none."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._manifest = manifest
        self._rules = _rules(schema)
        self._rows = {(group.file, group.index): group.rows for group in manifest.row_groups}

    def decode(self, table: pa.Table, segment: Segment) -> Columns:
        """The rows of `segment`, from the whole row group that holds them.

        Raises:
            DataError: the row group has other rows than the footer said, or a null, a value that is not
                finite, a code outside the vocabulary, or an array of another size.
        """
        planned = self._rows[segment.file, segment.row_group]
        if table.num_rows != planned:
            raise changed(self._place(segment), f"{table.num_rows} rows were read, {planned} were planned")
        missing = [rule.name for rule in self._rules if rule.name not in table.column_names]
        if missing:
            raise changed(self._place(segment), f"it has no column {missing[0]!r} any more")
        table = table.slice(segment.start, segment.rows)
        return {rule.name: self._column(table.column(rule.name), rule, segment) for rule in self._rules}

    def _place(self, segment: Segment, column: str | None = None) -> str:
        place = f"{self._manifest.files[segment.file].path}: row group {segment.row_group}"
        return f"{place}, column {column!r}" if column else place

    def _column(self, column: pa.ChunkedArray, rule: _Rule, segment: Segment) -> Column:
        values = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        nulls = values.null_count
        if rule.shape and not nulls:
            values = self._flatten(values, rule, segment)
            nulls = values.null_count
        if nulls:
            raise DataError(
                f"{self._place(segment, rule.name)}: {nulls} nulls; a column must have none: "
                "let jobs/prepare_data.py encode them, or fill them"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            array: Column = values.to_numpy(zero_copy_only=False).astype(rule.dtype, copy=False)
        if rule.dtype is np.float32:
            self._check_finite(array, rule, segment)
        else:
            self._check_codes(array, rule, segment)
        return array.reshape(segment.rows, *rule.shape)

    def _flatten(self, values: pa.Array, rule: _Rule, segment: Segment) -> pa.Array:
        size = prod(rule.shape)
        lengths = values.value_lengths() if pa.types.is_list(values.type) else None
        bad = (
            int((lengths.to_numpy(zero_copy_only=False) != size).sum())
            if lengths is not None
            else segment.rows * (values.type.list_size != size)
        )
        if bad:
            raise DataError(
                f"{self._place(segment, rule.name)}: {bad} arrays do not have {size} elements; all must "
                f"have the shape {list(rule.shape)}: pad or drop them"
            )
        return values.flatten()

    def _check_finite(self, array: Column, rule: _Rule, segment: Segment) -> None:
        finite = np.isfinite(array)
        if not finite.all():
            raise DataError(
                f"{self._place(segment, rule.name)}: {int((~finite).sum())} values are NaN or beyond "
                "float32; all must be finite: fill them, or let jobs/prepare_data.py treat them as missing"
            )

    def _check_codes(self, array: Column, rule: _Rule, segment: Segment) -> None:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= rule.num_codes:
            raise DataError(
                f"{self._place(segment, rule.name)}: code {low if low < 0 else high}; schema.json allows "
                f"0..{rule.num_codes - 1}: prepare the table again, so that both agree"
            )


def delivered(schema: TableSchema) -> tuple[Delivered, ...]:
    """What a table of this schema is delivered as, column by column."""
    return tuple(Delivered(rule.name, rule.dtype, rule.shape) for rule in _rules(schema))


def bytes_per_row(schema: TableSchema) -> int:
    """What one decoded row takes in memory."""
    return sum(column.row_bytes for column in delivered(schema))


def _rules(schema: TableSchema) -> tuple[_Rule, ...]:
    rules = [
        _Rule(feature.name, np.int64, num_codes=feature.num_codes)
        if feature.kind is ColumnKind.CATEGORICAL
        else _Rule(feature.name, np.float32, shape=feature.shape)
        for feature in schema.features
    ]
    label = schema.label
    rules.append(
        _Rule(label.name, np.float32)
        if label.is_regression
        else _Rule(label.name, np.int64, num_codes=len(label.classes))
    )
    return tuple(rules)
