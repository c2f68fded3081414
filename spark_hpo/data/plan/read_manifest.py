"""Makes manifests from the footers of a table: checks its columns, and counts the rows of each split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from spark_hpo.data import files
from spark_hpo.data.filter.condition import Condition
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.column_use import check_use
from spark_hpo.data.plan.footers import Footers, read_footers
from spark_hpo.data.plan.listing import relative
from spark_hpo.data.plan.manifest import Manifest, RowGroup
from spark_hpo.data.plan.nulls import check_nulls
from spark_hpo.data.plan.pruning import Candidate, matching_rows
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.schema import Source, TableFormat, TableSchema
from spark_hpo.errors import DataError, located

_MOST_NAMES = 50  # listed in a message


def read_manifest(
    url: str,
    schema: TableSchema | None = None,
    *,
    format: TableFormat | None = None,
    version: int | None = None,
    where: str = "",
    share: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Manifest:
    """List the Parquet files of one split and read their footers, each once.

    Names that begin with `_` or `.` are skipped, so `_common_metadata` is never opened. Folders named
    `column=value` are partitions.

    Args:
        url: a folder or a file; a local path or any fsspec URL.
        format: of the table; None detects it.
        version: of a Delta or Iceberg table; None means the newest.

    The other arguments are those of a `Source`, and the errors those of `manifests_of`.
    """
    found = read_footers(url, format, version, wheres=[where])
    [manifest] = manifests_of(found, schema, [Source(url=url, where=where, share=share, seed=seed)])
    return manifest


def manifests_of(
    found: Footers, schema: TableSchema | None, sources: Sequence[Source]
) -> tuple[Manifest, ...]:
    """Build the manifests of splits of one table. What statistics do not decide is read once for all of them.

    Args:
        schema: the columns to check and their use; None checks all columns.
        sources: the condition and the share of each split. Where partition values and statistics do not
            decide a condition, its columns are read and matching rows counted, so that every rank knows the
            exact counts.

    Raises:
        DataError: a split has no rows, or a column is missing, changes its type between files, has an
            unsupported type, or has nulls that no rule fills.
    """
    types = {column.name: column.type for column in found.schemas[0]}
    conditions = [_parsed(s.where, schema, found.schemas[0]) if s.where else None for s in sources]
    wanted = schema.stored if schema else tuple(types)
    for condition in conditions:
        _check_types(found, _needed(wanted, condition))
    if schema:
        with located(found.files[0].path, DataError):
            check_use(found.schemas[0], schema)
    return tuple(
        _manifest(found, schema, source, condition, _needed(wanted, condition), row_groups)
        for source, condition, row_groups in zip(
            sources, conditions, _row_groups(found, schema, sources), strict=True
        )
    )


def _needed(wanted: Sequence[str], condition: Condition | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*wanted, *(condition.columns if condition else ())]))


def _manifest(
    found: Footers,
    schema: TableSchema | None,
    source: Source,
    condition: Condition | None,
    needed: tuple[str, ...],
    row_groups: tuple[RowGroup, ...],
) -> Manifest:
    if not row_groups:
        raise DataError(_no_rows(found, source.where, source.share))
    if schema:
        whole = [(group.file, group.index, group.rows == group.stored_rows) for group in row_groups]
        check_nulls(found, schema, whole)
    # Every rank gets the manifest, and a lake table may have very many files.
    used = sorted({group.file for group in row_groups}) if found.lake else range(len(found.files))
    number_of = {old: new for new, old in enumerate(used)}
    return Manifest(
        url=found.url,
        files=tuple(found.files[number] for number in used),
        row_groups=tuple(replace(group, file=number_of[group.file]) for group in row_groups),
        columns={column.name: str(column.type) for column in found.schemas[0]},
        rows=sum(group.rows for group in row_groups),
        fingerprint=_fingerprint(found, [source.where, source.share, source.seed]),
        partitions={name: partitions.type_text(kind) for name, kind in found.partition_types.items()},
        absent=_absent(found, needed),
        where=source.where,
        where_columns=condition.columns if condition else (),
    )


def _parsed(where: str, schema: TableSchema | None, columns: pa.Schema) -> Condition:
    from spark_hpo.data.filter.where import parse_where  # imports a SQL parser, which most tables do not need

    return parse_where(where, schema, {column.name: column.type for column in columns})


def _absent(found: Footers, needed: tuple[str, ...]) -> dict[str, str]:
    """Return the types of the needed columns that some files lack, as text."""
    stored = {id(footer.schema): set(footer.schema.names) for footer in found.footers}.values()
    lacked = {name for names in stored for name in needed if name not in names}
    return {
        column.name: partitions.type_text(column.type)
        for column in (found.lake.schema if found.lake is not None else ())
        if column.name in lacked and column.name not in found.partition_types
    }


def _row_groups(
    found: Footers, schema: TableSchema | None, sources: Sequence[Source]
) -> list[tuple[RowGroup, ...]]:
    """Return, for each source, the row groups that are in its share and have matching rows."""
    # Files of different writers may store a column in different types.
    parsed = {
        (id(columns), source.where): _parsed(source.where, schema, columns)
        for columns in {id(s): s for s in found.schemas}.values()
        for source in sources
        if source.where
    }
    stored = []
    candidates = []
    for number, (file, footer) in enumerate(zip(found.files, found.footers, strict=True)):
        name, columns = relative(file.path, found.root), id(found.schemas[number])
        for index, (rows, size) in enumerate(footer.row_groups):
            own = [i for i, s in enumerate(sources) if in_share(name, index, s.share, s.seed)]
            if not own:
                continue
            wheres = tuple(dict.fromkeys(sources[i].where for i in own if sources[i].where))
            conditions = tuple(parsed[columns, where] for where in wheres)
            if conditions:
                candidates.append(Candidate(file, footer, index, found.constants(number), conditions))
            group = RowGroup(file=number, index=index, rows=rows, stored_rows=rows, bytes=size)
            stored.append((group, own, wheres))
    fs, _ = files.filesystem(found.url)
    counts = iter(matching_rows(fs, candidates) if candidates else ())
    chosen: list[list[RowGroup]] = [[] for _ in sources]
    for group, own, wheres in stored:
        matching = dict(zip(wheres, next(counts), strict=True)) if wheres else {}
        for i in own:
            if rows := matching.get(sources[i].where, group.stored_rows):
                chosen[i].append(replace(group, rows=rows))
    return [tuple(groups) for groups in chosen]


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
    checked: set[int] = set()
    for file, footer, schema in zip(found.files, found.footers, found.schemas, strict=True):
        if id(schema) in checked or (found.lake is None and schema is not first and schema.equals(first)):
            continue
        checked.add(id(schema))
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
            if found.lake is not None:
                if fault := found.lake.fault(name, footer.schema):
                    raise DataError(
                        f"{file.path}: column {name!r} {fault}. Leave the column out (data.drop), or let "
                        "Spark read the table: data.query writes its rows to a snapshot folder once",
                        file=file.path,
                    )
            elif schema.field(name).type != first.field(name).type:
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
