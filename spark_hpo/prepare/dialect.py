"""Detects the separator, encoding and header of a CSV from its first lines."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spark_hpo.data import files
from spark_hpo.errors import DataError, cause

SEPARATORS = (",", ";", "\t", "|")
UTF_8, WINDOWS = "UTF-8", "windows-1252"
_HEAD_BYTES = 2**20
_LINES = 50
_SMALL_BYTES = 16 * 2**20  # not worth splitting a file into several tasks
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The options with which Spark reads a CSV."""

    separator: str
    encoding: str
    columns: tuple[str, ...]  # the fields of the first line
    many_lines: bool  # whether a field may contain line breaks


def find_dialect(
    url: str, listed: Sequence[Sequence[Any]], separator: str | None, *, header: bool
) -> Dialect:
    """Detect the dialect from the beginning of each file.

    Args:
        listed: the files of the table, as `fingerprint` lists them: name and size first.
        separator: the user's choice; None: detect it.
        header: whether the first line has column names.

    Raises:
        DataError: a file is not text, or the first line has values instead of column names.
    """
    fs, names = data_files(url)
    encodings = [_encoding(name, _head(fs, name)) for name in names]
    encoding = WINDOWS if WINDOWS in encodings else UTF_8
    text = _head(fs, names[0]).decode(encoding, errors="ignore").removeprefix("\ufeff")
    separator = separator or _separator(text)
    lines = _fields(text, separator)
    if not lines:
        raise DataError(f"{url} is empty")
    first = tuple(name.strip() for name in lines[0])
    if header and all(map(_NUMBER.fullmatch, first)):
        raise DataError(
            f"{url}: the first line has values ({', '.join(first[:5])}) instead of column names. Add a line "
            "with names, or use --no-header (header: false), which names them column1, column2, ..."
        )
    if header:
        _refuse_duplicates(url, first)
    is_small = all(int(size) <= _SMALL_BYTES for _, size, *_ in listed)
    breaks = any("\n" in field or "\r" in field for line in lines for field in line)
    return Dialect(separator=separator, encoding=encoding, columns=first, many_lines=is_small or breaks)


def data_files(url: str) -> tuple[Any, list[str]]:
    """Return a file system, and the paths of the files of a CSV on it.

    Raises:
        DataError: there are none.
    """
    fs, path = files.filesystem(files.absolute(url))
    names = [path] if fs.isfile(path) else sorted(name for name in fs.find(path) if _is_data(name, path))
    if not names:
        raise DataError(f"{url} contains no files. Check the input")
    return fs, names


def column_names(dialect: Dialect, *, header: bool) -> list[str]:
    """Return the names that the columns of a CSV get."""
    if header:
        return [name or f"_c{i}" for i, name in enumerate(dialect.columns)]
    return [f"column{i + 1}" for i in range(len(dialect.columns))]


def _refuse_duplicates(url: str, names: Sequence[str]) -> None:
    """Raise DataError if two columns have the same name to Spark, which would rename both."""
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if name and (earlier := seen.setdefault(name.lower(), i)) != i:
            other = names[earlier]
            fault = (
                f"are both called {name!r}" if other == name else f"({other!r}, {name!r}) differ only in case"
            )
            raise DataError(f"{url}: columns {earlier + 1} and {i + 1} {fault}. Rename or remove one of them")


def _is_data(name: str, root: str) -> bool:
    """Return True if Spark reads a file of this name."""
    parts = name.removeprefix(root).split("/")
    return not any(part.startswith(("_", ".")) for part in parts)


def _head(fs: Any, name: str) -> bytes:
    try:
        with fs.open(name, "rb") as file:
            head: bytes = file.read(_HEAD_BYTES)
            if head.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=io.BytesIO(head)) as unpacked:
                    return _until_end(unpacked)
            return head
    except OSError as exc:
        raise DataError(f"{name} cannot be read: {exc}") from cause(exc)


def _until_end(file: Any) -> bytes:
    """Decompress a file that is cut off, as far as possible."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < _HEAD_BYTES:
        try:
            part = file.read1(2**16)
        except EOFError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _encoding(name: str, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{name} is UTF-16. Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8; in Excel: CSV UTF-8)"
        )
    if b"\0" in head:
        raise DataError(
            f"{name} is not a text file. Export it as CSV (also from Excel), or use --format parquet"
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut off at the end
    except UnicodeDecodeError:
        return WINDOWS
    return UTF_8


def _separator(text: str) -> str:
    """The separator that gives the most fields, the same number in nearly all lines; by default a comma."""
    best, most = SEPARATORS[0], 1
    for separator in SEPARATORS:
        widths = [len(line) for line in _fields(text, separator)]
        if not widths:
            continue
        width, lines = Counter(widths).most_common(1)[0]
        if width > most and width == widths[0] and lines >= 0.9 * len(widths):
            best, most = separator, width
    return best


def _fields(text: str, separator: str) -> list[list[str]]:
    """The fields of the first lines, without the last one, which may be cut off."""
    found: list[list[str]] = []
    try:
        for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            if line:
                found.append(line)
            if len(found) > _LINES:
                break
    except csv.Error:  # a malformed line: Spark will report it
        pass
    return found[:-1] if len(found) > _LINES else found
