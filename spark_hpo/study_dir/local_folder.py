"""Folders of files by their names: local ones, without symbolic links, and those of other file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Any

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
# Not blocking: somebody may have put a pipe there.
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LocalFolder:
    """What lies below a root, for its owner alone.

    The root may be reached through symbolic links; below it every step is taken from the folder before, and
    a link is refused: it would have us read or overwrite what is elsewhere. Raises OSError.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a plain file. Its folders are made where it may be created."""
        with self._parent(name, make=bool(flags & os.O_CREAT)) as (folder, last):
            descriptor = os.open(last, flags | _FLAGS, _FILE_MODE, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is no plain file")
        return descriptor

    def read(self, name: str) -> bytes:
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with self._parent(name, make=True) as (folder, last):
            temporary = f".tmp-{secrets.token_hex(8)}"
            try:
                self._write_new(folder, temporary, data)
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:  # an interrupt too: half a file must not stay
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none; False when another was first."""
        with self._parent(name, make=True) as (folder, last):
            try:
                self._write_new(folder, last, data)
            except FileExistsError:
                return False
            return True

    def delete(self, name: str) -> None:
        """Delete a file, or a link in its place."""
        with self._parent(name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    def size(self, name: str) -> int:
        with self._parent(name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False).st_size

    def names(self, folder: str) -> list[str]:
        with self._parent(f"{folder}/*") as (descriptor, _):
            return os.listdir(descriptor)

    @staticmethod
    def _write_new(folder: int, name: str, data: bytes) -> None:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, _FILE_MODE, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that a file is in, and the file's name there."""
        *parts, last = name.split("/")
        if make:
            os.makedirs(self._root, _FOLDER_MODE, exist_ok=True)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, _FOLDER_MODE, dir_fd=folder)
                below = _open_folder(part, folder)
                os.close(folder)
                folder = below
            yield folder, last
        finally:
            os.close(folder)


class RemoteFolder:
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

    def size(self, name: str) -> int:
        return int(self._fs.size(f"{self._root}/{name}") or 0)

    def names(self, folder: str) -> list[str]:
        try:
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False, refresh=True)
        except TypeError:  # a file system whose ls has no listing cache
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False)
        return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except NotADirectoryError:  # what Linux says of a link, too
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
