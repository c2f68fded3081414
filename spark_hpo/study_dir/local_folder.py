"""Reads and writes files below a root: on a local file system without following links, and elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.callbacks import Callback

_PART_BYTES = 8 << 20  # of an upload to S3, or of a file that is written
_PARTS_AT_ONCE = 2
_COPIED_AT_ONCE = 1 << 20  # bytes
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_NO_LINKS = (
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EMLINK,
)  # FUSE, SMB
# Opening a pipe, which another user may have put there, must not block.
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LocalFolder:
    """Files below a root on a local file system, accessible by their owner only.

    The path of the root may contain symbolic links. Below it links are refused, because another user could
    use one to make us read or overwrite files elsewhere; each folder is opened relative to its parent, so
    that no link can be put in between. Raises OSError.
    """

    def __init__(self, root: str, on_progress: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_progress: called for each part of a large file that is written.
        """
        self._root = root
        self._on_progress = on_progress

    def open(self, name: str, flags: int) -> int:
        """Open a regular file, and return its descriptor. With O_CREAT its folders are created too."""
        with self._parent(name, make=bool(flags & os.O_CREAT)) as (folder, last):
            descriptor = os.open(last, flags | _FLAGS, _FILE_MODE, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file")
        return descriptor

    def read(self, name: str) -> bytes:
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        with self.writing(name) as file:
            file.write(data)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file that appears under its name at the end, unless an error occurs."""
        with self._parent(name, make=True) as (folder, last), self._temporary(folder) as temporary:
            with self._new_file(folder, temporary) as file:
                yield _counted(file, self._on_progress)
            os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file; False if it exists already. Nobody sees it without its content."""
        with self._parent(name, make=True) as (folder, last):
            try:
                with self._temporary(folder) as temporary:
                    with self._new_file(folder, temporary) as file:
                        file.write(data)
                    os.link(temporary, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                try:
                    with self._new_file(folder, last) as file:
                        file.write(data)
                except FileExistsError:
                    return False
            return True

    def upload(self, name: str, path: Path) -> None:
        """Copy a local file, atomically."""
        with open(path, "rb") as source, self.writing(name) as file:
            shutil.copyfileobj(source, file, _COPIED_AT_ONCE)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file, _COPIED_AT_ONCE)

    def delete(self, name: str) -> None:
        """Delete a file or a symbolic link."""
        with self._parent(name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    def size(self, name: str) -> int:
        with self._parent(name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False).st_size

    def modified(self, name: str) -> float:
        """The time of the last change, in seconds since 1970."""
        with self._parent(name) as (folder, last):
            return os.stat(last, dir_fd=folder, follow_symlinks=False).st_mtime

    def names(self, folder: str) -> list[str]:
        with self._parent(f"{folder}/*") as (descriptor, _):
            return os.listdir(descriptor)

    @staticmethod
    @contextlib.contextmanager
    def _temporary(folder: int) -> Iterator[str]:
        """Yield a hidden name for a new file. The file is deleted at the end, unless it was renamed."""
        name = f".tmp-{secrets.token_hex(8)}"
        try:
            yield name
        finally:  # also after an interrupt: no partial file may stay
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)

    @staticmethod
    @contextlib.contextmanager
    def _new_file(folder: int, name: str) -> Iterator[BinaryIO]:
        """Open a new file, which is durable at the end."""
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, _FILE_MODE, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of a file. Yields the folder's descriptor, and the file's name in it."""
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
    """Files below a root on any fsspec file system. Raises OSError."""

    def __init__(self, fs: Any, root: str, on_progress: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_progress: called for each part of a large file that is written or uploaded.
        """
        self._fs = fs
        self._root = root
        self._on_progress = on_progress

    def read(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        return data

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._root}/{name}", start=start, end=stop)
        return data

    def write(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a local file, and upload it at the end unless an error occurs. Needs little memory."""
        with tempfile.NamedTemporaryFile() as file:
            yield _counted(file, self._on_progress)
            file.flush()
            self.upload(name, Path(file.name))

    def upload(self, name: str, path: Path) -> None:
        """Copy a local file."""
        counted = _Progress(self._on_progress)
        self._fs.put_file(str(path), f"{self._root}/{name}", callback=counted, **self._upload_options)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        self._fs.get_file(f"{self._root}/{name}", str(path))

    @property
    def _upload_options(self) -> dict[str, int]:
        # s3fs reads 10 parts of 50 MB at once by default.
        is_s3 = "s3" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        return {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_ONCE} if is_s3 else {}

    def create(self, name: str, data: bytes) -> bool:
        if self._fs.exists(f"{self._root}/{name}"):
            return False
        self.write(name, data)
        return True

    def delete(self, name: str) -> None:
        self._fs.rm_file(f"{self._root}/{name}")

    def size(self, name: str) -> int:
        return int(self._fs.size(f"{self._root}/{name}") or 0)

    def modified(self, name: str) -> float:
        """The time of the last change, in seconds since 1970.

        Raises:
            NotImplementedError: the store does not tell.
        """
        path = f"{self._root}/{name}"
        self._fs.invalidate_cache(self._fs._parent(path))
        return float(self._fs.modified(path).timestamp())

    def names(self, folder: str) -> list[str]:
        try:
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False, refresh=True)
        except TypeError:  # the file system has no cache of listings
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False)
        return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]


class _Progress(Callback):  # type: ignore[misc] # fsspec has no types
    """Counts the parts of an upload."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        super().__init__()
        self._on_progress = on_progress

    def call(self, hook_name: str | None = None, **_: Any) -> None:
        self._on_progress()


def _counted(file: Any, on_progress: Callable[[], None]) -> BinaryIO:
    """Return a file whose writes count as progress, part by part."""
    return _CountedFile(file, on_progress)  # type: ignore[return-value] # it has all methods of a BinaryIO


class _CountedFile:
    def __init__(self, file: Any, on_progress: Callable[[], None]) -> None:
        self._file = file
        self._on_progress = on_progress

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), _PART_BYTES):
            self._file.write(whole[start : start + _PART_BYTES])
            self._on_progress()
        return len(whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except NotADirectoryError:  # Linux raises it for links too
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
