"""Batches on a device: equal to those of the loader, and copied by block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spark_hpo.train.device_batches import copy_blocks, on_device, use_channels_last

CPU = torch.device("cpu")


def batches(number: int = 3) -> list[dict[str, torch.Tensor]]:
    """Two columns that share a block, a column of its own, an array, and a view of a part of a block."""
    found = []
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        block = torch.randn(5, 2, generator=generator)
        x, y = block.unbind(1)
        image = torch.randn(5, 3, 4, 4, generator=generator)
        found.append({"x": x, "y": y, "label": torch.arange(5) + seed, "image": image, "tail": image[2:, 1]})
    return found


def test_on_device_yields_equal_batches_in_order() -> None:
    for batch, expected in zip(on_device(batches(), CPU), batches(), strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], value) for name, value in expected.items())


def test_copy_blocks_copies_values_and_strides() -> None:
    [batch] = batches(1)
    [copied] = copy_blocks([batch], torch.device("meta"), pin=False)
    assert {n: (t.shape, t.stride(), t.dtype) for n, t in copied.items()} == {
        n: (t.shape, t.stride(), t.dtype) for n, t in batch.items()
    }
    doubled = {name: t.double() if name == "x" else t for name, t in batch.items()}
    [moved] = copy_blocks([doubled], CPU, pin=False)
    assert all(torch.equal(moved[name], value.to(moved[name].dtype)) for name, value in batch.items())


def test_copy_blocks_copies_a_block_once() -> None:
    [batch] = batches(1)
    half = {name: tensor[:2] for name, tensor in batch.items()}
    copied, of_half = copy_blocks([batch, half], torch.device("meta"), pin=False)
    assert copied["x"]._base is copied["y"]._base is of_half["x"]._base
    assert copied["image"]._base is copied["tail"]._base


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_device_yields_equal_batches_on_a_gpu() -> None:
    device = torch.device("cuda", 0)
    for batch, expected in zip(on_device(batches(20), device), batches(20), strict=True):
        assert all(torch.equal(batch[name].cpu(), value) for name, value in expected.items())


def test_channels_last_leaves_models_on_the_cpu_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2, 2))
    assert use_channels_last(model, CPU)[0].weight.is_contiguous()


def test_channels_last_changes_the_order_of_the_weights_of_convolutions_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2, 2)).to("meta")
    found = use_channels_last(model, torch.device("cuda", 0))
    assert found[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert found[1].weight.is_contiguous()
