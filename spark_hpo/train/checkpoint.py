"""Checkpoints in the study directory: written whole or not at all, loaded without running foreign code."""

from __future__ import annotations

import errno
import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spark_hpo.errors import CheckpointError, StorageError, TrialError
from spark_hpo.study_dir.storage import Storage

VERSION = 1

# Types that torch always loads with `weights_only`. A value of another type is tried out on its own.
_PLAIN = {type(None), bool, int, float, str, bytes}
_TENSORS = {torch.Tensor, nn.Parameter}  # without attributes, which may be any object
_MAPPINGS = {dict, OrderedDict}
_SEQUENCES = {list, tuple}

_NO_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP}  # a folder, a pipe, a symbolic link


def save(storage: Storage, path: str, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values (numbers, strings, bytes, lists, mappings).

    Needs host memory for one serialized copy of the state.

    Raises:
        TrialError: the state holds another object, which `load` would refuse.
        StorageError: the file cannot be written.
    """
    _check_loadable(state, set())
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    storage.write(path, buffer.getvalue())  # not a copy: BytesIO shares its buffer with the bytes


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


def _check_loadable(value: Any, visited: set[int]) -> None:
    """Raise unless torch loads the value without running foreign code.

    Serializing and loading the whole state would answer this too, but needs two more copies of it.
    """
    kind = type(value)
    if kind in _PLAIN or (kind in _TENSORS and not vars(value)) or id(value) in visited:
        return
    visited.add(id(value))
    if kind in _MAPPINGS:
        _check_loadable(getattr(value, "__dict__", None), visited)  # an OrderedDict may have attributes
        for key, item in value.items():
            _check_loadable(key, visited)
            _check_loadable(item, visited)
    elif kind in _SEQUENCES:
        for item in value:
            _check_loadable(item, visited)
    else:
        _check_loads_back(value)


def _check_loads_back(value: Any) -> None:
    try:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as exc:  # an object may define how it is pickled, and raise anything
        raise TrialError(
            f"a checkpoint cannot hold a {type(value).__module__}.{type(value).__qualname__}, only tensors "
            "and plain values (numbers, text, bytes, lists, mappings): turn NumPy arrays into tensors, and "
            "other objects into a state_dict"
        ) from exc
