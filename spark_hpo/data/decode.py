"""Decodes the row groups of a table into checked NumPy columns, with the same rules for every reader."""

from __future__ import annotations

import pyarrow as pa

from spark_hpo.data.encode import Columns, encoders_of, whole_array
from spark_hpo.data.encoders import BadColumn
from spark_hpo.data.files import changed
from spark_hpo.data.filter.condition import select_rows
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import DataError


class Decoder:
    """Decodes segments into columns and checks every row. It never adds rows."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._manifest = manifest
        self._schema = schema
        self._groups = {(group.file, group.index): group for group in manifest.row_groups}
        wanted = [*schema.stored, *manifest.where_columns]
        self.columns = [name for name in dict.fromkeys(wanted) if name not in manifest.partitions]
        """The stored columns that a reader must read."""

    def decode(self, table: pa.Table, segment: Segment) -> Columns:
        """Decode the rows of `segment`.

        Args:
            table: the whole row group that contains the segment.

        Raises:
            DataError: the row group does not match its footer, or has a null that no rule fills, a value that
                is not finite, a code outside the vocabulary, or an array of the wrong size.
        """
        group = self._groups[segment.file, segment.row_group]
        if table.num_rows != group.stored_rows:
            raise self._changed(segment, f"{table.num_rows} rows read, {group.stored_rows} planned")
        constants = {}
        if self._manifest.partitions or self._manifest.absent:
            constants = self._manifest.constants(segment.file, table.column_names)
        stored = [name for name in self.columns if name not in constants]
        missing = [name for name in stored if name not in table.column_names]
        if missing:
            raise self._changed(segment, f"column {missing[0]!r} no longer exists")
        if constants:
            table = partitions.add_columns(table.select(stored), constants)
        if group.rows < group.stored_rows:
            from spark_hpo.data.filter.where import (
                parse_where,
            )  # imports a SQL parser, which most tables do not need

            types = {column.name: column.type for column in table.schema}
            table = select_rows(table, parse_where(self._manifest.where, self._schema, types))
            if table.num_rows != group.rows:
                raise self._changed(segment, f"{table.num_rows} rows match the filter, {group.rows} planned")
        table = table.slice(segment.start, segment.rows)
        columns: Columns = {}
        for stored_name, encode in encoders_of(self._schema):
            try:
                columns.update(encode(whole_array(table.column(stored_name))))
            except BadColumn as exc:
                place, path = self._place(segment, stored_name), self._manifest.files[segment.file].path
                raise DataError(f"{place}: {exc}", file=path) from exc
        return columns

    def _changed(self, segment: Segment, fault: str) -> DataError:
        return changed(self._manifest.files[segment.file].path, f"row group {segment.row_group}: {fault}")

    def _place(self, segment: Segment, column: str | None = None) -> str:
        place = f"{self._manifest.files[segment.file].path}: row group {segment.row_group}"
        return f"{place}, column {column!r}" if column else place
