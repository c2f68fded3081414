"""Where a table lies: a local path or any fsspec URL. Paths of local files stay plain paths."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from spark_hpo.errors import DataError, cause
from spark_hpo.redact import has_credentials


def absolute(url: str | Path) -> str:
    """The URL as every process understands it: an executor has another working directory."""
    url = str(url)
    return os.path.abspath(url.removeprefix("file://")) if is_local(url) else url


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def join(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path on it.

    Raises:
        DataError: the protocol is unknown, its package is not installed, or there is a password in it.
    """
    if has_credentials(url):
        raise DataError(
            f"{url}: holds a password or a key, which would be written beside the table; give it through the "
            "environment"
        )
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as exc:
        raise DataError(f"{url}: cannot be opened: {exc}") from cause(exc)
    return fs, path


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """What pyarrow and file systems raise about a file, as `DataError` that names it."""
    try:
        yield
    except FileNotFoundError as exc:
        raise changed(path, "the file is gone", file=path) from exc
    except pa.ArrowInvalid as exc:
        message = f"{path}: not a Parquet file, or a damaged one ({exc}): write it again"
        raise DataError(message, file=path) from exc
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path}: cannot be read: {exc}", file=path) from cause(exc)


def changed(place: str, fault: str, *, file: str | None) -> DataError:
    """What a rank finds is not what the driver planned with."""
    cure = "let nothing write to the table during a study, and start again"
    return DataError(f"{place}: {fault}: {cure}", file=file)


@contextlib.contextmanager
def opened(fs: Any, path: str) -> Iterator[Any]:
    """What pyarrow reads from: the path itself where it is local, which needs no Python in between."""
    if isinstance(fs, LocalFileSystem):
        yield path
    else:
        with fs.open(path, "rb") as file:
            yield file


def modified(info: dict[str, Any]) -> float | None:
    """When a listed file was last modified, in seconds since 1970; None where the store does not say."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
