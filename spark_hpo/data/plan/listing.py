"""The Parquet files of a table: those of its folder, and of partitions below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spark_hpo.data import files
from spark_hpo.data.plan import partitions
from spark_hpo.errors import DataError, cause


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One Parquet file of a split."""

    path: str  # as its file system takes it; absolute where it is local
    size: int  # bytes
    modified: float | None  # seconds since 1970; None where the store does not say
    partition: Mapping[str, str | None] = field(default_factory=dict)  # of its folders, as text
    digest: str = ""  # of its footer


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
        raise DataError(f"{url}: cannot be listed: {exc}") from cause(exc)
    if lakes:
        raise DataError(
            f"{url}: has {lakes[0]}, so its files hold rows that are not in the table any more: "
            "let Spark write it as Parquet"
        )
    found = []
    for entry in entries:
        *folders, name = relative(entry["name"], root).split("/")
        if any(part.startswith(("_", ".")) for part in [*folders, name]):
            continue
        partition = partitions.parse(folders, url)
        size, modified = entry["size"], files.modified(entry)
        found.append(File(path=entry["name"], size=size, modified=modified, partition=partition))
    if not found:
        raise DataError(f"{url}: holds no Parquet files: check the path, or prepare the table again")
    return sorted(found, key=lambda file: file.path)


def relative(path: str, root: str) -> str:
    """The path below the root; a root that is a file is below its folder."""
    return path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]
