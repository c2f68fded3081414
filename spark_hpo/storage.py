"""The study directory as storage: whole writes, logs that only grow, on local paths and fsspec URLs."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import StorageError, cause
from spark_hpo.redact import has_credentials, redact

logger = logging.getLogger(__name__)

T = TypeVar("T")

# FUSE mounts of object stores that refuse to append to a file.
_NO_APPEND = ("/dbfs/", "/Volumes/")
_CONCURRENT = 16  # calls at once
_LINES_A_SEGMENT = 256
_LISTINGS = 5  # of a log that is sealed while it is read
_OBJECT = re.compile(r"(?P<first>\d{9})(-(?P<last>\d{9}))?\.jsonl?")


class Storage:
    """A directory at a local path or any fsspec URL. Paths are relative to it. Picklable.

    A file is written whole or not at all: on a local file system through a temporary name, fsync and
    rename; an object store does the same by itself. Errors are `StorageError`, with the place.
    """

    def __init__(self, url: str | Path) -> None:
        # Absolute, because an executor has another working directory.
        self.url = str(url) if "://" in str(url) else os.path.abspath(url)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        if has_credentials(self.url):
            raise StorageError(f"{self.url}: holds a password or a key; give it through the environment")
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as exc:
            raise StorageError(f"{self.url}: cannot be opened: {exc}") from cause(exc)
        return fs, root.rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs_and_root[0], LocalFileSystem)

    @property
    def can_append(self) -> bool:
        return self.is_local and not self._fs_and_root[1].startswith(_NO_APPEND)

    def path(self, name: str) -> str:
        """The full path of a file on its file system."""
        if name.startswith("/") or ".." in name.split("/"):
            raise StorageError(f"{name}: a path in the study directory must be relative and stay inside it")
        return f"{self._fs_and_root[1]}/{name}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None when there is none."""
        with self._translated(name):
            try:
                data: bytes = self._fs_and_root[0].cat_file(self.path(name))
            except FileNotFoundError:
                return None
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with self._translated(name):
            path = self.path(name)
            if not self.is_local:
                self._fs_and_root[0].pipe_file(path, data)
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tmp-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:  # an interrupt too: half a file must not stay
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none; False when another was first. Atomic where the store can."""
        with self._translated(name):
            path = self.path(name)
            if not self.is_local:
                fs = self._fs_and_root[0]
                if fs.exists(path):
                    return False
                fs.pipe_file(path, data)
                return True
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(path, "xb") as file:
                    file.write(data)
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
            return True

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens when there is none."""
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            self._fs_and_root[0].rm_file(self.path(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """What `read` returns for each of these, many at a time."""
        return self._for_all(self.read, names)

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete each of these, many at a time."""
        self._for_all(self.delete, names)

    def _for_all(self, call: Callable[[str], T], names: Sequence[str]) -> list[T]:
        # Not fsspec's own cat and rm of many: they would take brackets in the directory's name for a glob.
        if not (self.is_local or self._fs_and_root[0].async_impl):  # others may not be safe in threads
            return [call(name) for name in names]
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            return list(pool.map(call, names))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone with other processes of a local file system; no protection elsewhere."""
        if not self.can_append:
            yield
            return
        with self._translated(name):
            path = self.path(name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "wb")  # noqa: SIM115 - closed below, and never inside the translation
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder.

        Args:
            hidden: also those that begin with a dot: what a killed writer has left.
        """
        with self._translated(folder):
            fs = self._fs_and_root[0]
            try:
                entries = fs.ls(self.path(folder), detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            except TypeError:  # a file system whose ls has no listing cache
                entries = fs.ls(self.path(folder), detail=False)
            names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
            return [name for name in names if hidden or not name.startswith(".")]

    def log(self, name: str) -> Log:
        """The log of this name, to append to or to read."""
        return Log(self, name) if self.can_append else ObjectLog(self, name)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StorageError(f"{self.url}/{name}: {exc.strerror or exc}") from cause(exc)


class Log:
    """Lines that only grow: one file of them. A line is durable when `append` returns."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._descriptor: int | None = None

    def append(self, line: str) -> None:
        """Add one line (without its newline). Only the log's one writer may call it."""
        data = line.encode() + b"\n"
        path = self._storage.path(self._name + ".jsonl")
        try:
            if self._descriptor is None:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as exc:
            raise StorageError(f"{path}: {exc.strerror or exc}") from cause(exc)
        if written != len(data):
            raise StorageError(
                f"{path}: only {written} of {len(data)} bytes could be written; is the disk full?"
            )

    def lines(self) -> list[bytes]:
        """All lines, in order. The last one may be torn: it then has no newline at its end."""
        data = self._storage.read(self._name + ".jsonl") or b""
        return data.splitlines(keepends=True)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class ObjectLog(Log):
    """The same where nothing can be appended to a file: a folder with an object for each line.

    Every 256 lines become one object, a segment, and are deleted then. A reader takes the segments, and the
    single lines that are in none: a writer may die between any two steps.

    A trace: append x 256 -> 000000001.json .. 000000256.json; then 000000001-000000256.jsonl beside them;
        then that alone; append -> 000000257.json
    """

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__(storage, name)
        self._count = 0
        self._single: list[bytes] = []  # the last lines, which are in no segment yet

    def append(self, line: str) -> None:
        data = line.encode() + b"\n"
        self._count += 1
        try:
            self._storage.write(self._object(self._count), data)
        except BaseException:
            # It may be there all the same, and a reader may have counted it: no segment may leave it out.
            self._single.clear()
            raise
        self._single.append(data)
        if len(self._single) >= _LINES_A_SEGMENT:
            self._seal()

    def lines(self) -> list[bytes]:
        known: dict[str, bytes] = {}
        for _ in range(_LISTINGS):
            names = _without_sealed(self._storage.names(self._name))
            new = [name for name in names if name not in known]
            found = self._storage.read_all([f"{self._name}/{name}" for name in new])
            known |= {name: data for name, data in zip(new, found, strict=True) if data is not None}
            if all(name in known for name in names):
                return [line for name in names for line in known[name].splitlines(keepends=True)]
            # The writer has sealed meanwhile: what has gone is in a segment now.
        raise StorageError(
            f"{self._storage.url}/{self._name}: objects vanish faster than they can be read; "
            "does another program delete them?"
        )

    def close(self) -> None:
        self._seal()

    def _seal(self) -> None:
        """Make one object of the single lines. They are durable already: a failure is no error."""
        lines, self._single = self._single, []
        first = self._count - len(lines) + 1
        if len(lines) < 2:
            return
        try:
            segment = f"{self._name}/{first:09d}-{self._count:09d}.jsonl"
            self._storage.write(segment, b"".join(lines))
            self._storage.delete_all([self._object(number) for number in range(first, self._count + 1)])
        except StorageError as exc:
            logger.warning("%d lines of the journal stay objects of their own: %s", len(lines), exc)

    def _object(self, number: int) -> str:
        return f"{self._name}/{number:09d}.json"


def _without_sealed(names: Sequence[str]) -> list[str]:
    """Segments and single lines of an `ObjectLog`, in order, without the lines that a segment has."""
    kept: list[str] = []
    sealed = 0  # up to this line
    for name in names:  # a segment comes before its own lines: "-" sorts before "."
        match = _OBJECT.fullmatch(name)
        if match is not None and int(match["first"]) > sealed:
            kept.append(name)
            sealed = int(match["last"] or 0) or sealed
    return kept
