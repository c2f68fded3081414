"""Partition columns: values that stand in the names of folders, as Hive and Spark write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from spark_hpo.errors import DataError

_NULL = "__HIVE_DEFAULT_PARTITION__"

Partition = Mapping[str, str | None]


def parse(folders: Sequence[str], url: str) -> dict[str, str | None]:
    """The values that `country=DE/day=2026-01-01` gives.

    Raises:
        DataError: a folder is not named so.
    """
    partition: dict[str, str | None] = {}
    for folder in folders:
        name, separator, value = folder.partition("=")
        if not separator or not name:
            raise DataError(
                f"{url}: the folder {folder!r} is no partition (column=value): name the folder that holds "
                "the files, or move this one away"
            )
        partition[unquote(name)] = None if value == _NULL else unquote(value)
    return partition


def infer_types(found: Sequence[Partition], url: str) -> dict[str, pa.DataType]:
    """The type of each partition column: the first of int64, double, date and text that fits all values.

    Raises:
        DataError: files have different partition columns.
    """
    names = list(found[0])
    for partition in found:
        if list(partition) != names:
            raise DataError(
                f"{url}: some files have the partitions {', '.join(names) or 'none'}, others "
                f"{', '.join(partition) or 'none'}: all must have the same"
            )
    return {name: _type([partition[name] for partition in found]) for name in names}


def values(partition: Partition, types: Mapping[str, pa.DataType]) -> dict[str, pa.Scalar]:
    """The value of each partition column, in its type."""
    return {name: pa.scalar(_typed(partition[name], kind), kind) for name, kind in types.items()}


def with_partitions(schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns of a file and those of its folders; these win."""
    fields = [column for column in schema if column.name not in types]
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in types.items())])


def add_columns(table: pa.Table, constants: Mapping[str, pa.Scalar]) -> pa.Table:
    """The rows with the partition's values beside them."""
    for name, value in constants.items():
        table = table.append_column(name, pa.repeat(value, table.num_rows))
    return table


def _type(found: Sequence[str | None]) -> pa.DataType:
    present = [value for value in found if value is not None]
    for kind in (pa.int64(), pa.float64(), pa.date32()):
        try:
            for value in present:
                _typed(value, kind)
        except ValueError:
            continue
        return kind if present else pa.string()
    return pa.string()


def _typed(value: str | None, kind: pa.DataType) -> Any:
    if value is None or pa.types.is_string(kind):
        return value
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    return int(value) if pa.types.is_integer(kind) else float(value)
