"""The states of the random generators that training may use, as tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def seed(*entropy: int) -> None:
    """Seed torch, numpy and random. Different integers give independent seeds."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(torch_seed))  # every device
    np.random.seed(int(numpy_seed))  # a task may use the global generator
    random.seed(int(python_seed))


def capture(device: torch.device) -> dict[str, Tensor]:
    """Return the current states. Their shapes are constant, so that ranks can gather them."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    _, internal, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys, position, has_gauss], dtype=torch.int64),
        "random": torch.tensor(internal, dtype=torch.int64),
        # Both Gaussian generators draw two numbers at a time and keep the second.
        "gauss": torch.tensor([cached, float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states that `capture` returned."""
    torch.set_rng_state(states["torch"])
    *keys, position, has_gauss = states["numpy"].tolist()
    cached, gauss = states["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    random.setstate((3, tuple(states["random"].tolist()), None if np.isnan(gauss) else gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
