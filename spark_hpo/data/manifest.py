"""What the footers of a split say, read once: files, row groups, columns, rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.schema import ColumnKind, TableSchema
from spark_hpo.errors import DataError

_FOOTER_THREADS = 16  # footers are small: their cost is the round trip to the store


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One Parquet file of a split."""

    path: str  # as its file system takes it; absolute where it is local
    size: int  # bytes
    modified: float | None  # seconds since 1970; None where the store does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group that has rows."""

    file: int  # index into Manifest.files
    index: int  # within its file
    rows: int
    bytes: int  # decompressed, as the footer says


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files and row groups of one split, in the order of their names. Made of JSON types."""

    url: str
    files: tuple[File, ...]
    row_groups: tuple[RowGroup, ...]
    columns: Mapping[str, str]  # Arrow types, as text
    rows: int
    fingerprint: str  # changes with any path, size, modification time or number of rows

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        return cls(
            **{
                **record,
                "files": tuple(File(**f) for f in record["files"]),
                "row_groups": tuple(RowGroup(**g) for g in record["row_groups"]),
            }
        )


def read_manifest(url: str, schema: TableSchema | None = None) -> Manifest:
    """List the Parquet files of one split and read their footers, each once.

    Names that begin with `_` or `.` are skipped: `_common_metadata` is never opened, because Petastorm
    would unpickle it. With a `schema`, its columns are checked; without, all of them.

    Args:
        url: a folder or a file, as a local path or any fsspec URL.
        schema: the columns that are needed, and what they are used for.

    Raises:
        DataError: the path is missing, there are no rows, a file is not Parquet, a column is missing,
            changes its type between files, is not numeric, or has nulls.
    """
    url = files.absolute(url)
    fs, root = files.filesystem(url)
    found = _list(fs, root, url)
    with ThreadPoolExecutor(min(_FOOTER_THREADS, len(found))) as pool:
        footers = list(pool.map(partial(_footer, fs), (f.path for f in found)))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    needed = schema.columns if schema else tuple(schemas[0].names)
    _check_types(found, schemas, needed)
    if schema:
        _check_use(found[0], schemas[0], schema)
    for file, footer, arrow_schema in zip(found, footers, schemas, strict=True):
        _check_nulls(file, footer, arrow_schema, needed)
    row_groups = tuple(
        RowGroup(file=number, index=index, rows=group.num_rows, bytes=group.total_byte_size)
        for number, footer in enumerate(footers)
        for index, group in enumerate(map(footer.row_group, range(footer.num_row_groups)))
        if group.num_rows
    )
    if not row_groups:
        raise DataError(f"{url}: no rows in {len(found)} Parquet files: write the table again, with rows")
    return Manifest(
        url=url,
        files=tuple(found),
        row_groups=row_groups,
        columns={field.name: str(field.type) for field in schemas[0]},
        rows=sum(group.rows for group in row_groups),
        fingerprint=_fingerprint(root, found, footers),
    )


def _list(fs: Any, root: str, url: str) -> list[File]:
    try:
        entries = fs.ls(root, detail=True)
    except FileNotFoundError:
        raise DataError(f"{url}: no such file or folder: check the path of the table") from None
    except OSError as exc:
        raise DataError(f"{url}: cannot be listed: {exc}") from exc
    found = [
        File(path=entry["name"], size=entry["size"], modified=files.modified(entry))
        for entry in entries
        if entry["type"] == "file" and not entry["name"].rsplit("/", 1)[-1].startswith(("_", "."))
    ]
    if not found:
        raise DataError(f"{url}: holds no Parquet files: check the path, or prepare the table again")
    return sorted(found, key=lambda file: file.path)


def _footer(fs: Any, path: str) -> pq.FileMetaData:
    with files.reading(path), files.opened(fs, path) as source:
        return pq.read_metadata(source)


def _check_types(found: list[File], schemas: list[pa.Schema], needed: tuple[str, ...]) -> None:
    first = schemas[0]
    for file, schema in zip(found, schemas, strict=True):
        for name in needed:
            if name not in schema.names:
                raise DataError(
                    f"{file.path}: column {name!r} is missing (it has {', '.join(schema.names)}): "
                    "name another column, or prepare the table again"
                )
            if schema.field(name).type != first.field(name).type:
                raise DataError(
                    f"column {name!r} changes its type: {first.field(name).type} in {found[0].path}, "
                    f"{schema.field(name).type} in {file.path}: write all files with one type"
                )


def _check_use(file: File, arrow_schema: pa.Schema, schema: TableSchema) -> None:
    """Whether each column holds the numbers that its use asks for."""
    whole = (pa.types.is_integer, pa.types.is_boolean)
    any_number = (*whole, pa.types.is_floating)

    def check(name: str, tests: tuple[Any, ...], rule: str, *, array: bool = False) -> None:
        declared = arrow_schema.field(name).type
        is_array = pa.types.is_list(declared) or pa.types.is_fixed_size_list(declared)
        inner = declared.value_type if is_array else declared
        if is_array != array or not any(test(inner) for test in tests):
            raise DataError(
                f"{file.path}: column {name!r} is {declared}; {rule}: "
                "let jobs/prepare_data.py encode it, or cast it"
            )

    for feature in schema.features:
        match feature.kind:
            case ColumnKind.NUMERIC:
                check(feature.name, any_number, "a numeric feature must be a number")
            case ColumnKind.CATEGORICAL:
                check(feature.name, whole, "a categorical feature must be an integer code")
            case ColumnKind.ARRAY:
                check(feature.name, any_number, "an array feature must be a list of numbers", array=True)
    if schema.label.is_regression:
        check(schema.label.name, any_number, "the label of a regression must be a number")
    else:
        check(schema.label.name, whole, "the label of a classification must be an integer code")


def _check_nulls(
    file: File, footer: pq.FileMetaData, arrow_schema: pa.Schema, needed: tuple[str, ...]
) -> None:
    """Refuse nulls as far as the statistics tell; what they do not tell is found while reading."""
    first_leaf, leaf = {}, 0
    for field in arrow_schema:
        first_leaf[field.name] = leaf
        leaf += _leaves(field.type)
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        for name in needed:
            statistics = group.column(first_leaf[name]).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                raise DataError(
                    f"{file.path}: column {name!r} has {statistics.null_count} nulls in row group {index}; "
                    "a column must have none: let jobs/prepare_data.py encode them, or fill them"
                )


def _leaves(kind: pa.DataType) -> int:
    """How many Parquet columns store one Arrow column of this type."""
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _fingerprint(root: str, found: list[File], footers: list[pq.FileMetaData]) -> str:
    """Of what the files hold, as their footers tell: sizes, positions, statistics.

    No modification times: the same table copied, or prepared again, is the same table.
    """
    facts = [
        (file.path.removeprefix(root).lstrip("/"), file.size, footer.to_dict())
        for file, footer in zip(found, footers, strict=True)
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]
