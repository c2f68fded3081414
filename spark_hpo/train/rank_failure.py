"""Classifies the exceptions of a rank: errors of the trial, and errors that a retry may not meet."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import torch

from spark_hpo.errors import CheckpointError, DataError, StorageError, TrialError
from spark_hpo.trial import Failure, FailureKind

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
_OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "bad_alloc")


def failure_of(exc: BaseException, world_size: int) -> Failure:
    """Return the failure for an exception in a rank. Must be called in its `except` block."""
    lines = str(exc).strip().splitlines() or [""]
    message = lines[0] if isinstance(exc, (DataError, TrialError)) else f"{type(exc).__name__}: {lines[0]}"
    kind = _kind(exc, world_size)
    if kind is FailureKind.MEMORY:
        message = (
            f"out of memory ({message}): set training.micro_batch: auto, use a smaller batch_size, or give "
            "each rank more memory"
        )
    return Failure(
        kind=kind, message=message, traceback=traceback.format_exc(), file=getattr(exc, "file", None)
    )


def is_out_of_memory(exc: BaseException) -> bool:
    """True if the memory of the device, or of the host, was not sufficient."""
    return isinstance(exc, MemoryError | torch.OutOfMemoryError) or _mentions(exc, _OUT_OF_MEMORY)


def _kind(exc: BaseException, world_size: int) -> FailureKind:
    if is_out_of_memory(exc):
        return FailureKind.MEMORY
    if isinstance(exc, StorageError) and not isinstance(exc, CheckpointError):
        return FailureKind.STORAGE
    # A peer that fails closes its connections, and this rank sees only that. A single rank has no peers: what
    # it raises is its own error.
    if world_size > 1 and (isinstance(exc, torch.distributed.DistError) or _mentions(exc, _LOST_PEER)):
        return FailureKind.INFRASTRUCTURE
    return FailureKind.DATA if isinstance(exc, DataError) else FailureKind.TRIAL


def _mentions(exc: BaseException, texts: Sequence[str]) -> bool:
    return isinstance(exc, RuntimeError) and any(text in str(exc) for text in texts)
