"""The study directory as storage: atomic writes and append-only logs, on local paths and fsspec URLs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import StorageError, access_cure, cause
from spark_hpo.redact import has_credentials, redact
from spark_hpo.study_dir.local_folder import LocalFolder, RemoteFolder

logger = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")

# FUSE mounts of object stores, which cannot append to a file.
_NO_APPEND = ("/dbfs/", "/Volumes/")
_CONCURRENT = 16  # requests at once
_COPIES = 8  # of files at once: each needs memory for some parts
_LINES_PER_SEGMENT = 256
_LISTINGS = 5  # of a log that its writer seals meanwhile
_OBJECT = re.compile(r"(?P<first>\d{9})(-(?P<last>\d{9}))?\.jsonl?")


class Storage:
    """A directory at a local path or any fsspec URL. Paths are relative to it. Picklable.

    Writes are atomic: on a local file system through a temporary file, fsync and rename; an object store
    writes objects atomically anyway. On a local file system only the owner has access to new files, and
    symbolic links inside the directory are refused. Errors are `StorageError`, with the path.
    """

    _on_progress: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, url: str | Path) -> None:
        # Absolute, because executors have another working directory.
        self.url = str(url) if "://" in str(url) else os.path.abspath(url)

    def with_progress(self, on_progress: Callable[[], None]) -> Self:
        """Return the same storage, which calls this for each part of a large file that it writes.

        The call may come from another thread. A pickled storage loses it.
        """
        storage = object.__new__(type(self))
        storage.__dict__ |= {**self.__dict__, "_on_progress": on_progress}
        storage.__dict__.pop("_folder", None)
        return storage

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def __repr__(self) -> str:
        return f"Storage({redact(self.url)!r})"

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        if has_credentials(self.url):
            raise StorageError(f"{self.url}: contains a password or a key. Set it in the environment instead")
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as exc:
            raise StorageError(f"{self.url}: cannot be opened: {exc}") from cause(exc)
        return fs, root.rstrip("/")

    @cached_property
    def _folder(self) -> LocalFolder | RemoteFolder:
        fs, root = self._fs_and_root
        if isinstance(fs, LocalFileSystem):
            return LocalFolder(root or "/", self._on_progress)
        return RemoteFolder(fs, root, self._on_progress)

    @property
    def local(self) -> LocalFolder | None:
        """The directory if it is on a local file system, else None."""
        return self._folder if isinstance(self._folder, LocalFolder) else None

    @property
    def can_append(self) -> bool:
        return self.local is not None and not self._fs_and_root[1].startswith(_NO_APPEND)

    def path(self, name: str) -> str:
        """The full path of a file on its file system."""
        return f"{self._fs_and_root[1]}/{_checked(name)}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None if it does not exist."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            return self._folder.read(_checked(name))
        return None

    def read_range(self, name: str, start: int, stop: int) -> bytes | None:
        """The bytes from `start` up to `stop`, fewer at the end of the file; None if it does not exist."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            return self._folder.read_range(_checked(name), start, stop)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        with self.translated(name):
            self._folder.write(_checked(name), data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a large file for writing. Nobody sees the file until it is complete, nor after an error.

        For an object store the file is written to the local disk first, and then uploaded in parts.
        """
        with self.translated(name), self._folder.writing(_checked(name)) as file:
            yield file

    def create(self, name: str, data: bytes) -> bool:
        """Create a file; False if it exists already. Atomic on a local file system."""
        with self.translated(name):
            return self._folder.create(_checked(name), data)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            self._folder.delete(_checked(name))

    def size(self, name: str) -> int:
        """The size of a file in bytes; 0 if it does not exist."""
        with self.translated(name), contextlib.suppress(FileNotFoundError):
            return self._folder.size(_checked(name))
        return 0

    def age(self, name: str) -> float | None:
        """The seconds since a file was written, by the clock of the storage.

        Compares the file with a new one, which is deleted again, because the clock of this machine may differ
        from that of the storage and of the machine that wrote the file.

        Returns:
            None if the file does not exist, the directory cannot be written or the storage records no times.
        """
        new = f".tmp-{secrets.token_hex(8)}"
        try:
            written = self._folder.modified(_checked(name))
            self.write(new, b"")
            try:
                return self._folder.modified(new) - written
            finally:
                self.delete(new)
        except (OSError, StorageError, NotImplementedError):
            return None

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Read several files at a time; see `read`."""
        return self._for_all(self.read, names)

    def upload_all(self, files: Sequence[tuple[str, Path]]) -> None:
        """Copy local files into the directory, several at a time. Each is written atomically."""

        def upload(one: tuple[str, Path]) -> None:
            name, path = one
            with self.translated(name):
                self._folder.upload(_checked(name), path)

        self._for_all(upload, files, _COPIES)

    def download_all(self, files: Sequence[tuple[str, Path]]) -> list[str]:
        """Copy files to local paths, several at a time. Returns those that do not exist."""

        def download(one: tuple[str, Path]) -> str | None:
            name, path = one
            with self.translated(name), contextlib.suppress(FileNotFoundError):
                self._folder.download(_checked(name), path)
                return None
            return name

        return [name for name in self._for_all(download, files, _COPIES) if name is not None]

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete several files at a time."""
        self._for_all(self.delete, names)

    def remove(self) -> None:
        """Delete the directory with its contents, if it exists."""
        fs, root = self._fs_and_root
        with self.translated(""), contextlib.suppress(FileNotFoundError):
            if self.local is not None:
                shutil.rmtree(root)
            else:
                self.delete_all([path.removeprefix(f"{root}/") for path in fs.find(root)])

    def _for_all(self, call: Callable[[S], T], names: Sequence[S], at_once: int = _CONCURRENT) -> list[T]:
        # fsspec's own cat and rm of several files would read brackets in the directory's name as a glob.
        if not (self.local or self._fs_and_root[0].async_impl):  # other file systems may not be thread-safe
            return [call(name) for name in names]
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(call, names))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock against other processes on a local file system. No protection elsewhere."""
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
        """The names in a folder, sorted; empty if there is no such folder.

        Args:
            hidden: include names that begin with a dot, such as temporary files of killed writers.
        """
        found: list[str] = []
        with self.translated(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self._folder.names(_checked(folder))
        return sorted(name for name in found if hidden or not name.startswith("."))

    def children(self) -> tuple[set[str], set[str]]:
        """The names of the files and of the folders directly in the directory.

        Symbolic links are left out. Raises StorageError if there is no such directory.
        """
        fs, root = self._fs_and_root
        with self.translated(""):
            if self.local is not None:
                with os.scandir(root or "/") as entries:
                    some = [(entry.name, entry) for entry in entries if not entry.is_symlink()]
                    folders = {name for name, entry in some if entry.is_dir(follow_symlinks=False)}
                    return {name for name, _ in some} - folders, folders
            fs.invalidate_cache(root)
            found = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["type"] for entry in fs.ls(root)}
        folders = {name for name, kind in found.items() if kind == "directory"}
        return set(found) - folders, folders

    def log(self, name: str) -> Log:
        """The log of this name, for appending or reading."""
        return Log(self, name) if self.can_append else ObjectLog(self, name)

    @contextlib.contextmanager
    def translated(self, name: str) -> Iterator[None]:
        """Raise errors of the file system as `StorageError`, with the path."""
        try:
            yield
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise StorageError(
                    f"{self.url}/{name}: is a symbolic link or inside one. Links in a study directory are "
                    "not followed, so replace it by the file or folder itself"
                ) from exc
            raise StorageError(f"{self.url}/{name}: {exc.strerror or exc}") from cause(exc)
        except Exception as exc:  # clients of object stores have errors of their own
            cure = access_cure(exc)
            if cure is None:
                raise
            raise StorageError(f"{self.url}/{name}: {exc}. {cure}") from cause(exc)


def _checked(name: str) -> str:
    """Refuse a path outside the directory: it may come from a journal that another user has written."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise StorageError(f"{name!r}: must be a relative path inside the study directory")
    return name


class Log:
    """An append-only sequence of lines in one file. A line is durable when `append` returns."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._descriptor: int | None = None

    def append(self, line: str) -> None:
        """Add a line, given without its newline. A log has one writer only."""
        data = line.encode() + b"\n"
        name = f"{self._name}.jsonl"
        with self._storage.translated(name):
            if self._descriptor is None:
                assert self._storage.local is not None, "without appending, the log is an ObjectLog"
                self._descriptor = self._storage.local.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        if written != len(data):
            raise StorageError(
                f"{self._storage.path(name)}: only {written} of {len(data)} bytes were written. Check "
                "whether the disk is full"
            )

    def lines(self) -> list[bytes]:
        """All lines in order, with their newlines. The last one may be torn, without its newline."""
        data = self._storage.read(self._name + ".jsonl") or b""
        return data.splitlines(keepends=True)

    def lines_from(self, position: int) -> list[tuple[int, bytes]]:
        """The complete lines from a position on, each with the position behind it. A log begins at 0."""
        name = self._name + ".jsonl"
        size = self._storage.size(name)
        data = (self._storage.read_range(name, position, size) or b"") if size > position else b""
        found = []
        for line in data.splitlines(keepends=True):
            position += len(line)
            if line.endswith(b"\n"):
                found.append((position, line))
        return found

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class ObjectLog(Log):
    """A log for file systems that cannot append to a file: a folder with one object per line.

    After every 256 lines the writer puts them into one object, a segment, and deletes the single lines. It
    may die between any two steps, so a reader uses the segments, and the lines that are not in a segment.

    A trace: append x 256 -> 000000001.json ... 000000256.json; then also 000000001-000000256.jsonl; then
        only that; append -> 000000257.json
    """

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__(storage, name)
        self._count = 0
        self._single: list[bytes] = []  # the latest lines, which are not in a segment yet

    def append(self, line: str) -> None:
        data = line.encode() + b"\n"
        self._count += 1
        try:
            self._storage.write(self._object(self._count), data)
        except BaseException:  # also an interrupt
            # The object may exist all the same, and readers may have used it: no segment may leave it out.
            self._single.clear()
            raise
        self._single.append(data)
        if len(self._single) >= _LINES_PER_SEGMENT:
            self._seal()

    def lines(self) -> list[bytes]:
        return self._lines_after(0)

    def lines_from(self, position: int) -> list[tuple[int, bytes]]:
        return list(enumerate(self._lines_after(position), start=position + 1))

    def _lines_after(self, line: int) -> list[bytes]:
        """Read only the objects that have lines after this one."""
        known: dict[str, bytes] = {}
        for _ in range(_LISTINGS):
            names = _without_sealed(self._storage.names(self._name), after=line)
            new = [name for name in names if name not in known]
            found = self._storage.read_all([f"{self._name}/{name}" for name in new])
            known |= {name: data for name, data in zip(new, found, strict=True) if data is not None}
            if all(name in known for name in names):
                lines = [one for name in names for one in known[name].splitlines(keepends=True)]
                # A segment may begin with lines that the caller has read one by one.
                return lines[max(0, line + 1 - int(names[0][:9])) :] if names else []
            # The writer has sealed lines meanwhile; they are in a segment now.
        raise StorageError(
            f"{self._storage.url}/{self._name}: objects disappear faster than they can be read. Check "
            "whether another program deletes them"
        )

    def close(self) -> None:
        self._seal()

    def _seal(self) -> None:
        """Put the single lines into a segment. They are durable already, so a failure is not an error."""
        lines, self._single = self._single, []
        first = self._count - len(lines) + 1
        if len(lines) < 2:
            return
        try:
            segment = f"{self._name}/{first:09d}-{self._count:09d}.jsonl"
            self._storage.write(segment, b"".join(lines))
            self._storage.delete_all([self._object(number) for number in range(first, self._count + 1)])
        except StorageError as exc:
            logger.warning("could not put %d lines of the journal into one object: %s", len(lines), exc)

    def _object(self, number: int) -> str:
        return f"{self._name}/{number:09d}.json"


def _without_sealed(names: Sequence[str], *, after: int = 0) -> list[str]:
    """The objects of an `ObjectLog` in order, without single lines that are also in a segment.

    Args:
        after: leave out the objects that have no line after this one.
    """
    kept: list[str] = []
    sealed = 0  # the last line in a segment
    for name in names:  # a segment sorts before its first line: "-" before "."
        match = _OBJECT.fullmatch(name)
        if match is not None and int(match["first"]) > sealed:
            sealed = int(match["last"] or 0) or sealed
            if int(match["last"] or match["first"]) > after:
                kept.append(name)
    return kept
