"""The study directory as storage: whole writes, logs that only grow, on local paths and fsspec URLs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import StorageError, access_cure, cause
from spark_hpo.redact import has_credentials, redact
from spark_hpo.study_dir.local_folder import LocalFolder, RemoteFolder

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
    rename; an object store does the same by itself. On a local file system all that is made is its owner's
    alone, and symbolic links inside the directory are refused. Errors are `StorageError`, with the place.
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

    @cached_property
    def _folder(self) -> LocalFolder | RemoteFolder:
        fs, root = self._fs_and_root
        return LocalFolder(root or "/") if isinstance(fs, LocalFileSystem) else RemoteFolder(fs, root)

    @property
    def local(self) -> LocalFolder | None:
        """The directory on a local file system; None: it is elsewhere."""
        return self._folder if isinstance(self._folder, LocalFolder) else None

    @property
    def can_append(self) -> bool:
        return self.local is not None and not self._fs_and_root[1].startswith(_NO_APPEND)

    def path(self, name: str) -> str:
        """The full path of a file on its file system."""
        return f"{self._fs_and_root[1]}/{_checked(name)}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None when there is none."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            return self._folder.read(_checked(name))
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with self.translated(name):
            self._folder.write(_checked(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none; False when another was first. Atomic where the store can."""
        with self.translated(name):
            return self._folder.create(_checked(name), data)

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens when there is none."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            self._folder.delete(_checked(name))

    def size(self, name: str) -> int:
        """The bytes of a file; 0 when there is none."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            return self._folder.size(_checked(name))
        return 0

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """What `read` returns for each of these, many at a time."""
        return self._for_all(self.read, names)

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete each of these, many at a time."""
        self._for_all(self.delete, names)

    def remove(self) -> None:
        """Delete the directory and all that is in it; nothing happens when there is none."""
        fs, root = self._fs_and_root
        with self.translated(""), contextlib.suppress(FileNotFoundError):
            if self.local is not None:
                shutil.rmtree(root)
            else:
                self.delete_all([path.removeprefix(f"{root}/") for path in fs.find(root)])

    def _for_all(self, call: Callable[[str], T], names: Sequence[str]) -> list[T]:
        # Not fsspec's own cat and rm of many: they would take brackets in the directory's name for a glob.
        if not (self.local or self._fs_and_root[0].async_impl):  # others may not be safe in threads
            return [call(name) for name in names]
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            return list(pool.map(call, names))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone with other processes of a local file system; no protection elsewhere."""
        if self.local is None or not self.can_append:
            yield
            return
        with self.translated(name):
            descriptor = self.local.open(_checked(name), os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def names(self, folder: str, *, hidden: bool = False) -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder.

        Args:
            hidden: also those that begin with a dot: what a killed writer has left.
        """
        found: list[str] = []
        with self.translated(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self._folder.names(_checked(folder))
        return sorted(name for name in found if hidden or not name.startswith("."))

    def log(self, name: str) -> Log:
        """The log of this name, to append to or to read."""
        return Log(self, name) if self.can_append else ObjectLog(self, name)

    @contextlib.contextmanager
    def translated(self, name: str) -> Iterator[None]:
        """What a file system raises, as `StorageError` with the place."""
        try:
            yield
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise StorageError(
                    f"{self.url}/{name}: is a symbolic link, or lies behind one, and those are not followed "
                    "inside a study directory: put the file itself there"
                ) from exc
            raise StorageError(f"{self.url}/{name}: {exc.strerror or exc}") from cause(exc)
        except Exception as exc:  # clients of object stores have errors of their own
            cure = access_cure(exc)
            if cure is None:
                raise
            raise StorageError(f"{self.url}/{name}: {exc}. {cure}") from cause(exc)


def _checked(name: str) -> str:
    """A path inside the directory. It may come from a journal that somebody else has written.

    Raises:
        StorageError: it leads out of it, or is none.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise StorageError(f"{name!r}: a path in the study directory must be relative and stay inside it")
    return name


class Log:
    """Lines that only grow: one file of them. A line is durable when `append` returns."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._descriptor: int | None = None

    def append(self, line: str) -> None:
        """Add one line (without its newline). Only the log's one writer may call it."""
        data = line.encode() + b"\n"
        name = f"{self._name}.jsonl"
        with self._storage.translated(name):
            if self._descriptor is None:
                assert self._storage.local is not None, "an ObjectLog is for what cannot be appended to"
                self._descriptor = self._storage.local.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        if written != len(data):
            raise StorageError(
                f"{self._storage.path(name)}: only {written} of {len(data)} bytes could be written; "
                "is the disk full?"
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
        except BaseException:  # an interrupt too
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
