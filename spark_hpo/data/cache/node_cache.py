"""The node cache: each row group is decoded once per machine, then read from memory-mapped files."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_hpo.data import encoders
from spark_hpo.data.blocks import BlockLayout, Blocks, layout_of, pack, packed_parts, unpack
from spark_hpo.data.cache.cache_folder import CacheEntry, CacheFolder, CacheSettings, key_of, open_no_follow
from spark_hpo.data.encode import Columns, delivered
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.readers.reader import Reader
from spark_hpo.data.schema import TableSchema

logger = logging.getLogger(__name__)

_FORMAT = 1  # version of the file format; part of the entry's key
_READY = "ready"  # one byte per row group: 1 when all its columns are written
_LOCKS = "locks"  # one byte per row group: locked by the process that decodes it
_BATCH_BYTES = 32 * 2**20  # decoded at once, because opening Petastorm costs as much as a small row group
_LIMIT_S = 60.0  # wait for another process to decode a row group before bypassing the cache
_POLL_S = 0.02


def open_node_cache(
    settings: CacheSettings,
    reader: Reader,
    manifest: Manifest,
    schema: TableSchema,
    *,
    shard_bytes: int,
    mapped: bool,
) -> NodeCache | None:
    """Open the cache of one split on this machine, or return None if a shard does not fit on the disk.

    Args:
        shard_bytes: decoded bytes that this rank reads.
        mapped: map blocks into memory. Otherwise they are read through the page cache, so that the resident
            memory of the process does not grow with its shard.
    """
    layout = layout_of(delivered(schema))
    rows = sum(group.rows for group in manifest.row_groups)
    sizes = {_file(i): rows * block.row_bytes for i, block in enumerate(layout)}
    count = len(manifest.row_groups)
    stored = [(file.path, file.size, file.modified) for file in manifest.files]
    code = [encoders.code_of(feature.transform) for feature in schema.features if feature.transform]
    key = key_of([_FORMAT, manifest.fingerprint, manifest.url, stored, schema.to_json(), code])
    try:
        folder = CacheFolder(settings)
        entry = folder.open(key, {**sizes, _READY: count, _LOCKS: count}, needed=shard_bytes)
        if entry is not None:
            return NodeCache(reader, manifest, layout, entry, mapped=mapped)
        if not folder.is_news(key):
            return None
        reason = (
            f"{folder.path} has no room for {max(1, shard_bytes >> 20)} MiB. Free space there, or set "
            "data.cache.folder to another disk"
        )
    except OSError as exc:
        reason = str(exc)
    logger.warning("%s: reading without the node cache: %s", manifest.url, reason)
    return None


class NodeCache:
    """A reader that decodes each row group once per machine through another reader and stores it in files.

    Each block is one file for the whole split, sparse until its row groups are decoded, so the assignment of
    rows to ranks may change from rung to rung. One process decodes a row group under a lock while other
    processes decode other row groups. If a process dies, its row group stays unmarked and another process
    decodes it again. All processes that map a file share one copy in the page cache.

    A trace: read([a, b]) decodes a and b; then read([b, a]), in any process, decodes nothing
    """

    def __init__(
        self,
        reader: Reader,
        manifest: Manifest,
        layout: Sequence[BlockLayout],
        entry: CacheEntry,
        *,
        mapped: bool,
    ) -> None:
        self._reader = reader
        self._entry = entry
        groups = manifest.row_groups
        self._number = {(group.file, group.index): i for i, group in enumerate(groups)}
        self._whole = [Segment(group.file, group.index, 0, group.rows) for group in groups]
        self._first_row = [0, *accumulate(group.rows for group in groups)]
        self._layout = layout
        self._row_bytes = sum(block.row_bytes for block in layout)
        with open(entry.path / _READY, "rb", opener=open_no_follow) as ready:
            self._ready: npt.NDArray[np.uint8] = np.memmap(ready, np.uint8, "r")
        self._files = [_BlockFile(entry.path / _file(i), block) for i, block in enumerate(layout)]
        rows = self._first_row[-1]
        self._maps: Blocks | None = tuple(file.mapped(rows) for file in self._files) if mapped else None

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        with contextlib.closing(self.locate(segments)) as located:
            for blocks, rows in located:
                yield unpack(tuple(block[rows.start : rows.stop] for block in blocks), self._layout)

    def locate(self, segments: Sequence[Segment]) -> Generator[tuple[Blocks, range], None, None]:
        """Yield blocks of the whole split if they are mapped, else blocks of the segment."""
        numbers = [self._number[segment.file, segment.row_group] for segment in segments]
        missing = [number for number in dict.fromkeys(numbers) if not self._ready[number]]
        with _Decoding(self, missing) as decoding:
            for segment, number in zip(segments, numbers, strict=True):
                first = self._first_row[number]
                rows = range(first + segment.start, first + segment.stop)
                if not self._ready[number] and not decoding.wait(number):
                    for piece in self._reader.read([segment]):
                        yield pack(piece, self._layout), range(segment.rows)
                elif self._maps is not None:
                    yield self._maps, rows
                else:
                    yield tuple(file.read(rows) for file in self._files), range(segment.rows)

    # Called from the thread of _Decoding only -------------------------------------------------------------

    def decode(self, numbers: Sequence[int], locks: _Locks, stopped: threading.Event) -> None:
        """Decode the missing row groups: first those that no other process is decoding, then the rest."""
        waiting = []
        for batch in self._batches(numbers):
            if stopped.is_set():
                return
            mine = [number for number in batch if not self._ready[number] and locks.acquire(number)]
            waiting += [number for number in batch if number not in mine and not self._ready[number]]
            self._decode(mine, locks)
        for number in waiting:
            # Another process holds the lock: it finishes, or dies and releases the lock.
            deadline = time.monotonic() + _LIMIT_S
            while not self._ready[number] and not stopped.is_set() and time.monotonic() < deadline:
                if locks.acquire(number):
                    self._decode([number], locks)
                else:
                    stopped.wait(_POLL_S)

    def _decode(self, numbers: Sequence[int], locks: _Locks) -> None:
        """Decode row groups whose locks this process holds, then release the locks."""
        todo = [number for number in numbers if not self._ready[number]]
        with contextlib.closing(self._reader.read([self._whole[number] for number in todo])) as pieces:
            for number, piece in zip(todo, pieces, strict=True):
                for file, block in zip(self._files, self._layout, strict=True):
                    file.write(self._first_row[number], packed_parts(piece, block))
                # The mark comes last, so a marked row group is complete.
                os.pwrite(locks.ready, b"\1", number)
        for number in numbers:
            locks.release(number)

    def _batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for number in numbers:
            batch.append(number)
            if sum(self._whole[n].rows for n in batch) * self._row_bytes >= _BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def locks(self) -> _Locks:
        return _Locks(self._entry.path)


class _Decoding:
    """A thread that fills the cache independently of its reader, so that processes cannot deadlock."""

    def __init__(self, cache: NodeCache, missing: Sequence[int]) -> None:
        self._cache = cache
        self._missing = missing
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader-node-cache", daemon=True)

    def __enter__(self) -> _Decoding:
        if self._missing:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._missing:
            self._thread.join()

    def wait(self, number: int) -> bool:
        """Wait until a row group is decoded. Return False if it must be read without the cache.

        Raises:
            DataError: the row group cannot be decoded.
        """
        while self._thread.is_alive() and not self._cache._ready[number]:
            self._thread.join(_POLL_S / 10)
        if self._cache._ready[number]:
            return True
        if isinstance(self._failure, OSError):
            return False
        if self._failure is not None:
            raise self._failure
        return False

    def _run(self) -> None:
        try:
            with contextlib.closing(self._cache.locks()) as locks:
                self._cache.decode(self._missing, locks, self._stopped)
        except OSError as exc:  # most likely a full disk
            logger.warning("cannot write the node cache, reading without it: %s", exc)
            self._failure = exc
        except BaseException as exc:  # re-raised by `wait`
            self._failure = exc


class _BlockFile:
    """The file of one block of a split: rows in NumPy's memory layout."""

    def __init__(self, path: Path, block: BlockLayout) -> None:
        self._path = path
        self._block = block

    def mapped(self, rows: int) -> npt.NDArray[Any]:
        """Map all rows, read-only. Rows that are not written yet read as zeros."""
        with open(self._path, "rb", opener=open_no_follow) as file:
            whole = np.memmap(file, self._block.dtype, "r", shape=(rows, *self._block.row_shape))
        return whole.view(np.ndarray)

    def read(self, rows: range) -> npt.NDArray[Any]:
        """Read a range of rows into a new array."""
        count, offset = len(rows) * prod(self._block.row_shape), rows.start * self._block.row_bytes
        with open(self._path, "rb", opener=open_no_follow) as file:
            values = np.fromfile(file, self._block.dtype, count, offset=offset)
        return values.reshape(len(rows), *self._block.row_shape)

    def write(self, start: int, parts: Iterable[npt.NDArray[Any]]) -> None:
        # Not through a memory map: on a full disk that kills the process, while this raises OSError.
        with open(self._path, "r+b", buffering=0, opener=open_no_follow) as file:
            file.seek(start * self._block.row_bytes)
            for part in parts:
                data = part.reshape(-1).view(np.uint8).data
                while data:
                    data = data[file.write(data) :]


class _Locks:
    """One lock per row group. The kernel releases them when the process dies."""

    def __init__(self, entry: Path) -> None:
        self._descriptor = open_no_follow(entry / _LOCKS, os.O_RDWR)
        self.ready = open_no_follow(entry / _READY, os.O_RDWR)

    def acquire(self, number: int) -> bool:
        """Take a lock without waiting. Return False if another owner holds it."""
        try:
            self._set(fcntl.F_WRLCK, number)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
            return False
        return True

    def release(self, number: int) -> None:
        self._set(fcntl.F_UNLCK, number)

    def close(self) -> None:
        os.close(self._descriptor)
        os.close(self.ready)

    def _set(self, kind: int, number: int) -> None:
        # Open-file-description locks also exclude a second loader in the same process.
        command = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
        fcntl.fcntl(self._descriptor, command, struct.pack("hhqqi", kind, os.SEEK_SET, number, 1, 0))


def _file(index: int) -> str:
    return f"block-{index}"
