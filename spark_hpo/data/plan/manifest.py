"""The manifest of a split: files, row groups, columns and row counts, from Parquet footers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.filter.condition import Condition
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.column_use import check_use
from spark_hpo.data.plan.footers import Footers, read_footers
from spark_hpo.data.plan.listing import File, relative
from spark_hpo.data.plan.nulls import check_nulls
from spark_hpo.data.plan.pruning import Candidate, matching_rows
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import DataError, located

_MOST_NAMES = 50  # listed in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group with at least one matching row."""

    file: int  # index into Manifest.files
    index: int  # within its file
    rows: int  # rows that match the filter
    stored_rows: int  # in the file
    bytes: int  # uncompressed, from the footer


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files and row groups of one split, in the order of file names. Made of JSON types."""

    url: str
    files: tuple[File, ...]
    row_groups: tuple[RowGroup, ...]
    columns: Mapping[str, str]  # Arrow types as text, including partition columns
    rows: int
    fingerprint: str  # changes with any path, size, statistic or number of rows, and with the filter
    partitions: Mapping[str, str] = field(default_factory=dict)  # Arrow types, as text
    where: str = ""  # the filter
    where_columns: tuple[str, ...] = ()  # stored columns that the filter refers to

    def without(self, paths: Collection[str]) -> Manifest:
        """Return the split without these files. Unknown paths are ignored.

        Raises:
            DataError: no rows are left.
        """
        gone = sorted(file.path for file in self.files if file.path in paths)
        if not gone:
            return self
        kept = [number for number, file in enumerate(self.files) if file.path not in paths]
        number_of = {old: new for new, old in enumerate(kept)}
        groups = tuple(
            replace(group, file=number_of[group.file]) for group in self.row_groups if group.file in number_of
        )
        if not groups:
            raise DataError(f"{self.url}: no rows are left without {', '.join(gone)}. Fix the files")
        return replace(
            self,
            files=tuple(self.files[number] for number in kept),
            row_groups=groups,
            rows=sum(group.rows for group in groups),
            fingerprint=hashlib.sha256(json.dumps([self.fingerprint, gone]).encode()).hexdigest(),
        )

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

    Names that begin with `_` or `.` are skipped, so `_common_metadata` is never opened. Folders named
    `column=value` are partitions.

    Args:
        url: a folder or a file; a local path or any fsspec URL.

    The other arguments and the errors are those of `manifest_of`.
    """
    return manifest_of(read_footers(url), schema, where=where, share=share, seed=seed)


def manifest_of(
    found: Footers,
    schema: TableSchema | None = None,
    *,
    where: str = "",
    share: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Manifest:
    """Build the manifest of one split of a table.

    Args:
        schema: the columns to check and their use; None checks all columns.
        where: a condition on the rows. Where partition values and statistics do not decide, the filter's
            columns are read and matching rows counted, so that every rank knows the exact counts.
        share: the share of the row groups that the split gets; see `in_share`.
        seed: the seed of the share.

    Raises:
        DataError: there are no rows, or a column is missing, changes its type between files, has an
            unsupported type, or has nulls that no rule fills.
    """
    types = {column.name: column.type for column in found.schemas[0]}
    condition = None
    if where:
        from spark_hpo.data.filter.where import (
            parse_where,
        )  # imports a SQL parser, which most tables do not need

        condition = parse_where(where, schema, types)
    wanted = schema.stored if schema else tuple(types)
    _check_types(found, tuple(dict.fromkeys([*wanted, *(condition.columns if condition else ())])))
    if schema:
        with located(found.files[0].path, DataError):
            check_use(found.schemas[0], schema)
    row_groups = _row_groups(found, condition, share, seed)
    if not row_groups:
        raise DataError(_no_rows(found, where, share))
    if schema:
        whole = [(group.file, group.index, group.rows == group.stored_rows) for group in row_groups]
        check_nulls(found, schema, whole)
    return Manifest(
        url=found.url,
        files=found.files,
        row_groups=row_groups,
        columns={name: str(kind) for name, kind in types.items()},
        rows=sum(group.rows for group in row_groups),
        fingerprint=_fingerprint(found, [where, share, seed]),
        partitions={name: str(kind) for name, kind in found.partition_types.items()},
        where=where,
        where_columns=condition.columns if condition else (),
    )


def _row_groups(
    found: Footers, condition: Condition | None, share: tuple[float, float], seed: int
) -> tuple[RowGroup, ...]:
    """Return the row groups that are in the share and have matching rows."""
    stored = [
        (number, index, footer.row_group(index))
        for number, footer in enumerate(found.footers)
        for index in range(footer.metadata.num_row_groups)
        if in_share(relative(found.files[number].path, found.root), index, share, seed)
    ]
    rows = [group.num_rows for _, _, group in stored]
    if condition is not None:
        fs, _ = files.filesystem(found.url)
        constants = [partitions.values(file.partition, found.partition_types) for file in found.files]
        candidates = [
            Candidate(found.files[number].path, found.footers[number], index, constants[number])
            for number, index, _ in stored
        ]
        rows = matching_rows(fs, condition, candidates)
    return tuple(
        RowGroup(
            file=number, index=index, rows=matching, stored_rows=group.num_rows, bytes=group.total_byte_size
        )
        for (number, index, group), matching in zip(stored, rows, strict=True)
        if matching
    )


def _no_rows(found: Footers, where: str, share: tuple[float, float]) -> str:
    place = f"{found.url} has {len(found.files)} Parquet files, but no rows"
    if where:
        return f"{place} that match {where!r}. Check the condition"
    if share != (0.0, 1.0):
        return (
            f"{place} in the share {share[0]:.4g} to {share[1]:.4g} of the row groups. Prepare the table "
            "with splits by conditions, or write it with smaller row groups"
        )
    return f"{place}. Write the table again"


def _check_types(found: Footers, needed: tuple[str, ...]) -> None:
    first = found.schemas[0]
    for file, schema in zip(found.files, found.schemas, strict=True):
        if schema is not first and schema.equals(first):
            continue
        for name in needed:
            if name not in schema.names:
                names = ", ".join(schema.names[:_MOST_NAMES]) + (", ..." if len(schema) > _MOST_NAMES else "")
                raise DataError(
                    f"{file.path}: column {name!r} is missing (it has {names}): "
                    "use another column, or prepare the table again"
                )
            if schema.names.count(name) > 1:
                count = schema.names.count(name)
                raise DataError(f"{file.path}: {count} columns are named {name!r}. Rename all but one")
            if schema.field(name).type != first.field(name).type:
                raise DataError(
                    f"column {name!r} is {first.field(name).type} in {found.files[0].path}, but "
                    f"{schema.field(name).type} in {file.path}. Write all files with the same type"
                )


def _fingerprint(found: Footers, choice: list[Any]) -> str:
    """Hash the contents of the files and the choice of rows."""
    facts = found.facts
    if choice != ["", (0.0, 1.0), 0]:
        facts = f"{facts[:-1]}, {json.dumps(choice)}]"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]
