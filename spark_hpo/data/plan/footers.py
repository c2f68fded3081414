"""Reads the footers of a table's files, each of them once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.listing import File, list_files, relative
from spark_hpo.errors import DataError

_SIGNATURE_BYTES = 28  # nonce and tag after a signed footer (Parquet Modular Encryption, 5.5)
_THREADS = 16  # footers are small, so latency dominates


class Footer:
    """The footer of one file, indexed by Arrow column name."""

    def __init__(self, metadata: pq.FileMetaData) -> None:
        self.metadata = metadata
        self.schema: pa.Schema = metadata.schema.to_arrow_schema()

    @cached_property
    def facts(self) -> str:
        """The contents of the footer as JSON: positions, sizes, statistics."""
        return json.dumps(self.metadata.to_dict(), default=str)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.facts.encode()).hexdigest()[:32]

    def row_group(self, index: int) -> pq.RowGroupMetaData:
        return self.metadata.row_group(index)

    def statistics(self, row_group: int, column: str) -> Any:
        """Return the statistics of a column that is neither a list nor a struct, or None if absent."""
        if column not in self._first_leaf or self.schema.field(column).type.num_fields:
            return None
        return self.row_group(row_group).column(self._first_leaf[column]).statistics

    def nulls(self, row_group: int, column: str) -> int | None:
        """Return the number of nulls, including empty lists, or None if the file does not record it."""
        statistics = self.row_group(row_group).column(self._first_leaf[column]).statistics
        if statistics is None or not statistics.has_null_count:
            return None
        return int(statistics.null_count)

    @cached_property
    def _first_leaf(self) -> dict[str, int]:
        """The index of the first Parquet column of each Arrow column."""
        first, leaf = {}, 0
        for column in self.schema:
            first[column.name] = leaf
            leaf += _leaves(column.type)
        return first


@dataclass(frozen=True, kw_only=True)
class Footers:
    """The files of a table with their footers and partition types."""

    url: str
    root: str  # the path of `url` on its file system
    files: tuple[File, ...]
    footers: tuple[Footer, ...]
    partition_types: Mapping[str, pa.DataType]

    @cached_property
    def schemas(self) -> tuple[pa.Schema, ...]:
        """The schema of each file, including partition columns."""
        types = self.partition_types
        return tuple(partitions.with_partitions(footer.schema, types) for footer in self.footers)

    @cached_property
    def facts(self) -> str:
        """The contents of all footers as a JSON list: sizes, positions, statistics.

        Modification times are left out, so that a copy of a table counts as the same table.
        """
        pairs = zip(self.files, self.footers, strict=True)
        places = [(json.dumps([relative(file.path, self.root), file.size]), f.facts) for file, f in pairs]
        return "[" + ", ".join(f"{place[:-1]}, {facts}]" for place, facts in places) + "]"


def read_footers(url: str) -> Footers:
    """List the files of a table and read their footers.

    Args:
        url: a folder or a file; a local path or any fsspec URL.

    Raises:
        DataError: the path does not exist, it has no files, or a file is not Parquet.
    """
    url = files.absolute(url)
    fs, root = files.filesystem(url)
    found = list_files(url)
    with ThreadPoolExecutor(min(_THREADS, len(found))) as pool:
        footers = tuple(pool.map(partial(read_footer, fs), (file.path for file in found)))
    types = partitions.infer_types([file.partition for file in found], url)
    known = tuple(replace(file, digest=footer.digest) for file, footer in zip(found, footers, strict=True))
    return Footers(url=url, root=root, files=known, footers=footers, partition_types=types)


def check_unchanged(fs: Any, file: File) -> None:
    """Raise if a file has changed since planning.

    Compares size and modification time first. If they differ, compares the footer, because another machine
    may have its own copy of the file.

    Raises:
        DataError: the file has changed or no longer exists.
    """
    with files.reading(file.path):
        info = fs.info(file.path)
    if info["size"] == file.size and files.modified(info) == file.modified:
        return
    if read_footer(fs, file.path).digest != file.digest:
        raise files.changed(file.path, "the file has changed")


def read_footer(fs: Any, path: str) -> Footer:
    """Read the footer of one file.

    Raises:
        DataError: the file does not exist, is not Parquet, or has encrypted columns.
    """
    with files.reading(path), files.opened(fs, path) as source:
        metadata = pq.read_metadata(source)
        if _is_signed(source, metadata):
            raise DataError(
                f"{path} has encrypted columns, which cannot be read. Write the file without encryption",
                file=path,
            )
        return Footer(metadata)


def _is_signed(source: Any, metadata: pq.FileMetaData) -> bool:
    """Return True if a plain footer describes encrypted columns; touching their metadata crashes pyarrow."""
    with open(source, "rb") if isinstance(source, str) else contextlib.nullcontext(source) as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
    return bool(length == metadata.serialized_size + _SIGNATURE_BYTES)


def _leaves(kind: pa.DataType) -> int:
    """Return the number of Parquet columns that store one Arrow column of this type."""
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
