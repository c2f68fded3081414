"""Manifests: checkpoints of several files. The manifest is written last, so it exists only with its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage

VERSION = 1


class Kind(StrEnum):
    """The form of a checkpoint."""

    FILE = "file"  # one file, without a manifest
    FOLDER = "folder"  # reported by a training function
    SHARDED = "sharded"  # by the ranks, each with its part


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
    return path.endswith(layout.MANIFEST)


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


def replace(
    storage: Storage, path: str, new: Manifest, *, is_own: Callable[[str], bool] = lambda part: True
) -> None:
    """Write a manifest, and delete the parts that only the one before has.

    Args:
        is_own: false for parts that other checkpoints may share.
    """
    before = parts(storage, path)
    storage.write(path, new.to_json())
    storage.delete_all([part_path(path, part) for part in sorted(before - set(new.parts)) if is_own(part)])


def delete(storage: Storage, path: str, *, keep: Collection[str] = ()) -> None:
    """Delete a checkpoint, and its parts if it has any.

    Args:
        keep: parts that other checkpoints need.
    """
    found = parts(storage, path)
    storage.delete(path)  # first: a manifest never exists without its parts
    storage.delete_all([part_path(path, part) for part in sorted(found - set(keep))])


def parts(storage: Storage, path: str) -> set[str]:
    """Return the parts of a checkpoint; none if it is a single file, damaged, or does not exist."""
    if not is_manifest(path):
        return set()
    try:
        found = read(storage, path)
    except CheckpointError:
        return set()
    return set() if found is None else set(found.parts)
