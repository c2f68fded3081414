"""The states of the random generators that training may draw from, as tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def seed(*entropy: int) -> None:
    """Seed torch, numpy and random from integers."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(torch_seed))  # every device
    np.random.seed(int(numpy_seed))  # a task may draw from the global generator
    random.seed(int(python_seed))


def capture(device: torch.device) -> dict[str, Tensor]:
    """The states now. Shapes do not depend on what was drawn, so that ranks can gather them."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    _, internal, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys, position, has_gauss], dtype=torch.int64),
        "random": torch.tensor(internal, dtype=torch.int64),
        # What the two Gaussian generators have in store.
        "gauss": torch.tensor([cached, float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on where `capture` stood."""
    torch.set_rng_state(states["torch"])
    *keys, position, has_gauss = states["numpy"].tolist()
    cached, gauss = states["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    random.setstate((3, tuple(states["random"].tolist()), None if np.isnan(gauss) else gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
