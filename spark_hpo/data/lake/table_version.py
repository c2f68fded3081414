"""The active files of one version of a lake table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.types as t

from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import ConfigError, DataError

FIELD_ID = b"PARQUET:field_id"
# Delta's log truncates timestamps to milliseconds, so the latest value may be up to one later.
_TRUNCATED = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True)
class TableVersion:
    """One version of a Delta table, or one snapshot of an Iceberg table."""

    url: str
    format: TableFormat
    version: int
    files: tuple[File, ...]  # in the order of their names
    schema: pa.Schema  # of the table, including partition columns
    partition_types: Mapping[str, pa.DataType]
    bounds: Callable[[str], Sequence[Bounds | None]]  # by column, of each file, as far as the log has them
    field_ids: Mapping[str, int] = field(default_factory=dict)  # Iceberg: by column
    renamed: frozenset[str] = frozenset()  # Iceberg: columns that had other names, or other ids
    partly_known: frozenset[str] = frozenset()  # Iceberg: partition columns of some files only

    @property
    def label(self) -> str:
        """The version in a message."""
        return f"{self.url} ({'version' if self.format is TableFormat.DELTA else 'snapshot'} {self.version})"

    def seen(self, stored: pa.Schema) -> pa.Schema:
        """Return the schema of a file as the table has it: columns that the file lacks have their type."""
        fields = [
            stored.field(column.name) if stored.get_field_index(column.name) >= 0 else column
            for column in self.schema
            if column.name not in self.partition_types
        ]
        return pa.schema([*fields, *(pa.field(name, kind) for name, kind in self.partition_types.items())])

    def fault(self, name: str, stored: pa.Schema) -> str | None:
        """Return why a column of a file cannot be read as the column of the table, or None if it can."""
        if name in self.partition_types or name not in self.schema.names:
            return None
        if self.field_ids:
            ids = {column.name: (column.metadata or {}).get(FIELD_ID) for column in stored}
            known = {int(text): column for column, text in ids.items() if text is not None}
            own = self.field_ids[name]
            if not known:
                moved = name in self.renamed
            else:
                moved = known.get(own, name) != name or (name in ids and known.get(own) != name)
            if moved:
                return "was renamed, or dropped and added again, after the file was written"
        if name not in stored.names:
            is_known = name in self.partly_known
            return "is missing, and a partition column of other files" if is_known else None
        here, there = stored.field(name).type, self.schema.field(name).type
        if not _is_readable(here, there):
            return f"is {here} in the file, but {there} in the table"
        return None


def bounds_of(low: Any, high: Any, nulls: int | None, rows: int | None) -> Bounds | None:
    """Return the bounds of a column in a file, or None if the log has nothing about it."""
    if low is None or high is None or low != low or high != high:
        low = high = None
    elif isinstance(high, datetime):
        high += _TRUNCATED
    if low is None and nulls is None:
        return None
    return Bounds(
        low=low,
        high=high,
        may_be_null=nulls != 0,
        may_have_value=nulls is None or nulls != rows,
    )


def cure(table: str) -> str:
    """Return the cure for a table that only Spark can read."""
    return f"Let Spark read it: data.query: SELECT * FROM {table} writes the rows to a snapshot folder once"


def parse_version(version: int | str | date) -> int | datetime:
    """Parse the version that a user wants: a number, or a time, which is UTC unless it has a zone.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(version, bool):
        raise _bad_version(version)
    if isinstance(version, int):
        return version
    if isinstance(version, str) and version.strip().isdecimal():
        return int(version)
    try:
        moment = datetime.fromisoformat(str(version).strip())
    except ValueError:
        raise _bad_version(version) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def missing_package(url: str, format: TableFormat, package: str, exc: ImportError) -> DataError:
    """Return the error for a format whose package is not installed."""
    return DataError(
        f"{url} is a table of format {format}, which needs the package {package} ({exc}). "
        f"Run `pip install 'spark_hpo[{format}]'`"
    )


def _bad_version(version: object) -> ConfigError:
    return ConfigError(
        "must be a version number or a time",
        key="version",
        value=version,
        cure="Use a number such as 12, a time such as 2026-01-31T12:00:00Z, or leave it out for the newest",
    )


def _is_readable(here: pa.DataType, there: pa.DataType) -> bool:
    """Return True if values of the type `here` are values of the type `there`, which may be wider."""
    if t.is_dictionary(here):
        return _is_readable(here.value_type, there)
    if here == there:
        return True
    for kinds in ((t.is_string, t.is_large_string), (t.is_binary, t.is_large_binary, t.is_fixed_size_binary)):
        if any(kind(here) for kind in kinds):
            return any(kind(there) for kind in kinds)
    if t.is_timestamp(here):
        return bool(t.is_timestamp(there))  # Spark writes INT96, which has no zone
    if t.is_integer(here):
        if t.is_integer(there):  # a log has no unsigned types: their sizes are those of the signed ones
            return bool(here.bit_width <= there.bit_width)
        return bool(t.is_floating(there) and here.bit_width <= 32) or bool(t.is_decimal(there))
    if t.is_floating(here):
        return bool(t.is_floating(there) and here.bit_width <= there.bit_width)
    if t.is_decimal(here):
        return bool(
            t.is_decimal(there)
            and here.scale <= there.scale
            and here.precision - here.scale <= there.precision - there.scale
        )
    if t.is_date(here):
        return bool(t.is_date(there) or t.is_timestamp(there))
    lists = (t.is_list, t.is_large_list, t.is_fixed_size_list)
    if any(kind(here) for kind in lists) and any(kind(there) for kind in lists):
        return _is_readable(here.value_type, there.value_type)
    return bool(t.is_nested(here) and t.is_nested(there))  # such a column is not used
