"""Saves and loads checkpoints in the study directory. Writes are atomic, and loading runs no foreign code."""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir import manifest
from spark_hpo.study_dir.manifest import Kind
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import folder as folders
from spark_hpo.train.checkpoints import state_tree

VERSION = 1

_NOT_A_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP}  # a folder, a pipe, a symbolic link


def save(storage: Storage, path: str, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values (numbers, strings, bytes, lists, mappings).

    Needs no copy of the state in host memory.

    Raises:
        TrialError: the state holds another object, which `load` would refuse.
        StorageError: the file cannot be written.
    """
    state_tree.check_loadable(state)
    with storage.writing(path) as file:
        torch.save({"version": VERSION, **state}, file)


def load(storage: Storage, path: str, *, folder: Path | None = None) -> dict[str, Any]:
    """Load a checkpoint onto the CPU. Of a sharded one, this is the whole state.

    A checkpoint that is a folder is downloaded: `function` is then the path of the local copy.

    Args:
        folder: where to create the local copy. None: among the temporary files; the caller deletes it.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain values.
        StorageError: the study directory cannot be read.
    """
    return _load_parts(storage, path, folder) if manifest.is_manifest(path) else _load_file(storage, path)


def kind_of(storage: Storage, path: str) -> Kind:
    """Return the kind of a checkpoint. Reads at most a manifest.

    Raises:
        CheckpointError: the manifest is missing or damaged.
        StorageError: the study directory cannot be read.
    """
    if not manifest.is_manifest(path):
        return Kind.FILE
    place = f"{storage.url}/{path}"
    found = manifest.read(storage, path)
    if found is None:
        raise CheckpointError(f"{place}: the checkpoint does not exist; was the study directory cleaned?")
    try:
        return Kind(found.kind)
    except ValueError:
        raise CheckpointError(
            f"{place}: is of kind {found.kind!r}, which this version of spark_hpo does not know"
        ) from None


def _load_parts(storage: Storage, path: str, folder: Path | None) -> dict[str, Any]:
    if kind_of(storage, path) is Kind.SHARDED:
        from spark_hpo.train.checkpoints import sharded  # imports torch.distributed.checkpoint, in seconds

        return sharded.load_whole(storage, path)
    copy = Path(tempfile.mkdtemp(prefix="spark-hpo-", dir=folder))
    try:
        return {"function": copy, **folders.load(storage, path, copy)}
    except BaseException:  # also when the rank is asked to stop: nobody else deletes the copy
        shutil.rmtree(copy, ignore_errors=True)
        raise


def _load_file(storage: Storage, path: str) -> dict[str, Any]:
    place = f"{storage.url}/{path}"
    try:
        data = storage.read(path)
    except StorageError as exc:
        if getattr(exc.__cause__, "errno", None) in _NOT_A_FILE:  # a retry would not help
            raise CheckpointError(str(exc)) from exc
        raise
    if data is None:
        raise CheckpointError(f"{place}: the checkpoint does not exist; was the study directory cleaned?")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:  # damaged bytes may raise anything
        cause = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(f"{place}: is damaged or is not a checkpoint: {cause}") from exc
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is not int or version != VERSION:  # not a bool or a tensor
        raise CheckpointError(
            f"{place}: has version {version}, but this version of spark_hpo reads {VERSION}"
        )
    del state["version"]
    result: dict[str, Any] = state
    return result


def weights(storage: Storage, path: str) -> bytes:
    """Return the model in a checkpoint as a file for `torch.load`.

    The file holds the model's state dict, or the checkpoint that a training function has reported.

    Raises:
        CheckpointError: as in `load`, or because the checkpoint is a folder.
    """
    if kind_of(storage, path) is Kind.FOLDER:
        raise CheckpointError(f"{storage.url}/{path}: is a folder; export it as a folder instead of one file")
    state = load(storage, path)
    buffer = io.BytesIO()
    torch.save(state["model"] if "model" in state else state["function"], buffer)
    return buffer.getvalue()
