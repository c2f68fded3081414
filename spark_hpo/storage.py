"""The study directory as storage: whole writes, logs that only grow, on local paths and fsspec URLs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import StorageError, cause
from spark_hpo.local_folder import LocalFolder
from spark_hpo.redact import has_credentials, redact

# FUSE mounts of object stores that refuse to append to a file.
_NO_APPEND = ("/dbfs/", "/Volumes/")


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
    def _folder(self) -> LocalFolder | _RemoteFolder:
        fs, root = self._fs_and_root
        return LocalFolder(root) if isinstance(fs, LocalFileSystem) else _RemoteFolder(fs, root)

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
        return Log(self, name)

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


def _checked(name: str) -> str:
    """A path inside the directory. It may come from a journal that somebody else has written.

    Raises:
        StorageError: it leads out of it, or is none.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise StorageError(f"{name!r}: a path in the study directory must be relative and stay inside it")
    return name


class _RemoteFolder:
    """What lies below a root of any fsspec file system. Raises OSError."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root

    def read(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        if self._fs.exists(f"{self._root}/{name}"):
            return False
        self.write(name, data)
        return True

    def delete(self, name: str) -> None:
        self._fs.rm_file(f"{self._root}/{name}")

    def names(self, folder: str) -> list[str]:
        try:
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False, refresh=True)
        except TypeError:  # a file system whose ls has no listing cache
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False)
        return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]


class Log:
    """Lines that only grow. A line is durable when `append` returns.

    Where the file system can append, a log is one file of lines; elsewhere it is a folder with one object
    a line, numbered.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._descriptor: int | None = None
        self._count = 0

    def append(self, line: str) -> None:
        """Add one line (without its newline). Only the log's one writer may call it."""
        data = line.encode() + b"\n"
        local = self._storage.local
        if local is None or not self._storage.can_append:
            self._count += 1
            self._storage.write(f"{self._name}/{self._count:09d}.json", data)
            return
        name = f"{self._name}.jsonl"
        with self._storage.translated(name):
            if self._descriptor is None:
                self._descriptor = local.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            written = os.write(self._descriptor, data)
            os.fsync(self._descriptor)
        if written != len(data):
            raise StorageError(
                f"{self._storage.path(name)}: only {written} of {len(data)} bytes could be written; "
                "is the disk full?"
            )

    def lines(self) -> list[bytes]:
        """All lines, in order. The last one may be torn: it then has no newline at its end."""
        if not self._storage.can_append:
            names = self._storage.names(self._name)
            return [self._storage.read(f"{self._name}/{name}") or b"" for name in names]
        data = self._storage.read(self._name + ".jsonl") or b""
        return data.splitlines(keepends=True)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
