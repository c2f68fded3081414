"""Writes the splits of a prepared table as Parquet files with row groups of a given size."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.data import files

# pyarrow 14 has no page checksums.
_CAN_SUM = "write_page_checksum" in inspect.signature(pq.ParquetWriter.__init__).parameters
_CHECKSUMS: dict[str, bool] = {"write_page_checksum": True} if _CAN_SUM else {}


class RowGroupWriter:
    """Writes one Parquet file with `row_group_rows` rows per row group; the last row group has the rest.

    On a local file system, the file appears under its name only when it is complete.
    """

    def __init__(self, url: str, row_group_rows: int) -> None:
        self._fs, self._path = files.filesystem(url)
        self._row_group_rows = row_group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._stack = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def __enter__(self) -> RowGroupWriter:
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._pending_rows >= self._row_group_rows:
            table = pa.Table.from_batches(self._pending)
            whole = table.num_rows - table.num_rows % self._row_group_rows
            self._flush(table.slice(0, whole))
            self._pending = table.slice(whole).to_batches()
            self._pending_rows = table.num_rows - whole

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None and self._pending_rows:
                self._flush(pa.Table.from_batches(self._pending))
        if kind is None and self._writer is not None and self._is_local:
            os.replace(self._working_path, self._path)

    @property
    def _is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    @property
    def _working_path(self) -> str:
        """A hidden, process-specific name, so that two attempts at one file do not collide."""
        if not self._is_local:
            return self._path
        folder, name = os.path.split(self._path)
        return os.path.join(folder, f".{name}.{os.getpid()}")

    def _flush(self, table: pa.Table) -> None:
        if self._writer is None:
            self._fs.makedirs(os.path.dirname(self._path), exist_ok=True)
            sink = self._stack.enter_context(self._fs.open(self._working_path, "wb"))
            # Dictionary encoding pays off for codes but not for measured numbers.
            codes = [field.name for field in table.schema if pa.types.is_integer(field.type)]
            writer = pq.ParquetWriter(sink, table.schema, use_dictionary=codes, **_CHECKSUMS)
            self._writer = self._stack.enter_context(writer)
        self._writer.write_table(table, row_group_size=self._row_group_rows)


def write_splits(
    batches: Iterable[pa.RecordBatch], url: str, file_name: str, row_group_rows: int, names: Sequence[str]
) -> dict[str, int]:
    """Write `<url>/<split>/<file_name>` for each split in the batches.

    Args:
        batches: the first column is the name of the split, the rest are data.
        names: the names of the data columns.

    Returns:
        The number of rows written, by split.
    """
    writers: dict[str, RowGroupWriter] = {}
    with contextlib.ExitStack() as stack:
        for batch in batches:
            splits, *columns = batch.columns
            kept = pa.RecordBatch.from_arrays(columns, names=list(names))
            for split in pc.unique(splits).to_pylist():
                if split not in writers:
                    place = files.join(files.join(url, split), file_name)
                    writers[split] = stack.enter_context(RowGroupWriter(place, row_group_rows))
                writers[split].write(kept.filter(pc.equal(splits, split)))
    return {split: writer.rows for split, writer in writers.items()}


def summary_batch(rows: dict[str, int]) -> pa.RecordBatch:
    """Return the row counts as a batch with the columns `split` and `rows`."""
    return pa.RecordBatch.from_arrays(
        [pa.array(rows.keys(), pa.string()), pa.array(rows.values(), pa.int64())], names=["split", "rows"]
    )


def record_batch(columns: dict[str, Any]) -> pa.RecordBatch:
    """Return NumPy columns as a record batch."""
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns.values()], names=list(columns))
