"""Lists the Parquet files of a table, including those in partition folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.plan import partitions
from spark_hpo.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A Parquet file."""

    path: str  # on its file system; absolute if local
    size: int  # bytes
    modified: float | None  # seconds since 1970; None if the store does not record it
    partition: Mapping[str, str | None] = field(default_factory=dict)  # value by partition column, as text
    digest: str = ""  # of its footer


def list_files(url: str) -> list[File]:
    """List the Parquet files at `url`, including partition folders, in the order of their names.

    Raises:
        DataError: there are no Parquet files, or the folder is a Delta, Iceberg or Hudi table.
    """
    fs, root = files.filesystem(url)
    with files.accessing(url):
        try:
            if not fs.exists(root):
                raise FileNotFoundError(root)
            entries = [fs.info(root)] if fs.isfile(root) else list(fs.find(root, detail=True).values())
        except FileNotFoundError:
            raise DataError(f"{url} does not exist. Check the path of the table") from None
    refuse_table_format(fs, root, url)
    found = []
    for entry in entries:
        *folders, name = relative(entry["name"], root).split("/")
        if any(part.startswith(("_", ".")) for part in [*folders, name]):
            continue
        partition = partitions.parse(folders, url)
        size, modified = entry["size"], files.modified(entry)
        found.append(File(path=entry["name"], size=size, modified=modified, partition=partition))
    if not found:
        raise DataError(f"{url} has no Parquet files. Check the path, or prepare the table again")
    return sorted(found, key=lambda file: file.path)


def refuse_table_format(fs: Any, root: str, url: str) -> None:
    """Refuse a Delta, Iceberg or Hudi table: its files still hold rows that the table has deleted.

    Args:
        root: the path of `url` on `fs`: a folder, a file, or a partition (`day=1`) of the table.

    Raises:
        DataError: a folder at or above `root` has the metadata of such a table.
    """
    folder = root.rstrip("/")
    if fs.isfile(folder):
        folder = folder.rpartition("/")[0]
    while True:
        format = _table_format(fs, folder)
        if format is not None:
            raise DataError(
                f"{url}: is a table of format {format}, whose Parquet files also hold deleted rows. "
                "Write the current rows to another folder with Spark, and use that folder: "
                f"spark.read.format({format!r}).load(...).write.parquet(...)"
            )
        parent, _, name = folder.rpartition("/")
        if "=" not in name:
            return
        folder = parent


def _table_format(fs: Any, folder: str) -> str | None:
    try:
        names = {path.rstrip("/").rpartition("/")[2]: path for path in fs.ls(folder, detail=False)}
        if "metadata" in names and fs.isdir(names["metadata"]):
            metadata = fs.ls(names["metadata"], detail=False)
        else:
            metadata = []
    except OSError:  # reading the table reports the cause
        return None
    if "_delta_log" in names:
        return "delta"
    if any(path.endswith(".metadata.json") for path in metadata):
        return "iceberg"
    return "hudi" if ".hoodie" in names else None


def relative(path: str, root: str) -> str:
    """Return the path relative to `root`, or the file name if `root` is the file."""
    return path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]
