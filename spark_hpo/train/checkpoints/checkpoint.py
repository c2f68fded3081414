"""Saves and loads checkpoints in the study directory. Writes are atomic, and loading runs no foreign code."""

from __future__ import annotations

import errno
import io
from collections.abc import Mapping
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import state_tree

VERSION = 1

_NOT_A_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP}  # a folder, a pipe, a symbolic link


def save(storage: Storage, path: str, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values (numbers, strings, bytes, lists, mappings).

    Needs host memory for one serialized copy of the state.

    Raises:
        TrialError: the state holds another object, which `load` would refuse.
        StorageError: the file cannot be written.
    """
    state_tree.check_loadable(state)
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    storage.write(path, buffer.getvalue())  # not a copy: BytesIO shares its buffer with the bytes


def load(storage: Storage, path: str) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than tensors and plain values.
        StorageError: the study directory cannot be read.
    """
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
        CheckpointError: as in `load`.
    """
    state = load(storage, path)
    buffer = io.BytesIO()
    torch.save(state["model"] if "model" in state else state["function"], buffer)
    return buffer.getvalue()
