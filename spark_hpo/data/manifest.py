"""What the footers of a split say, read once: files, row groups, columns, rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files, partitions
from spark_hpo.data.column_use import check_use
from spark_hpo.data.condition import Condition
from spark_hpo.data.pruning import Candidate, matching_rows
from spark_hpo.data.schema import ColumnKind, NullRule, TableSchema
from spark_hpo.data.shares import in_share
from spark_hpo.errors import DataError

logger = logging.getLogger(__name__)

_FOOTER_THREADS = 16  # footers are small: their cost is the round trip to the store


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One Parquet file of a split."""

    path: str  # as its file system takes it; absolute where it is local
    size: int  # bytes
    modified: float | None  # seconds since 1970; None where the store does not say
    partition: Mapping[str, str | None] = field(default_factory=dict)  # of its folders, as text


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group that has rows which are wanted."""

    file: int  # index into Manifest.files
    index: int  # within its file
    rows: int  # that match the filter
    stored_rows: int  # in the file
    bytes: int  # decompressed, as the footer says


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files and row groups of one split, in the order of their names. Made of JSON types."""

    url: str
    files: tuple[File, ...]
    row_groups: tuple[RowGroup, ...]
    columns: Mapping[str, str]  # Arrow types, as text; those of partitions too
    rows: int
    fingerprint: str  # changes with any path, size, statistic or number of rows, and with the filter
    partitions: Mapping[str, str] = field(default_factory=dict)  # Arrow types, as text
    where: str = ""  # the filter
    where_columns: tuple[str, ...] = ()  # stored columns that it looks at

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        return cls(
            **{
                **record,
                "files": tuple(File(**f) for f in record["files"]),
                "row_groups": tuple(RowGroup(**g) for g in record["row_groups"]),
                "where_columns": tuple(record["where_columns"]),
            }
        )


def read_manifest(
    url: str,
    schema: TableSchema | None = None,
    *,
    where: str = "",
    share: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Manifest:
    """List the Parquet files of one split and read their footers, each once.

    Names that begin with `_` or `.` are skipped: `_common_metadata` is never opened here. Folders named
    `column=value` are partitions. With a `schema`, its columns are checked; without, all of them.

    Args:
        url: a folder or a file, as a local path or any fsspec URL.
        schema: the columns that are needed, and what they are used for.
        where: a condition on the rows. Partitions and statistics decide what they can; of other row groups
            the filter's columns are read and the rows counted, so that every rank knows how many there are.
        share: of the row groups, by `in_share`.
        seed: of the share.

    Raises:
        DataError: the path is missing, there are no rows, a file is not Parquet, a column is missing,
            changes its type between files, is of a type without use, or has nulls that no rule fills.
    """
    url = files.absolute(url)
    fs, root = files.filesystem(url)
    found = list_files(url)
    with ThreadPoolExecutor(min(_FOOTER_THREADS, len(found))) as pool:
        footers = list(pool.map(partial(_footer, fs), (f.path for f in found)))
    partition_types = partitions.infer_types([file.partition for file in found], url)
    schemas = [
        partitions.with_partitions(footer.schema.to_arrow_schema(), partition_types) for footer in footers
    ]
    types = {column.name: column.type for column in schemas[0]}
    condition = None
    if where:
        from spark_hpo.data.where import parse_where  # a table without a filter needs no parser

        condition = parse_where(where, schema, types)
    wanted = schema.stored if schema else tuple(types)
    needed = tuple(dict.fromkeys([*wanted, *(condition.columns if condition else ())]))
    _check_types(found, schemas, needed)
    if schema:
        check_use(found[0].path, schemas[0], schema)
        _check_nulls(found, footers, schema, partition_types)
    row_groups = _row_groups(fs, root, found, footers, partition_types, condition, share, seed)
    if not row_groups:
        raise DataError(_no_rows(url, found, where, share))
    return Manifest(
        url=url,
        files=tuple(found),
        row_groups=row_groups,
        columns={name: str(kind) for name, kind in types.items()},
        rows=sum(group.rows for group in row_groups),
        fingerprint=_fingerprint(root, found, footers, [where, share, seed]),
        partitions={name: str(kind) for name, kind in partition_types.items()},
        where=where,
        where_columns=condition.columns if condition else (),
    )


def _row_groups(
    fs: Any,
    root: str,
    found: list[File],
    footers: list[pq.FileMetaData],
    partition_types: Mapping[str, pa.DataType],
    condition: Condition | None,
    share: tuple[float, float],
    seed: int,
) -> tuple[RowGroup, ...]:
    """Those that are in the share and have rows that match."""
    stored = [
        (number, index, footer.row_group(index))
        for number, footer in enumerate(footers)
        for index in range(footer.num_row_groups)
        if in_share(_relative(found[number].path, root), index, share, seed)
    ]
    rows = [group.num_rows for _, _, group in stored]
    if condition is not None:
        rows = matching_rows(
            fs,
            condition,
            [
                Candidate(
                    found[n].path, footers[n], i, partitions.values(found[n].partition, partition_types)
                )
                for n, i, _ in stored
            ],
        )
    return tuple(
        RowGroup(
            file=number, index=index, rows=matching, stored_rows=group.num_rows, bytes=group.total_byte_size
        )
        for (number, index, group), matching in zip(stored, rows, strict=True)
        if matching
    )


def _no_rows(url: str, found: list[File], where: str, share: tuple[float, float]) -> str:
    place = f"{url}: no rows in {len(found)} Parquet files"
    if where:
        return f"{place} match {where!r}: check the condition"
    if share != (0.0, 1.0):
        return (
            f"{place} fall into the share {share[0]:.4g} to {share[1]:.4g} of the row groups: "
            "prepare the table with splits by conditions, or write it with smaller row groups"
        )
    return f"{place}: write the table again, with rows"


def list_files(url: str) -> list[File]:
    """The Parquet files at `url`, those of partitions too, in the order of their names.

    Raises:
        DataError: there are none, or the folder is no plain table.
    """
    fs, root = files.filesystem(url)
    try:
        if not fs.exists(root):
            raise FileNotFoundError(root)
        entries = [fs.info(root)] if fs.isfile(root) else list(fs.find(root, detail=True).values())
        lakes = [name for name in ("_delta_log", "metadata/version-hint.text") if fs.exists(f"{root}/{name}")]
    except FileNotFoundError:
        raise DataError(f"{url}: no such file or folder: check the path of the table") from None
    except OSError as exc:
        raise DataError(f"{url}: cannot be listed: {exc}") from exc
    if lakes:
        raise DataError(
            f"{url}: has {lakes[0]}, so its files hold rows that are not in the table any more: "
            "let Spark write it as Parquet"
        )
    found = []
    for entry in entries:
        *folders, name = _relative(entry["name"], root).split("/")
        if any(part.startswith(("_", ".")) for part in [*folders, name]):
            continue
        partition = partitions.parse(folders, url)
        size, modified = entry["size"], files.modified(entry)
        found.append(File(path=entry["name"], size=size, modified=modified, partition=partition))
    if not found:
        raise DataError(f"{url}: holds no Parquet files: check the path, or prepare the table again")
    return sorted(found, key=lambda file: file.path)


def _relative(path: str, root: str) -> str:
    """The path below the root; a root that is a file is below its folder."""
    return path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]


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


