"""Copies batches to the device of a rank, ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import torch
from torch import Tensor, nn

from spark_hpo.train.task import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield the batches with their tensors on the device.

    For a GPU, a thread reads ahead: while steps use the batches of one stretch of memory (see `Loader`), it
    reads the next stretch and copies it from pinned memory, on a CUDA stream of its own.
    """
    if device.type != "cuda":
        for batch in batches:
            yield {name: tensor.to(device) for name, tensor in batch.items()}
        return
    stretches = (list(stretch) for _, stretch in groupby(batches, _stretch_of))
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # missing in torch

    def read() -> tuple[list[dict[str, Tensor]], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            copied = copy_blocks(next(stretches, []), device, pin=True)
            return copied, stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ahead = thread.submit(read)
        while True:
            copied, is_copied = ahead.result()
            if not copied:
                return
            ahead = thread.submit(read)
            now = torch.cuda.current_stream(device)
            now.wait_event(is_copied)
            for tensor in {_base(tensor) for batch in copied for tensor in batch.values()}:
                tensor.record_stream(now)  # keeps the memory until the steps have used it
            yield from copied


def _stretch_of(batch: Batch) -> int:
    return id(_base(next(iter(batch.values()))))


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def copy_blocks(batches: Iterable[Batch], device: torch.device, *, pin: bool) -> list[dict[str, Tensor]]:
    """Copy batches. Tensors that are views of one block of memory are copied together, and stay views.

    Args:
        pin: copy through pinned memory, without waiting for the copy.
    """
    blocks: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        base = _base(tensor)
        if not base.is_contiguous():
            return tensor.to(device)
        if id(base) not in blocks:
            blocks[id(base)] = (base.pin_memory() if pin else base).to(device, non_blocking=pin)
        offset = tensor.storage_offset() - base.storage_offset()
        return blocks[id(base)].as_strided(tensor.shape, tensor.stride(), offset)

    return [{name: copied(tensor) for name, tensor in batch.items()} for batch in batches]


def use_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Store the weights of convolutions in the order in which the kernels of a GPU are fastest.

    The values stay the same. On the CPU the order stays too, because results would differ by rounding.
    """
    if device.type == "cuda" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return model
