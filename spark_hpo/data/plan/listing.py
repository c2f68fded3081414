"""Lists the Parquet files of a table, including those in partition folders."""

from __future__ import annotations

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.lake.iceberg import METADATA_SUFFIX
from spark_hpo.data.plan import partitions
from spark_hpo.errors import DataError


def list_files(url: str) -> list[File]:
    """List the Parquet files at `url`, including partition folders, in the order of their names.

    Raises:
        DataError: there are no Parquet files.
    """
    fs, root = files.filesystem(url)
    with files.accessing(url):
        try:
            if not fs.exists(root):
                raise FileNotFoundError(root)
            entries = [fs.info(root)] if fs.isfile(root) else list(fs.find(root, detail=True).values())
        except FileNotFoundError:
            raise DataError(f"{url} does not exist. Check the path of the table") from None
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


def root_of(url: str) -> str:
    """Return the path that the names of a table's files are relative to, on its file system."""
    _, path = files.filesystem(url)
    return path.rsplit("/", 2)[0] if path.endswith(METADATA_SUFFIX) else path


def relative(path: str, root: str) -> str:
    """Return the path relative to `root`, or the file name if `root` is the file."""
    return path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]
