"""Manifests: checkpoints of several files. The manifest is written last, so it exists only with its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir.storage import Storage

VERSION = 1
SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a checkpoint that consists of several files, its parts.

    A part never changes, and has a name that only one attempt uses. The parts are beside the manifest; those
    of a folder may be shared with other checkpoints of the trial.
    """

    kind: str
    parts: tuple[str, ...]  # names of files
    content: Mapping[str, Any] = field(default_factory=dict)  # depends on the kind

    def to_json(self) -> bytes:
        document = {"version": VERSION, "kind": self.kind, "parts": self.parts, "content": self.content}
        return json.dumps(document, separators=(",", ":")).encode()


def is_manifest(path: str) -> bool:
    """True if the checkpoint at this path has parts."""
    return path.endswith(SUFFIX)


def part_path(path: str, part: str) -> str:
    """The path of a part of the checkpoint whose manifest is at `path`."""
    return f"{path.rpartition('/')[0]}/{part}".removeprefix("/")


def read(storage: Storage, path: str) -> Manifest | None:
    """Return the manifest; None if it does not exist.

    Raises:
        CheckpointError: it is damaged, or was written by another version.
        StorageError: it cannot be read.
    """
    data = storage.read(path)
    if data is None:
        return None
    place = f"{storage.url}/{path}"
    try:
        document = json.loads(data)
        version = document["version"]
        kind, parts, content = document["kind"], document["parts"], document["content"]
        if not all(isinstance(part, str) and "/" not in part for part in parts):
            raise ValueError("parts must be names of files in the same folder")
        if not isinstance(content, dict):
            raise TypeError("content must be a mapping")
    except (LookupError, TypeError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{place}: is damaged or is not a manifest: {exc}") from exc
    if version != VERSION:
        raise CheckpointError(
            f"{place}: has version {version}, but this version of spark_hpo reads {VERSION}"
        )
    return Manifest(kind=kind, parts=tuple(parts), content=content)


def replace(storage: Storage, path: str, new: Manifest) -> None:
    """Write a manifest, and delete the parts that only the one before has."""
    try:
        before = read(storage, path)
    except CheckpointError:  # its parts are deleted when the trial's folder is tidied
        before = None
    storage.write(path, new.to_json())
    if before is not None:
        old = set(before.parts) - set(new.parts)
        storage.delete_all([part_path(path, part) for part in sorted(old)])
