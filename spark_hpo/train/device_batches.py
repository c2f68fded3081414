"""Copies batches to the device of a rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from spark_hpo.train.task import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches with their tensors on the device."""
    for batch in batches:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