def _check_nulls(
    found: list[File],
    footers: list[pq.FileMetaData],
    schema: TableSchema,
    partition_types: Mapping[str, pa.DataType],
) -> None:
    """Refuse nulls as far as the statistics tell, and say how many are filled.

    What the statistics do not tell is found while reading.
    """
    # Of a list they count empty ones, too.
    told = [f for f in schema.features if not f.marks_missing and f.kind is not ColumnKind.SEQUENCE]
    refused = {schema.stored_name(f) for f in told if f.nulls is NullRule.REFUSE} | {schema.label.name}
    filled: dict[str, int] = {}
    for file, footer in zip(found, footers, strict=True):
        for name in dict.fromkeys([*map(schema.stored_name, told), schema.label.name]):
            if name in partition_types:
                nulls = {0: footer.num_rows if file.partition[name] is None else 0}
            else:
                nulls = _nulls(footer, name)
            for index, count in nulls.items():
                if count and name in refused:
                    raise DataError(
                        f"{file.path}: column {name!r} has {count} nulls in row group {index}; "
                        "a column must have none: let jobs/prepare_data.py encode them, or fill them"
                    )
                filled[name] = filled.get(name, 0) + count
    for name, count in filled.items():
        if count:
            logger.info("column %r: %d nulls are filled by its rule in schema.json", name, count)


def _nulls(footer: pq.FileMetaData, name: str) -> dict[int, int]:
    """Nulls by row group, of those that have such statistics."""
    first_leaf = 0
    for column in footer.schema.to_arrow_schema():
        if column.name == name:
            break
        first_leaf += _leaves(column.type)
    nulls = {}
    for index in range(footer.num_row_groups):
        statistics = footer.row_group(index).column(first_leaf).statistics
        if statistics is not None and statistics.has_null_count:
            nulls[index] = statistics.null_count
    return nulls


def _leaves(kind: pa.DataType) -> int:
    """How many Parquet columns store one Arrow column of this type."""
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _fingerprint(root: str, found: list[File], footers: list[pq.FileMetaData], choice: list[Any]) -> str:
    """Of what the files hold, as their footers tell: sizes, positions, statistics.

    No modification times: the same table copied, or prepared again, is the same table.
    """
    facts: list[Any] = [
        (_relative(file.path, root), file.size, footer.to_dict())
        for file, footer in zip(found, footers, strict=True)
    ]
    if choice != ["", (0.0, 1.0), 0]:
        facts.append(choice)
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]
