"""Copies batches to the device of a rank, ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from spark_hpo.train.task import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with their tensors on the device.

    A GPU receives a batch while it computes the one before: the copy starts from pinned memory, on a stream
    of its own.
    """
    if device.type != "cuda":
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.items()}
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # missing in torch
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = copy_blocks(batch, device, pin=True)
        if ahead is not None:
            yield ahead
        # Also orders the copy before the step, and keeps its memory until the step has used it.
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in copied.values():
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = copied
    if ahead is not None:
        yield ahead


def copy_blocks(batch: Batch, device: torch.device, *, pin: bool) -> dict[str, Tensor]:
    """Copy a batch. Columns that are views of one block of memory are copied together, and stay views.

    Args:
        pin: copy through pinned memory, without waiting for the copy.
    """
    blocks: dict[int, Tensor] = {}
    copied = {}
    for name, tensor in batch.items():
        base = tensor if tensor._base is None else tensor._base
        if not base.is_contiguous():
            copied[name] = tensor.to(device)
            continue
        if id(base) not in blocks:
            blocks[id(base)] = (base.pin_memory() if pin else base).to(device, non_blocking=pin)
        offset = tensor.storage_offset() - base.storage_offset()
        copied[name] = blocks[id(base)].as_strided(tensor.shape, tensor.stride(), offset)
    return copied


def use_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Store the weights of convolutions in the order in which the kernels of a GPU are fastest.

    The values stay the same. On the CPU the order stays too, because results would differ by rounding.
    """
    if device.type == "cuda" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return model
