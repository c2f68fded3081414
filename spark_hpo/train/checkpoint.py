"""Checkpoints in the study directory: written whole or not at all, loaded without running foreign code."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError, TrialError
from spark_hpo.study_dir.storage import Storage

VERSION = 1

_NO_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP}  # a folder, a pipe, a symbolic link


def save(storage: Storage, path: str, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values (numbers, strings, bytes, lists, mappings).

    Raises:
        TrialError: there is something else in it, which could not be loaded without running its code.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise TrialError(
            "a checkpoint holds tensors and plain values (numbers, text, bytes, lists, mappings) only: "
            "turn NumPy arrays into tensors, and other objects into a state_dict"
        ) from exc
    storage.write(path, buffer.getvalue())


def load(storage: Storage, path: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: there is none, it is damaged, or holds more than tensors and plain values.
    """
    place = f"{storage.url}/{path}"
    try:
        data = storage.read(path)
    except StorageError as exc:
        if getattr(exc.__cause__, "errno", None) in _NO_FILE:  # no outage: it would be one for ever
            raise CheckpointError(str(exc)) from exc
        raise
    if data is None:
        raise CheckpointError(f"{place}: there is no such checkpoint; was the study directory cleaned?")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:  # bytes that are none may raise whatever they like
        cause = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(f"{place}: is damaged or is no checkpoint: {cause}") from exc
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is not int or version != VERSION:  # a tensor has no truth
        raise CheckpointError(f"{place}: has version {version}; this spark_hpo reads version {VERSION}")
    del state["version"]
    result: dict[str, Any] = state
    return result


def weights(storage: Storage, path: str) -> bytes:
    """The model in a checkpoint as a file for `torch.load`: its state dict, or what a function has saved.

    Raises:
        CheckpointError: as `load`.
    """
    state = load(storage, path)
    buffer = io.BytesIO()
    torch.save(state["model"] if "model" in state else state["function"], buffer)
    return buffer.getvalue()
