"""Access to the files of a table, on a local path or any fsspec URL."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import DataError, access_cure, cause
from spark_hpo.redact import has_credentials

_CSV_ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt")
_CATALOG_NAME = re.compile(r"(`[^`]+`|[\w-]+)(\.(`[^`]+`|[\w-]+)){1,2}")
_FILE_ENDINGS = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".gz", ".json", ".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A Parquet file."""

    path: str  # on its file system; absolute if local
    size: int  # bytes
    modified: float | None  # seconds since 1970; None if the store or the log does not record it
    partition: Mapping[str, str | None] = field(default_factory=dict)  # value by partition column, as text
    digest: str = ""  # of its footer
    hidden: int | None = None  # position of an Arrow schema that this version of pyarrow cannot read


def absolute(url: str | Path) -> str:
    """Make a local path absolute, because executors have another working directory."""
    url = str(url)
    return os.path.abspath(url.removeprefix("file://")) if is_local(url) else url


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path on it.

    Raises:
        DataError: the protocol is unknown, its package is not installed, or the URL contains a password.
    """
    if has_credentials(url):
        raise DataError(
            f"{url} contains a password or a key, which would be written to disk. Pass it through the "
            "environment instead"
        )
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as exc:
        raise DataError(f"{url} cannot be opened: {exc}") from cause(exc)
    return fs, path


@contextlib.contextmanager
def accessing(url: str) -> Iterator[None]:
    """Raise what a file system raises about a URL as `DataError` that names it."""
    try:
        yield
    except OSError as exc:
        raise DataError(f"{url} cannot be accessed: {exc.strerror or exc}") from cause(exc)
    except Exception as exc:  # clients of object stores have errors of their own
        cure = access_cure(exc)
        if cure is None:
            raise
        raise DataError(f"{url} cannot be accessed: {exc}. {cure}") from cause(exc)


def exists(url: str) -> bool:
    """Return True if there is a file or folder at a URL.

    Raises:
        DataError: its file system cannot be accessed.
    """
    fs, path = filesystem(url)
    with accessing(url):
        return bool(fs.exists(path))


def is_csv(path: str) -> bool:
    """Return True if the path is a CSV, or a folder of them."""
    if path.lower().endswith(_CSV_ENDINGS):
        return True
    fs, folder = filesystem(absolute(path))
    with accessing(path):
        return fs.isdir(folder) and any(name.lower().endswith(_CSV_ENDINGS) for name in fs.ls(folder, False))


def catalog_source(text: str) -> dict[str, str] | None:
    """Tell a name in Spark's catalog and a query from a path.

    A trace: "main.sales.orders" -> {"table": "main.sales.orders"}
        "SELECT * FROM orders" -> {"query": "SELECT * FROM orders"}
        "data/orders", "orders.parquet", "s3://lake/orders" -> None
    """
    if re.match(r"\s*(select|with)\s", text, re.IGNORECASE):
        return {"query": text}
    is_name = _CATALOG_NAME.fullmatch(text) and not text.lower().endswith(_FILE_ENDINGS)
    return {"table": text} if is_name and not exists(absolute(text)) else None


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Translate exceptions of pyarrow and file systems into a `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise changed(path, "the file no longer exists") from exc
    except pa.ArrowInvalid as exc:
        message = f"{path} is damaged or not a Parquet file ({exc}). Write it again"
        raise DataError(message, file=path) from exc
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path} cannot be read: {exc}", file=path) from cause(exc)


def changed(path: str, fault: str, *, is_file: bool = True) -> DataError:
    """Return the error for a table that changed after the driver planned with it."""
    cure = "do not write to the table during a study; start the study again"
    return DataError(f"{path}: {fault}; {cure}", file=path if is_file else None)


@contextlib.contextmanager
def opened(fs: Any, path: str, hidden: int | None = None) -> Iterator[Any]:
    """Yield what pyarrow reads from: the path if it is local, which avoids Python I/O, else an open file.

    Args:
        hidden: see `File.hidden`.
    """
    if isinstance(fs, LocalFileSystem) and hidden is None:
        yield path
    else:
        with fs.open(path, "rb") as file:
            yield file if hidden is None else WithoutArrowSchema(file, hidden)


class WithoutArrowSchema(io.RawIOBase):
    """A Parquet file whose Arrow schema is hidden, so that the types of Parquet count.

    Newer writers, such as those of Delta, store Arrow types that pyarrow 14 does not know (string views).
    """

    def __init__(self, file: Any, position: int) -> None:
        self._file = file
        self._position = position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        if start <= self._position < start + len(content):
            buffer[self._position - start] = ord("-")
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def modified(info: dict[str, Any]) -> float | None:
    """Return the modification time in seconds since 1970, or None if the store does not record it."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
