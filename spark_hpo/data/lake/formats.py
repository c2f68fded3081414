"""The format of a table, and the files of one of its versions."""

from __future__ import annotations

from datetime import date
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.lake.table_version import TableVersion, parse_version
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import ConfigError, DataError

_HUDI = ".hoodie"


def table_format(url: str) -> TableFormat:
    """Detect the format of the table at `url` from the files beside its data.

    Raises:
        DataError: it is a Hudi table, or a part of a table that only the log of the whole table describes:
            its files may hold rows that the table has deleted.
    """
    from spark_hpo.data.lake import iceberg

    url = files.absolute(url)
    if url.endswith(iceberg.METADATA_SUFFIX):
        return TableFormat.ICEBERG
    fs, root = files.filesystem(url)
    root = folder = root.rstrip("/")
    with files.accessing(url):
        if fs.isfile(folder):
            folder = folder.rpartition("/")[0]
        while True:
            found = _format_of(fs, folder)
            if found == _HUDI:
                raise DataError(
                    f"{url} is a Hudi table, whose Parquet files also hold deleted rows. Let Spark read it: "
                    "data.query writes the rows to a snapshot folder once"
                )
            if found is not None and folder == root:
                return TableFormat(found)
            if found is not None:
                raise DataError(
                    f"{url} is a part of the {found} table {folder}; its files may hold deleted rows. Use "
                    "the whole table, with a condition on its rows (data.where)"
                )
            parent, _, name = folder.rpartition("/")
            if "=" not in name and name != "data":  # Iceberg's files are in <table>/data
                return TableFormat.PARQUET
            folder = parent


def find_version(url: str, format: TableFormat, wanted: int | str | date | None = None) -> int | None:
    """Return the version to read: the wanted one, or the newest.

    Args:
        wanted: a version of a Delta table, the id of an Iceberg snapshot, a time, or None. A time means the
            version that was the newest then.

    Returns:
        None for Parquet, which has no versions.

    Raises:
        ConfigError: `wanted` is not a version, or the format has none.
        DataError: the table has no such version, or its log cannot be read.
    """
    url = files.absolute(url)
    if format is TableFormat.PARQUET:
        if wanted is not None:
            raise ConfigError(
                f"is for Delta and Iceberg tables; {url} is Parquet",
                key="version",
                value=wanted,
                cure="Leave it out",
            )
        return None
    parsed = None if wanted is None else parse_version(wanted)
    return int(_module(format).find_version(url, parsed))


def read_version(url: str, format: TableFormat, version: int) -> TableVersion:
    """List the active files of one version of a Delta or Iceberg table.

    Raises:
        DataError: there is no such version, it has no files, or it uses a feature that is not supported.
    """
    found: TableVersion = _module(format).read_version(files.absolute(url), version)
    if not found.files:
        raise DataError(f"{found.label} is empty. Use another version, or write rows first")
    return found


def _module(format: TableFormat) -> Any:
    if format is TableFormat.DELTA:
        from spark_hpo.data.lake import delta

        return delta
    from spark_hpo.data.lake import iceberg

    return iceberg


def _format_of(fs: Any, folder: str) -> str | None:
    """Return delta, iceberg or .hoodie if a folder has the metadata of such a table."""
    for name, format in (("_delta_log", TableFormat.DELTA), (_HUDI, _HUDI)):
        if fs.isdir(f"{folder}/{name}"):
            return format
    try:
        names = fs.ls(f"{folder}/metadata", detail=False)
    except OSError:
        return None
    return TableFormat.ICEBERG if any(name.endswith(".metadata.json") for name in names) else None
