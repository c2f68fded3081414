"""Partition columns: values in folder names, as Hive and Spark write them."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from spark_hpo.errors import DataError

_NULL = "__HIVE_DEFAULT_PARTITION__"
_SERIALIZED = "base64:"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
# Tried in this order, as in Spark. The patterns exclude `1_000` and `nan`, which Python would accept.
_TYPES = {
    pa.int64(): re.compile(r"[+-]?[0-9]{1,18}"),
    pa.float64(): re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
    pa.date32(): re.compile(_DATE),
    pa.timestamp("us"): re.compile(rf"{_DATE}([ T][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]{{1,6}})?)?)?"),
}

Partition = Mapping[str, str | None]


def parse(folders: Sequence[str], url: str) -> dict[str, str | None]:
    """Parse folder names such as `country=DE/day=2026-01-01` into values by column.

    Raises:
        DataError: a folder name is not `column=value`.
    """
    partition: dict[str, str | None] = {}
    for folder in folders:
        name, separator, value = folder.partition("=")
        if not separator or not name:
            raise DataError(
                f"{url}: the folder {folder!r} is not a partition (column=value). Use the path of the folder "
                "that holds the files, or move this folder elsewhere"
            )
        partition[unquote(name)] = None if value == _NULL else unquote(value)
    return partition


def infer_types(found: Sequence[Partition], url: str) -> dict[str, pa.DataType]:
    """Infer the type of each partition column: the first of int64, double, date, timestamp, text that fits.

    Raises:
        DataError: the files have different partition columns.
    """
    names = list(found[0])
    for partition in found:
        if list(partition) != names:
            raise DataError(
                f"{url}: some files have the partitions {', '.join(names) or 'none'}, others "
                f"{', '.join(partition) or 'none'}; all must have the same"
            )
    return {name: _type([partition[name] for partition in found]) for name in names}


def type_text(kind: pa.DataType) -> str:
    """Return a type as text that `type_of` converts back, for every type."""
    try:
        if pa.type_for_alias(str(kind)) == kind:
            return str(kind)
    except ValueError:
        pass
    return _SERIALIZED + base64.b64encode(pa.schema([("", kind)]).serialize()).decode()


def type_of(text: str) -> pa.DataType:
    """Return the type of a text of `type_text`."""
    if not text.startswith(_SERIALIZED):
        return pa.type_for_alias(text)
    stored = base64.b64decode(text.removeprefix(_SERIALIZED))
    return pa.ipc.read_schema(pa.py_buffer(stored)).field(0).type


def values(partition: Partition, types: Mapping[str, pa.DataType]) -> dict[str, pa.Scalar]:
    """Convert the text of each partition value to the type of its column."""
    return {name: pa.scalar(_typed(partition[name], kind), kind) for name, kind in types.items()}


def as_text(value: Any) -> str | None:
    """Return a partition value as the text that `values` converts back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return None if value is None else str(value)


def with_partitions(schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Add the partition columns to the schema of a file; they replace stored columns of the same name."""
    fields = [column for column in schema if column.name not in types]
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in types.items())])


def add_columns(table: pa.Table, constants: Mapping[str, pa.Scalar]) -> pa.Table:
    """Append constant columns to a table."""
    for name, value in constants.items():
        rows = table.num_rows
        column = pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, value.type)
        table = table.append_column(name, column)
    return table


def _type(found: Sequence[str | None]) -> pa.DataType:
    present = {value for value in found if value is not None}
    for kind, pattern in _TYPES.items() if present else ():
        if all(pattern.fullmatch(value) for value in present) and _are_valid(present, kind):
            return kind
    return pa.string()


def _are_valid(found: Collection[str], kind: pa.DataType) -> bool:
    try:
        for value in found:
            _typed(value, kind)
    except ValueError:  # for example, February 31st
        return False
    return True


def _typed(value: str | None, kind: pa.DataType) -> Any:
    if value is None or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value)
    if pa.types.is_boolean(kind):
        return value == "true"
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_binary(kind):
        return value.encode("latin-1")
    return int(value) if pa.types.is_integer(kind) else float(value)
