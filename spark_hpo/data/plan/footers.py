"""Reads the footers of a table's files, each of them once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.lake.formats import find_version, read_version, table_format
from spark_hpo.data.lake.table_version import TableVersion
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.file_pruning import candidates
from spark_hpo.data.plan.listing import list_files, relative, root_of
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import DataError

_SIGNATURE_BYTES = 28  # nonce and tag after a signed footer (Parquet Modular Encryption, 5.5)
_END_BYTES = 8  # the length of the footer and the magic bytes, at the end of a file
_MAGIC = b"PAR1"
_ARROW_SCHEMA = b"ARROW:schema"
_UNKNOWN_TYPE = "Unrecognized type"  # in the Arrow schema; the message is that of pyarrow 14
_GUESS_BYTES = 2**16
_LOCAL_THREADS, _REMOTE_THREADS = 4, 64  # latency dominates on an object store, the interpreter on a disk


class Footer:
    """The footer of one file, indexed by Arrow column name.

    Keeps the footer as it is stored, because a parsed one takes ten times the memory.
    """

    def __init__(
        self, stored: bytes, schema: pa.Schema, first_leaf: Mapping[str, int], hidden: int | None
    ) -> None:
        self._stored = stored
        self.hidden = hidden  # see `File.hidden`
        self._first_leaf = first_leaf
        self.schema = schema
        metadata = self.metadata
        groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        self.row_groups = tuple((group.num_rows, group.total_byte_size) for group in groups)
        """The rows and uncompressed bytes of each row group."""

    @property
    def metadata(self) -> pq.FileMetaData:
        return _parsed(self._stored)

    @property
    def facts(self) -> str:
        """The contents of the footer as JSON: positions, sizes, statistics."""
        return json.dumps(self.metadata.to_dict(), default=str)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._stored).hexdigest()[:32]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.row_groups)

    def statistics(self, row_group: int, column: str) -> Any:
        """Return the statistics of a column that is neither a list nor a struct, or None if absent."""
        if column not in self._first_leaf or self.schema.field(column).type.num_fields:
            return None
        return self.metadata.row_group(row_group).column(self._first_leaf[column]).statistics

    def nulls(self, row_group: int, column: str) -> int | None:
        """Return the number of nulls, including empty lists, or None if the file does not record it."""
        statistics = self.metadata.row_group(row_group).column(self._first_leaf[column]).statistics
        if statistics is None or not statistics.has_null_count:
            return None
        return int(statistics.null_count)


@dataclass(frozen=True, kw_only=True)
class Footers:
    """The files of a table with their footers and partition types."""

    url: str
    root: str  # the path of `url` on its file system
    files: tuple[File, ...]
    footers: tuple[Footer, ...]
    partition_types: Mapping[str, pa.DataType]
    lake: TableVersion | None = None  # of a Delta or Iceberg table

    @cached_property
    def schemas(self) -> tuple[pa.Schema, ...]:
        """The schema of each file, including partition columns. Files with equal columns share one."""
        seen: dict[int, pa.Schema] = {}
        for footer in self.footers:
            if id(footer.schema) not in seen:
                seen[id(footer.schema)] = self._schema_of(footer)
        return tuple(seen[id(footer.schema)] for footer in self.footers)

    def _schema_of(self, footer: Footer) -> pa.Schema:
        if self.lake is not None:
            return self.lake.seen(footer.schema)
        return partitions.with_partitions(footer.schema, self.partition_types)

    def constants(self, number: int) -> dict[str, pa.Scalar]:
        """Return the columns that are the same in all rows of a file.

        These are partition columns, and nulls in columns that the table got after the file was written.
        """
        stored, seen = self.footers[number].schema, self.schemas[number]
        known = partitions.values(self.files[number].partition, self.partition_types)
        absent = {
            column.name: pa.scalar(None, column.type)
            for column in (seen if self.lake is not None else ())
            if column.name not in known and stored.get_field_index(column.name) < 0
        }
        return {**known, **absent}

    @cached_property
    def facts(self) -> str:
        """The files as a JSON list: sizes, and the contents of their footers: positions, statistics.

        Modification times are left out, so that a copy of a table counts as the same table. Files of a lake
        table never change, so their names are enough.
        """
        pairs = zip(self.files, self.footers, strict=True)
        if self.lake is not None:
            return json.dumps([[relative(file.path, self.root), file.size, f.rows] for file, f in pairs])
        places = [(json.dumps([relative(file.path, self.root), file.size]), f.facts) for file, f in pairs]
        return "[" + ", ".join(f"{place[:-1]}, {facts}]" for place, facts in places) + "]"


def read_footers(
    url: str,
    format: TableFormat | None = None,
    version: int | None = None,
    *,
    wheres: Sequence[str] = ("",),
) -> Footers:
    """List the files of a table and read their footers.

    Args:
        url: a folder or a file; a local path or any fsspec URL.
        format: of the table; None detects it.
        version: of a Delta or Iceberg table; None means the newest.
        wheres: conditions on original values. Files of a Delta or Iceberg table in which, by its log, no row
            meets any of them are left out without being opened.

    Raises:
        DataError: the path does not exist, it has no files, a file is not Parquet, or the version is gone.
    """
    url = files.absolute(url)
    fs, _ = files.filesystem(url)
    root = root_of(url)
    there = table_format(url)
    if format is TableFormat.PARQUET and there is not format:
        raise DataError(
            f"{url} is a table of format {there} now, and was Parquet when it was prepared. Prepare it again"
        )
    format = format or there
    if format is TableFormat.PARQUET:
        found = list_files(url)
        types = partitions.infer_types([file.partition for file in found], url)
        return Footers(url=url, root=root, partition_types=types, **_with_footers(fs, found))
    if version is None:
        version = find_version(url, format)
    assert version is not None
    lake = read_version(url, format, version)
    kept = candidates(lake, wheres)
    try:
        return Footers(
            url=url,
            root=root,
            partition_types=lake.partition_types,
            lake=lake,
            **_with_footers(fs, kept),
        )
    except DataError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise DataError(
                f"{lake.label} is gone: its file {exc.file} no longer exists. VACUUM, or the expiry of "
                f"snapshots, removes the files of old versions. The newest version is "
                f"{find_version(url, format)}: begin a new study with it",
                file=exc.file,
            ) from exc
        raise


def _with_footers(fs: Any, found: Sequence[File]) -> dict[str, Any]:
    """Read footers in parallel; files with equal columns share one schema."""
    known: list[_Columns] = []
    threads = _LOCAL_THREADS if isinstance(fs, LocalFileSystem) else _REMOTE_THREADS
    with ThreadPoolExecutor(max(1, min(threads, len(found)))) as pool:
        footers = tuple(pool.map(lambda file: read_footer(fs, file.path, file.size, known), found))
    kept = (
        replace(file, digest=footer.digest, hidden=footer.hidden)
        for file, footer in zip(found, footers, strict=True)
    )
    return {"files": tuple(kept), "footers": footers}


def column_names(url: str, version: int | str | date | None = None) -> tuple[str, ...]:
    """Return the names of a table's columns, from its log or from one footer.

    Raises:
        DataError: the table does not exist, or cannot be read, or two columns have the same name.
    """
    url = files.absolute(url)
    format = table_format(url)
    number = find_version(url, format, version)
    if number is not None:
        return tuple(read_version(url, format, number).schema.names)
    fs, _ = files.filesystem(url)
    first = list_files(url)[0]
    stored = read_footer(fs, first.path, first.size).schema.names
    check_names(url, stored)
    return tuple(dict.fromkeys([*(name for name in stored if name not in first.partition), *first.partition]))


def check_names(url: str, names: Sequence[str]) -> None:
    """Raise DataError if two columns have the same name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{url}: {count} columns are named {name!r}. Rename or remove all but one")


