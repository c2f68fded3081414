"""Blocks: the in-memory layout of columns that the loader shuffles and the node cache stores.

A block holds all scalar columns of one type in row-major order, so gathering a shuffled row reads one
contiguous run of bytes instead of one value per column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_hpo.data.encode import Columns, Delivered

_PART_ROWS = 2048

Blocks = tuple[npt.NDArray[Any], ...]
"""One array per `BlockLayout`, all with the same rows."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The layout of one block: scalar columns [rows, columns], or one array column [rows, *shape]."""

    names: tuple[str, ...]
    dtype: Any
    row_shape: tuple[int, ...]
    is_array: bool

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize) * prod(self.row_shape)


def layout_of(columns: Sequence[Delivered]) -> tuple[BlockLayout, ...]:
    """Return the block layouts of these columns: one per scalar type, then one per array column."""
    scalars: dict[Any, list[str]] = defaultdict(list)
    for column in columns:
        if not column.shape:
            scalars[column.dtype].append(column.name)
    return (
        *(BlockLayout(tuple(names), dtype, (len(names),), False) for dtype, names in scalars.items()),
        *(BlockLayout((c.name,), c.dtype, c.shape, True) for c in columns if c.shape),
    )


def pack(columns: Columns, layout: Sequence[BlockLayout]) -> Blocks:
    """Copy the columns into blocks."""
    rows = len(next(iter(columns.values())))
    blocks = tuple(np.empty((rows, *block.row_shape), block.dtype) for block in layout)
    for values, block in zip(blocks, layout, strict=True):
        start = 0
        for part in packed_parts(columns, block):
            values[start : start + len(part)] = part
            start += len(part)
    return blocks


def packed_parts(columns: Columns, block: BlockLayout) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of a block in parts that fit into the CPU cache. A part is valid until the next one."""
    if block.is_array:
        yield np.ascontiguousarray(columns[block.names[0]])
        return
    sources = [columns[name] for name in block.names]
    rows = len(sources[0])
    # Filling column-major and transposing once is four times as fast as writing each column with strides.
    column_major = np.empty((len(sources), min(rows, _PART_ROWS)), block.dtype)
    row_major = np.empty(column_major.shape[::-1], block.dtype)
    for start in range(0, rows, _PART_ROWS):
        stop = min(start + _PART_ROWS, rows)
        for values, source in zip(column_major, sources, strict=True):
            values[: stop - start] = source[start:stop]
        part = row_major[: stop - start]
        np.copyto(part, column_major.T[: stop - start])
        yield part


def unpack(blocks: Blocks, layout: Sequence[BlockLayout]) -> Columns:
    """Return the columns as views of the blocks."""
    columns: Columns = {}
    for values, block in zip(blocks, layout, strict=True):
        if block.is_array:
            columns[block.names[0]] = values
        else:
            columns.update(zip(block.names, values.T, strict=True))
    return columns
