"""The folder of snapshots: which there are, which studies use them, and what can be deleted.

A snapshot has a folder named after its key:

    <key>/snapshot.json       names the data folder; written last, when the snapshot is complete
    <key>/data-<random>/      the Parquet files
    <key>/users/<hash>.json   one for each study that uses the snapshot

Each writer has its own data folder. If two write the same snapshot, the first to create `snapshot.json` wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spark_hpo.data import files
from spark_hpo.errors import DataError, JournalError, StorageError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

DEFAULT_NAME = ".snapshots"
_MANIFEST, _USERS, _DATA = "snapshot.json", "users", "data-"
_RECORD = "snapshot.json"  # in a study directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A complete snapshot."""

    key: str
    folder: str  # URL of the folder of snapshots
    data: str  # the name of the data folder
    rows: int
    source: Mapping[str, Any]  # the facts that the key stands for, for messages

    @property
    def url(self) -> str:
        """URL of the folder with the Parquet files."""
        return f"{self.folder}/{self.key}/{self.data}"

    def write_record(self, storage: Storage) -> None:
        """Note in a study directory which snapshot the study reads."""
        storage.write(_RECORD, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def of_study(cls, storage: Storage) -> Snapshot | None:
        """Return the snapshot that a study reads; None: it reads none.

        Raises:
            JournalError: the record is damaged.
        """
        record = storage.read(_RECORD)
        if record is None:
            return None
        try:
            return cls(**json.loads(record))
        except (ValueError, TypeError) as exc:
            raise JournalError(f"{storage.url}/{_RECORD} is damaged: {exc}") from exc


def default_folder(study_dir: str) -> str:
    """Return the folder of snapshots of a study that sets none: beside the study directory."""
    parent, _, _ = files.absolute(study_dir).rstrip("/").rpartition("/")
    # The study directory may be a bucket, which has no parent.
    return files.join(study_dir if parent.endswith("/") else parent, DEFAULT_NAME)


class SnapshotFolder:
    """The snapshots in one folder, at a local path or any fsspec URL."""

    def __init__(self, url: str) -> None:
        self._storage = Storage(url)
        self.url = self._storage.url.rstrip("/")

    def obtain(
        self, key: str, source: Mapping[str, Any], study: Storage, write: Callable[[str], int]
    ) -> Snapshot:
        """Return the snapshot of a key, writing it if there is none.

        Args:
            key: the name of its folder.
            source: the facts that the key stands for.
            study: the directory of the study that will use it.
            write: writes the Parquet files to a URL, and returns the number of rows.

        Raises:
            DataError: the snapshot cannot be written, or has no rows.
        """
        self.add_user(key, study)  # before looking, so that nobody deletes what is found
        found = self.find(key)
        if found is not None:
            logger.info("%s: reading the snapshot that is there, %d rows", found.url, found.rows)
            return found
        name = f"{_DATA}{uuid.uuid4().hex[:12]}"
        written = Snapshot(key=key, folder=self.url, data=name, rows=0, source=source)
        try:
            rows = write(written.url)
            record = {"version": 1, "data": name, "rows": rows, "source": dict(source)}
            is_first = self._storage.create(f"{key}/{_MANIFEST}", json.dumps(record, indent=1).encode())
        except BaseException:  # also an interrupt: what is left of a killed driver is deleted by `collect`
            with contextlib.suppress(StorageError):
                self._remove(f"{key}/{name}")
            raise
        if not is_first and (found := self.find(key)) is not None:
            self._remove(f"{key}/{name}")  # another driver was faster
            return found
        return Snapshot(key=key, folder=self.url, data=name, rows=rows, source=source)

    def find(self, key: str) -> Snapshot | None:
        """Return the snapshot of a key; None: there is none, or it is not complete."""
        content = self._storage.read(f"{key}/{_MANIFEST}")
        if content is None:
            return None
        try:
            record = json.loads(content)
            data, rows, source = record["data"], record["rows"], record["source"]
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(f"{self.url}/{key}/{_MANIFEST} is damaged ({exc!r}). Delete the folder") from exc
        found = Snapshot(key=key, folder=self.url, data=data, rows=rows, source=source)
        if files.exists(found.url):
            return found
        self._storage.delete(f"{key}/{_MANIFEST}")  # somebody deleted the files by hand
        return None

    def add_user(self, key: str, study: Storage) -> None:
        """Note that a study uses the snapshot of a key."""
        self._storage.write(f"{key}/{_user(study.url)}", json.dumps({"study_dir": study.url}).encode())

    def collect(self, *, ended: Collection[str] = (), dry_run: bool = False) -> tuple[int, int]:
        """Delete the snapshots that no study needs, and what killed drivers have left of others.

        A study needs its snapshot as long as its directory exists.

        Args:
            ended: URLs of study directories that need theirs no longer.
            dry_run: only count.

        Returns:
            The number of files, and their size in bytes.
        """
        count = size = 0
        for key in self._keys():
            for waste in list(self._waste(key, ended)):
                found = self._files(waste)
                count, size = count + len(found), size + sum(found.values())
                if not dry_run:
                    self._delete(key, waste, ended)
        return count, size

    def _waste(self, key: str, ended: Collection[str]) -> Iterator[str]:
        """Yield the paths below the folder to delete: all of a key, or data folders that nobody reads."""
        users = self._users(key)
        needed = [study for study in users if study.url not in ended and _needs(study, key)]
        if not needed:
            yield key
            return
        if any(is_held(study) for study in needed):  # one of them may be writing
            return
        snapshots = [self.find(key), *(Snapshot.of_study(study) for study in needed)]
        read = {snapshot.data for snapshot in snapshots if snapshot is not None and snapshot.key == key}
        for name in self._storage.names(key):
            if name.startswith(_DATA) and name not in read:
                yield f"{key}/{name}"

    def _delete(self, key: str, waste: str, ended: Collection[str]) -> None:
        if waste != key:
            self._remove(waste)
            return
        # A driver that begins now either finds no manifest or is seen here: see `obtain`.
        manifest = self._storage.read(f"{key}/{_MANIFEST}")
        self._storage.delete(f"{key}/{_MANIFEST}")
        if any(study.url not in ended and _needs(study, key) for study in self._users(key)):
            if manifest is not None:
                self._storage.create(f"{key}/{_MANIFEST}", manifest)
            return
        self._remove(key)

    def _keys(self) -> list[str]:
        fs, path = files.filesystem(self.url)
        with files.accessing(self.url):
            if not fs.exists(path):
                return []
            return sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))

    def _users(self, key: str) -> list[Storage]:
        names = [f"{key}/{_USERS}/{name}" for name in self._storage.names(f"{key}/{_USERS}")]
        contents = [content for content in self._storage.read_all(names) if content is not None]
        return [Storage(json.loads(content)["study_dir"]) for content in contents]

    def _files(self, name: str) -> dict[str, int]:
        fs, path = files.filesystem(files.join(self.url, name))
        with files.accessing(self.url):
            return {file: info["size"] for file, info in fs.find(path, detail=True).items()}

    def _remove(self, name: str) -> None:
        Storage(files.join(self.url, name)).remove()


def _needs(study: Storage, key: str) -> bool:
    """Return True if a study reads the snapshot of a key, or may be about to."""
    if Definition.load(study) is None:
        # A folder that is not mounted looks like one that was deleted.
        parent = str(Path(study.url).parent)
        return files.is_local(study.url) and not Path(parent).is_dir()
    snapshot = Snapshot.of_study(study)
    return is_held(study) if snapshot is None or snapshot.key != key else True


def _user(study_dir: str) -> str:
    return f"{_USERS}/{hashlib.sha256(study_dir.encode()).hexdigest()[:16]}.json"
