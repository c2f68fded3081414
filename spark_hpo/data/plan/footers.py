"""The footers of a table's files, each read once."""

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

_SIGNATURE_BYTES = 28  # a nonce and a tag behind the footer (Parquet Modular Encryption, 5.5)
_THREADS = 16  # footers are small: their cost is the round trip to the store


class Footer:
    """One file's footer, by the names of its Arrow columns."""

    def __init__(self, metadata: pq.FileMetaData) -> None:
        self.metadata = metadata
        self.schema: pa.Schema = metadata.schema.to_arrow_schema()

    @cached_property
    def facts(self) -> str:
        """What the file holds, as its footer tells: positions, sizes, statistics; in JSON."""
        return json.dumps(self.metadata.to_dict(), default=str)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.facts.encode()).hexdigest()[:32]

    def row_group(self, index: int) -> pq.RowGroupMetaData:
        return self.metadata.row_group(index)

    def statistics(self, row_group: int, column: str) -> Any:
        """Of a column that is no list or structure; None where the file has none."""
        if column not in self._first_leaf or self.schema.field(column).type.num_fields:
            return None
        return self.row_group(row_group).column(self._first_leaf[column]).statistics

    def nulls(self, row_group: int, column: str) -> int | None:
        """How many there are; of lists, empty ones count too. None where the file does not say."""
        statistics = self.row_group(row_group).column(self._first_leaf[column]).statistics
        if statistics is None or not statistics.has_null_count:
            return None
        return int(statistics.null_count)

    @cached_property
    def _first_leaf(self) -> dict[str, int]:
        """The number of the first Parquet column that stores each Arrow column."""
        first, leaf = {}, 0
        for column in self.schema:
            first[column.name] = leaf
            leaf += _leaves(column.type)
        return first


@dataclass(frozen=True, kw_only=True)
class Footers:
    """A table's files, with what their footers and their folders say."""

    url: str
    root: str  # the path of the URL, as its file system takes it
    files: tuple[File, ...]
    footers: tuple[Footer, ...]
    partition_types: Mapping[str, pa.DataType]

    @cached_property
    def schemas(self) -> tuple[pa.Schema, ...]:
        """The columns of each file, those of its folders among them."""
        types = self.partition_types
        return tuple(partitions.with_partitions(footer.schema, types) for footer in self.footers)

    @cached_property
    def facts(self) -> str:
        """What the files hold, as their footers tell: sizes, positions, statistics; a list in JSON.

        No modification times: the same table copied, or prepared again, is the same table.
        """
        pairs = zip(self.files, self.footers, strict=True)
        places = [(json.dumps([relative(file.path, self.root), file.size]), f.facts) for file, f in pairs]
        return "[" + ", ".join(f"{place[:-1]}, {facts}]" for place, facts in places) + "]"


def read_footers(url: str) -> Footers:
    """List the files of a table and read their footers.

    Args:
        url: a folder or a file, as a local path or any fsspec URL.

    Raises:
        DataError: the path is missing, there are no files, or one is not Parquet.
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
    """Make sure that a file is the one that was planned with.

    Its size and its time say so; where they do not, its footer: another machine may have its own copy.

    Raises:
        DataError: it is another one, or gone.
    """
    with files.reading(file.path):
        info = fs.info(file.path)
    if info["size"] == file.size and files.modified(info) == file.modified:
        return
    if read_footer(fs, file.path).digest != file.digest:
        raise files.changed(file.path, "it is not the file that it was", file=file.path)


def read_footer(fs: Any, path: str) -> Footer:
    """Read the footer of one file.

    Raises:
        DataError: it is gone, is not Parquet, or has encrypted columns.
    """
    with files.reading(path), files.opened(fs, path) as source:
        metadata = pq.read_metadata(source)
        if _is_signed(source, metadata):
            raise DataError(
                f"{path}: has encrypted columns, for which there is no key here: let Spark write it without",
                file=path,
            )
        return Footer(metadata)


def _is_signed(source: Any, metadata: pq.FileMetaData) -> bool:
    """Whether columns are encrypted below a footer that is not: a look at their metadata ends the process."""
    with open(source, "rb") if isinstance(source, str) else contextlib.nullcontext(source) as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
    return bool(length == metadata.serialized_size + _SIGNATURE_BYTES)


def _leaves(kind: pa.DataType) -> int:
    """How many Parquet columns store one Arrow column of this type."""
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