def check_unchanged(fs: Any, file: File) -> None:
    """Raise if a file has changed since planning.

    Compares size and modification time first. If they differ, compares the footer, because another machine
    may have its own copy of the file.

    Raises:
        DataError: the file has changed or no longer exists.
    """
    with files.reading(file.path):
        info = fs.info(file.path)
    if info["size"] == file.size and file.modified in (None, files.modified(info)):
        return
    if read_footer(fs, file.path).digest != file.digest:
        raise files.changed(file.path, "the file has changed")


class _Columns:
    """The columns of files that have the same ones, converted once."""

    def __init__(self, metadata: pq.FileMetaData) -> None:
        self._stored = metadata.schema
        self._arrow = (metadata.metadata or {}).get(_ARROW_SCHEMA)
        self.schema: pa.Schema = metadata.schema.to_arrow_schema()
        self.first_leaf: dict[str, int] = {}  # the index of the first Parquet column of each Arrow column
        leaf = 0
        for column in self.schema:
            self.first_leaf[column.name] = leaf
            leaf += _leaves(column.type)

    def are_of(self, metadata: pq.FileMetaData) -> bool:
        arrow = (metadata.metadata or {}).get(_ARROW_SCHEMA)
        return bool(arrow == self._arrow and metadata.schema.equals(self._stored))


def read_footer(fs: Any, path: str, size: int | None = None, known: list[_Columns] | None = None) -> Footer:
    """Read the footer of one file.

    Args:
        size: of the file in bytes, if known.
        known: the columns of files that were read before; gets those of this file.

    Raises:
        DataError: the file does not exist, is not Parquet, or has encrypted columns.
    """
    with files.reading(path):
        stored, size = _tail(fs, path, size)
        hidden = None
        try:
            metadata = _parsed(stored)
        except pa.ArrowInvalid as exc:
            if _UNKNOWN_TYPE not in str(exc):
                raise
            place = stored.rindex(_ARROW_SCHEMA)
            hidden = size - len(stored) + place
            stored = stored[:place] + b"-" + stored[place + 1 :]
            metadata = _parsed(stored)
        if len(stored) - _END_BYTES == metadata.serialized_size + _SIGNATURE_BYTES:
            # A plain footer describes encrypted columns; touching their metadata crashes pyarrow.
            raise DataError(
                f"{path} has encrypted columns, which cannot be read. Write the file without encryption",
                file=path,
            )
        known = [] if known is None else known
        columns = next((columns for columns in known if columns.are_of(metadata)), None)
        if columns is None:
            columns = _Columns(metadata)
            known.append(columns)
        return Footer(stored, columns.schema, columns.first_leaf, hidden)


def _tail(fs: Any, path: str, size: int | None) -> tuple[bytes, int]:
    """Return the end of a file from its footer on, in one request if it is small, and the file's size."""
    is_local = isinstance(fs, LocalFileSystem)
    if is_local or size is None:
        size = int(fs.size(path))

    def end(length: int) -> bytes:
        start = max(0, size - length)
        if is_local:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read()
        content: bytes = fs.cat_file(path, start=start, end=size)
        return content

    tail = end(_GUESS_BYTES)
    length = int.from_bytes(tail[-_END_BYTES:-4], "little") + _END_BYTES
    if length > len(tail) and size > len(tail) and tail.endswith(_MAGIC):
        tail = end(length)
    return (tail[-length:] if tail.endswith(_MAGIC) else tail), size


@lru_cache(maxsize=64)
def _parsed(stored: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(stored))


def _leaves(kind: pa.DataType) -> int:
    """Return the number of Parquet columns that store one Arrow column of this type."""
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
