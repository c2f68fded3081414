"""Delta tables, through the package deltalake, which reads the log without Spark."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from fsspec.config import conf

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds
from spark_hpo.data.lake.table_version import TableVersion, bounds_of, cure, missing_package
from spark_hpo.data.plan.partitions import as_text
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import DataError, cause
from spark_hpo.redact import redact

LOG = "_delta_log"
# Reader features that leave the meaning of a plain Parquet file as it is, or that are checked below.
_READABLE = {
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
}
_PHYSICAL_NAME = "delta.columnMapping.physicalName"
_COMMIT = re.compile(r"(\d{20})\.json")


def find_version(url: str, wanted: int | datetime | None) -> int:
    """Return the number of the version that is newest, or newest at a time, or check a number.

    Raises:
        DataError: there is no such version, or the log cannot be read.
    """
    if isinstance(wanted, datetime):
        table = _open(url, None)
        with _reading(url):
            table.load_as_version(wanted.astimezone(UTC))
            version = int(table.version())
            first = _versions(url)[0]
            if version == first:
                began = datetime.fromtimestamp(table.history(1)[0].get("timestamp", 0) / 1000, UTC)
                if began > wanted:
                    raise DataError(
                        f"{url} has no version of {wanted.isoformat()}: its first is version {first} of "
                        f"{began.isoformat(timespec='seconds')}. Use a later time"
                    )
        return version
    return int(_open(url, wanted).version())


def read_version(url: str, version: int) -> TableVersion:
    """Return the active files of one version.

    Raises:
        DataError: there is no such version, or it uses a feature that is not supported.
    """
    table = _open(url, version)
    with _reading(url):
        schema = pa.schema(table.schema().to_arrow())
        _check_features(url, table)
        actions = pa.table(table.get_add_actions())
        partition_columns = table.metadata().partition_columns
    actions = actions.sort_by("path").combine_chunks()
    fs, root = files.filesystem(url)
    partitions = _texts(actions, partition_columns)
    found = tuple(
        File(path=_path(fs, root, url, path), size=size, modified=None, partition=partition)
        for path, size, partition in zip(
            actions.column("path").to_pylist(),
            actions.column("size_bytes").to_pylist(),
            partitions,
            strict=True,
        )
    )
    return TableVersion(
        url=url,
        format=TableFormat.DELTA,
        version=version,
        files=found,
        schema=schema,
        partition_types={name: schema.field(name).type for name in partition_columns},
        bounds=lambda column: _bounds(actions, column),
    )


def _open(url: str, version: int | None) -> Any:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as exc:
        raise missing_package(url, TableFormat.DELTA, "deltalake", exc) from exc
    with _reading(url):
        try:
            return DeltaTable(url, version=version, storage_options=_storage_options(url))
        except (DeltaError, OverflowError):
            first, last = _versions(url)
            if version is None or first <= version <= last:
                raise
            raise DataError(
                f"{url} has no version {version}: its log has the versions {first} to {last}. Use one of "
                "them, or leave data.version out for the newest"
            ) from None


def _versions(url: str) -> tuple[int, int]:
    """Return the first and the last version whose commit the log still has."""
    fs, path = files.filesystem(files.join(url, LOG))
    with files.accessing(url):
        matches = (_COMMIT.fullmatch(name.rpartition("/")[2]) for name in fs.ls(path, detail=False))
    numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        raise DataError(f"{url}: its Delta log is empty. Check the path")
    return min(numbers), max(numbers)


def _check_features(url: str, table: Any) -> None:
    query = cure(f"delta.`{url}`")
    protocol = table.protocol()
    features = set(protocol.reader_features or ())
    if unknown := sorted(features - _READABLE):
        raise DataError(f"{url} needs the Delta feature {unknown[0]}, which is not supported. {query}")
    if "deletionVectors" in features and _has_deletion_vectors(table):
        raise DataError(f"{url} has rows that are deleted by deletion vectors. {query}")
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        for name, stored in _physical_names(json.loads(table.schema().to_json())):
            if name != stored:
                raise DataError(
                    f"{url} has Delta's column mapping: column {name!r} is stored as {stored!r}. {query}"
                )


def _has_deletion_vectors(table: Any) -> bool:
    from deltalake.exceptions import DeltaError

    try:
        return bool(pa.table(table.deletion_vectors()).num_rows)
    except DeltaError:  # it reads the vectors, and cannot read all of them
        return True


def _physical_names(schema: Any) -> Iterator[tuple[str, str]]:
    if isinstance(schema, Mapping):
        if "name" in schema and "metadata" in schema:
            yield schema["name"], schema["metadata"].get(_PHYSICAL_NAME, schema["name"])
        for value in schema.values():
            yield from _physical_names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _physical_names(value)


def _path(fs: Any, root: str, url: str, path: str) -> str:
    """Return the path of a file on its file system; the log has it URL-encoded, below the table."""
    path = unquote(path)
    if "://" not in path and not path.startswith("/"):
        return f"{root.rstrip('/')}/{path}"
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "://" in path and path.partition("://")[0] not in protocols:
        raise DataError(f"{url}: its file {path} is on another file system. {cure(f'delta.`{url}`')}")
    return str(fs._strip_protocol(path))


def _texts(actions: pa.Table, columns: Sequence[str]) -> list[dict[str, str | None]]:
    """Return the partition values of each file, as text."""
    if not columns:
        return [{} for _ in range(actions.num_rows)]
    values = [_values(actions, "partition", name) for name in columns]
    return [
        {name: as_text(value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*values, strict=True)
    ]


def _values(actions: pa.Table, group: str, column: str) -> list[Any]:
    """Return what the log has about a column of each file; group is partition, min, max or null_count."""
    if group in actions.column_names:
        struct = pa.concat_arrays(actions.column(group).chunks)
        if (index := struct.type.get_field_index(column)) >= 0:
            values: list[Any] = struct.flatten()[index].to_pylist()
            return values
    return [None] * actions.num_rows


def _bounds(actions: pa.Table, column: str) -> list[Bounds | None]:
    known = (_values(actions, group, column) for group in ("min", "max", "null_count"))
    rows = actions.column("num_records").to_pylist()
    return [bounds_of(*values) for values in zip(*known, rows, strict=True)]


def _storage_options(url: str) -> dict[str, str] | None:
    """Return what the object store needs beyond its own environment: the endpoint that fsspec has."""
    if not url.startswith(("s3://", "s3a://")):
        return None
    settings = {**conf.get("s3", {})}
    settings.update(settings.get("client_kwargs") or {})
    names = {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "key": "AWS_ACCESS_KEY_ID",
        "secret": "AWS_SECRET_ACCESS_KEY",
        "token": "AWS_SESSION_TOKEN",
        "region_name": "AWS_REGION",
    }
    options = {name: str(settings[key]) for key, name in names.items() if settings.get(key)}
    endpoint = options.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL", "")
    return {**options, **({"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {})}


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Raise what deltalake raises about a table as `DataError` that names it."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as exc:
        raise DataError(
            f"{url}: its Delta log cannot be read: {redact(str(exc))}. {cure(f'delta.`{url}`')}"
        ) from cause(exc)
