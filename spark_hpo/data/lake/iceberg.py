"""Iceberg tables, through the package pyiceberg, from their metadata file; no catalog is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds
from spark_hpo.data.lake.table_version import TableVersion, bounds_of, cure, missing_package
from spark_hpo.data.plan.partitions import as_text
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import DataError, cause
from spark_hpo.redact import redact

METADATA = "metadata"
METADATA_SUFFIX = ".metadata.json"
_NEWEST_FORMAT = 2
_SEQUENCE = re.compile(r"v?(\d+)[-.]")
_FILE_IO = "pyiceberg.io.fsspec.FsspecFileIO"  # the same file systems and credentials as everywhere here
_EPOCH = date(1970, 1, 1)


def find_version(url: str, wanted: int | datetime | None) -> int:
    """Return the id of the snapshot that is current, or was current at a time, or check an id.

    Raises:
        DataError: there is no such snapshot, or the metadata cannot be read.
    """
    table = _open(url)
    if isinstance(wanted, datetime):
        snapshot = table.snapshot_as_of_timestamp(int(wanted.timestamp() * 1000))
        if snapshot is None:
            raise DataError(f"{url} has no snapshot of {wanted.isoformat()}. {_known(table)}")
        return int(snapshot.snapshot_id)
    snapshot = table.current_snapshot() if wanted is None else table.snapshot_by_id(wanted)
    if snapshot is None:
        if wanted is None:
            raise DataError(f"{url} has no snapshot: nothing has been written to it yet")
        raise DataError(f"{url} has no snapshot {wanted}. {_known(table)}")
    return int(snapshot.snapshot_id)


def read_version(url: str, version: int) -> TableVersion:
    """Return the data files of one snapshot.

    Raises:
        DataError: there is no such snapshot, or it uses a feature that is not supported.
    """
    find_version(url, version)
    table = _open(url)
    query = cure("<the name of the table in its catalog>")
    if table.metadata.format_version > _NEWEST_FORMAT:
        raise DataError(f"{url} has version {table.metadata.format_version} of Iceberg's format. {query}")
    with _reading(url):
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        scan = table.scan(snapshot_id=version)
        projection = scan.projection()
        schema = schema_to_pyarrow(projection, include_field_ids=False)
        tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)
    fs, _ = files.filesystem(url)
    for task in tasks:
        place = f"{url}: snapshot {version}: {task.file.file_path}"
        if task.delete_files:
            raise DataError(f"{place} has rows that are deleted by delete files. {query}")
        if task.file.file_format.value != "PARQUET":
            raise DataError(f"{place} is of the format {task.file.file_format.value}. {query}")
    partition_columns, partly_known = _identities(table, tasks, projection)
    ids = {column.name: column.field_id for column in projection.fields}
    return TableVersion(
        url=url,
        format=TableFormat.ICEBERG,
        version=version,
        files=tuple(_file(fs, url, table, task, partition_columns) for task in tasks),
        schema=schema,
        partition_types={name: schema.field(name).type for name in partition_columns},
        bounds=lambda column: _bounds(tasks, projection, column),
        field_ids=ids,
        renamed=frozenset(_renamed(table, ids)),
        partly_known=partly_known,
    )


def _open(url: str) -> Any:
    try:
        from pyiceberg.table import StaticTable
    except ImportError as exc:
        raise missing_package(url, TableFormat.ICEBERG, "pyiceberg", exc) from exc
    place = metadata_file(url)
    if place is None:
        raise DataError(f"{url} has no file *{METADATA_SUFFIX}. Check the path")
    with _reading(url):
        return StaticTable.from_metadata(place, properties={"py-io-impl": _FILE_IO})


def metadata_file(url: str) -> str | None:
    """Return the newest metadata file of a table, or None if it has none.

    Raises:
        DataError: two files claim to be the newest.
    """
    if url.endswith(METADATA_SUFFIX):
        return url
    folder = files.join(url, METADATA)
    fs, path = files.filesystem(folder)
    with files.accessing(url):
        try:
            names = [name.rpartition("/")[2] for name in fs.ls(path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return None
    numbered = [
        (int(match[1]), name)
        for name in names
        if name.endswith(METADATA_SUFFIX) and (match := _SEQUENCE.match(name))
    ]
    if not numbered:
        return None
    newest = sorted(name for number, name in numbered if number == max(numbered)[0])
    if len(newest) > 1:
        raise DataError(
            f"{url} has two newest metadata files: {newest[0]} and {newest[1]}. Ask the catalog of the table "
            "which one is current, and use its path as data.path"
        )
    return files.join(folder, newest[0])


def _known(table: Any) -> str:
    known = [
        f"{snapshot.snapshot_id} of {datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).isoformat()}"
        for snapshot in table.snapshots()
    ]
    shown = ", ".join(known[-10:]) or "none"
    return f"It has the snapshots {shown}. Use one of them, or leave data.version out for the newest"


def _file(fs: Any, url: str, table: Any, task: Any, partition_columns: Sequence[str]) -> File:
    file = task.file
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    protocol = file.file_path.partition("://")[0] if "://" in file.file_path else "file"
    if protocol not in protocols:
        raise DataError(
            f"{url}: its file {file.file_path} is on another file system. Use the path of the table there"
        )
    spec = table.specs()[file.spec_id]
    values = {
        table.schema().find_column_name(part.source_id): file.partition[position]
        for position, part in enumerate(spec.fields)
    }
    return File(
        path=str(fs._strip_protocol(file.file_path)),
        size=file.file_size_in_bytes,
        modified=None,
        partition={name: as_text(_python(table, name, values[name])) for name in partition_columns},
    )


def _identities(table: Any, tasks: Sequence[Any], projection: Any) -> tuple[list[str], frozenset[str]]:
    """Return the columns whose value the metadata has for every file, and for some files only."""
    from pyiceberg.transforms import IdentityTransform

    specs = table.specs()
    found = [
        {part.source_id for part in specs[number].fields if isinstance(part.transform, IdentityTransform)}
        for number in {task.file.spec_id for task in tasks}
    ]
    shared = set.intersection(*found) if found else set()
    some = set().union(*found) - shared
    names = {column.field_id: column.name for column in projection.fields}
    everywhere = [name for number, name in names.items() if number in shared]
    return everywhere, frozenset(name for number, name in names.items() if number in some)


def _renamed(table: Any, ids: dict[str, int]) -> Iterator[str]:
    """Yield the columns whose name or id has been another one in an earlier schema."""
    names = {own: name for name, own in ids.items()}
    for schema in table.schemas().values():
        for column in schema.fields:
            if ids.get(column.name, column.field_id) != column.field_id:
                yield column.name
            if (now := names.get(column.field_id, column.name)) != column.name:
                yield now


def _bounds(tasks: Sequence[Any], projection: Any, column: str) -> list[Bounds | None]:
    from pyiceberg.conversions import from_bytes

    known = next((f for f in projection.fields if f.name == column and f.field_type.is_primitive), None)
    if known is None:
        return [None] * len(tasks)
    number, kind = known.field_id, known.field_type

    def value(stored: dict[int, bytes] | None) -> Any:
        if not stored or number not in stored:
            return None
        return _converted(kind, from_bytes(kind, stored[number]))

    return [
        bounds_of(
            value(task.file.lower_bounds),
            value(task.file.upper_bounds),
            (task.file.null_value_counts or {}).get(number),
            task.file.record_count,
        )
        for task in tasks
    ]


def _python(table: Any, column: str, value: Any) -> Any:
    return _converted(table.schema().find_field(column).field_type, value)


def _converted(kind: Any, value: Any) -> Any:
    """Return a value of Iceberg's metadata as Parquet's statistics have it."""
    from pyiceberg import types as t

    if not isinstance(value, int):
        return value
    if isinstance(kind, t.DateType):
        return _EPOCH + timedelta(days=value)
    if isinstance(kind, t.TimestampType | t.TimestamptzType):
        zone = UTC if isinstance(kind, t.TimestamptzType) else None
        return datetime(1970, 1, 1, tzinfo=zone) + timedelta(microseconds=value)
    return value


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Raise what pyiceberg raises about a table as `DataError` that names it."""
    try:
        yield
    except Exception as exc:  # pyiceberg's exceptions have no common class, and pydantic's are ValueErrors
        known = isinstance(exc, ValueError | OSError | KeyError | TypeError | NotImplementedError)
        if not known and not type(exc).__module__.startswith("pyiceberg"):
            raise
        raise DataError(f"{url}: its Iceberg metadata cannot be read: {redact(str(exc))}") from cause(exc)
