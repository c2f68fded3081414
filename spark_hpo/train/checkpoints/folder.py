"""Folders as checkpoints: uploaded in parallel, whole or not at all, and each content once per attempt."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark_hpo.errors import CheckpointError, StorageError, TrialError
from spark_hpo.study_dir import manifest
from spark_hpo.study_dir.manifest import Kind, Manifest
from spark_hpo.study_dir.storage import Storage

_HASH_CHARACTERS = 40  # of a sha256, in the name of a part


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """The contents of a folder, as relative paths with slashes."""

    files: tuple[str, ...]
    links: Mapping[str, str]  # to their targets, which are in the folder
    empty: tuple[str, ...]  # folders

    @classmethod
    def of(cls, folder: Path) -> _Contents:
        """List a folder.

        Raises:
            TrialError: it is not a folder, or holds what another machine could not read.
        """
        if not folder.is_dir():
            raise TrialError(
                f"the checkpoint {folder} is not a folder: pass the folder that contains the file"
            )
        root = os.path.realpath(folder)
        files: list[str] = []
        links: dict[str, str] = {}
        empty: list[str] = []
        for place, folders, names in os.walk(root):
            relative = os.path.relpath(place, root)
            if not folders and not names and relative != ".":
                empty.append(relative)
            for name in sorted([*folders, *names]):
                path = os.path.normpath(os.path.join(relative, name))
                mode = os.lstat(os.path.join(place, name)).st_mode
                if stat.S_ISLNK(mode):
                    links[path] = _target_within(root, path, folder)
                elif stat.S_ISREG(mode):
                    files.append(path)
                elif not stat.S_ISDIR(mode):
                    raise TrialError(
                        f"the checkpoint folder {folder} contains {path}, which is neither a file, a folder "
                        "nor a link: delete it before you report the folder"
                    )
        return cls(files=tuple(sorted(files)), links=links, empty=tuple(sorted(empty)))


def _target_within(root: str, link: str, folder: Path) -> str:
    """Return the target of a link, relative to the link."""
    place = os.path.join(root, link)
    target = os.path.realpath(place)
    if not target.startswith(f"{root}/") or not os.path.exists(target):
        raise TrialError(
            f"the checkpoint folder {folder} contains the link {link} to {os.readlink(place)}, which is not "
            "in the folder, so another machine could not read it: copy the file into the folder instead"
        )
    return os.path.relpath(target, os.path.realpath(os.path.dirname(place)))


def stage(folder: Path, *, link: bool = False) -> Path:
    """Copy a folder to a temporary one, so that the original may change. The caller deletes the copy.

    Args:
        link: link the files instead. The original may be deleted then, but its files must not change.

    Raises:
        TrialError: the folder holds what cannot be saved.
        StorageError: the local disk is full.
    """
    contents = _Contents.of(folder)
    copy = Path(tempfile.mkdtemp(prefix="spark-hpo-"))
    try:
        for path in contents.empty:
            (copy / path).mkdir(parents=True)
        for path in contents.files:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (os.link if link else shutil.copyfile)(folder / path, copy / path)
        for path, target in contents.links.items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).symlink_to(target)
    except BaseException as exc:
        shutil.rmtree(copy, ignore_errors=True)
        if isinstance(exc, OSError):
            raise StorageError(f"the checkpoint folder {folder} cannot be copied to {copy}: {exc}") from exc
        raise
    return copy


@dataclass(eq=False)
class FolderStore:
    """Saves the folders of one attempt, and uploads each content once.

    A trace: a base checkpoint with the part 0-1-aa; prefix "1-1":
        save(x.json, {model: bb, vocabulary: aa}) -> uploads 1-1-bb, reuses 0-1-aa
        save(x.json, {model: cc, vocabulary: aa}) -> uploads 1-1-cc; deletes 1-1-bb
    """

    storage: Storage
    prefix: str  # of the parts that this attempt writes; no other attempt has it
    base: str | None  # the checkpoint that the attempt starts from; the study keeps it meanwhile
    _last: dict[str, str] = field(default_factory=dict)  # parts of the last save, by their hash
    _last_path: str = ""
    _base_parts: dict[str, str] | None = None  # those of the base; None: not read yet

    def save(self, path: str, folder: Path, state: Mapping[str, Any]) -> None:
        """Upload a folder, then write its manifest. A checkpoint that was there before is replaced.

        Args:
            state: what belongs to the checkpoint beside its folder, as JSON values.

        Raises:
            TrialError: the folder holds what cannot be saved.
            StorageError: the study directory cannot be written.
        """
        contents = _Contents.of(folder)
        known = self._of_base(path) | self._last
        files = [_File.of(folder, name) for name in contents.files]
        sources = {one.sha256: one for one in files if one.sha256 not in known}
        parts = known | {sha256: f"{self.prefix}-{sha256[:_HASH_CHARACTERS]}.part" for sha256 in sources}
        self.storage.upload_all(
            [(manifest.part_path(path, parts[key]), one.source) for key, one in sources.items()]
        )
        described = [{"path": one.path, "sha256": one.sha256, "part": parts[one.sha256]} for one in files]
        manifest.replace(
            self.storage,
            path,
            Manifest(
                kind=Kind.FOLDER,
                parts=tuple(sorted({parts[one.sha256] for one in files})),
                content={
                    "files": described,
                    "links": dict(contents.links),
                    "empty": contents.empty,
                    "state": dict(state),
                },
            ),
            is_own=lambda part: part.startswith(f"{self.prefix}-"),
        )
        self._last, self._last_path = {one.sha256: parts[one.sha256] for one in files}, path

    def delete(self, path: str) -> None:
        """Delete a checkpoint of this attempt, but not the parts that its base or its last save shares."""
        if path == self._last_path:
            self._last = {}
        manifest.delete(self.storage, path, keep={*self._of_base(path).values(), *self._last.values()})

    def _of_base(self, path: str) -> dict[str, str]:
        if self._base_parts is None:
            self._base_parts = {}
            # Parts are beside their manifest. A parent's checkpoint is in the folder of another trial.
            if self.base is not None and self.base.rpartition("/")[0] == path.rpartition("/")[0]:
                self._base_parts = _parts_by_hash(self.storage, self.base)
        return self._base_parts


@dataclass(frozen=True, slots=True)
class _File:
    path: str  # in the folder
    source: Path
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: str) -> _File:
        try:
            with open(folder / path, "rb") as file:
                return cls(path, folder / path, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as exc:
            raise TrialError(f"the checkpoint folder {folder}: {path} cannot be read: {exc}") from exc


def _parts_by_hash(storage: Storage, path: str) -> dict[str, str]:
    if not manifest.is_manifest(path):
        return {}
    try:
        found = manifest.read(storage, path)
        if found is None or found.kind != Kind.FOLDER:
            return {}
        return {file["sha256"]: file["part"] for file in found.content["files"]}
    except (CheckpointError, LookupError, TypeError):  # then everything is uploaded again
        return {}


def has_file(storage: Storage, path: str, name: str) -> bool:
    """Return True if the checkpoint at `path` is a folder with a file of this name.

    Raises:
        CheckpointError: the manifest is damaged.
        StorageError: it cannot be read.
    """
    found = manifest.read(storage, path) if manifest.is_manifest(path) else None
    if found is None or found.kind != Kind.FOLDER:
        return False
    return any(file.get("path") == name for file in found.content.get("files", ()))


def load(storage: Storage, path: str, folder: Path) -> dict[str, Any]:
    """Download a checkpoint into an empty folder, and return the state that was saved with it.

    Raises:
        CheckpointError: the checkpoint does not exist or is damaged.
        StorageError: it cannot be read.
    """
    place = f"{storage.url}/{path}"
    found = manifest.read(storage, path)
    if found is None:
        raise CheckpointError(f"{place}: the checkpoint does not exist; was the study directory cleaned?")
    if found.kind != Kind.FOLDER:
        raise CheckpointError(f"{place}: is a checkpoint of kind {found.kind!r}, not a folder")
    try:
        files = {file["path"]: (file["part"], file["sha256"]) for file in found.content["files"]}
        links, empty, state = found.content["links"], found.content["empty"], found.content["state"]
        _check_within(files, links, empty)
        if not {part for part, _ in files.values()} <= set(found.parts):
            raise ValueError("a file is in an unknown part")
        for name in [*empty, *(os.path.dirname(name) for name in [*files, *links])]:
            (folder / name).mkdir(parents=True, exist_ok=True)
        missing = storage.download_all(
            [(manifest.part_path(path, part), folder / name) for name, (part, _) in files.items()]
        )
        if missing:
            raise CheckpointError(f"{storage.url}/{missing[0]}: a part of the checkpoint does not exist")
        for name, (part, sha256) in files.items():
            if _File.of(folder, name).sha256 != sha256:
                raise CheckpointError(
                    f"{storage.url}/{manifest.part_path(path, part)}: a part of the checkpoint is damaged"
                )
        for name, target in links.items():  # last: no file is written through a link
            (folder / name).symlink_to(target)
        return dict(state)
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as exc:
        raise CheckpointError(f"{place}: is damaged or is not a checkpoint: {exc}") from exc


def _check_within(files: Mapping[str, Any], links: Mapping[str, str], empty: Iterable[str]) -> None:
    """Check that all paths and links stay in the folder: the manifest may come from another user."""
    for name in [*files, *links, *empty]:
        if name != os.path.normpath(name) or os.path.isabs(name) or name.split("/")[0] in ("..", "."):
            raise ValueError(f"{name!r} is not in the folder")
    for name, target in links.items():
        reached = os.path.normpath(os.path.join(os.path.dirname(name), target))
        if os.path.isabs(target) or reached.split("/")[0] == "..":
            raise ValueError(f"the link {name!r} leads out of the folder")
    for name in [*files, *links, *empty]:
        if any(str(parent) in links or str(parent) in files for parent in Path(name).parents):
            raise ValueError(f"{name!r} is below a file or a link")
