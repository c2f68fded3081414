"""Layers for sequences of different lengths. What pads a sequence never changes their outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spark_hpo.errors import TrialError
from spark_hpo.train.built_in import MODELS


def is_element(lengths: Tensor, longest: int) -> Tensor:
    """Return bool [rows, longest]: True for elements, False for padding."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def mean_of_elements(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the means, [rows, units], of [rows, longest, units]; zeros for an empty sequence."""
    total = (values * is_element(lengths, values.shape[1]).unsqueeze(2)).sum(dim=1)
    return total / lengths.clamp(min=1).unsqueeze(1)


def longest_in_batch(lengths: Tensor, longest: int) -> int:
    """Return the longest length of a batch, at least 1, so that steps that only pad are not computed.

    While torch traces a model, which must not depend on values, return `longest`.
    """
    if torch.compiler.is_compiling() or not len(lengths):
        return longest
    return max(int(lengths.max()), 1)


def build_encoder(
    model: str, width: int, *, units: int, layers: int, heads: int, dropout: float, task: str = "sequence"
) -> GruEncoder | TransformerEncoder:
    """Build the encoder that a parameter `model` names.

    Args:
        width: of a step.
        units: of the encoding.
        task: for the message.

    Raises:
        TrialError: there is no such model.
    """
    match model:
        case "gru":
            return GruEncoder(width, units=units, layers=layers, dropout=dropout)
        case "transformer":
            return TransformerEncoder(width, units=units, layers=layers, heads=heads, dropout=dropout)
    raise TrialError(f"the parameter model must be one of {', '.join(MODELS[task])} (got {model!r})")


class GruEncoder(nn.Module):
    """Encodes a sequence as the state of a GRU after its last element; zeros for an empty sequence."""

    def __init__(self, width: int, *, units: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.units = units
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(width, units, num_layers=layers, batch_first=True, dropout=between)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Return [rows, units] of [rows, longest, width]."""
        states, _ = self.gru(steps)
        # The padding comes after the elements, so it cannot change the state after the last of them.
        last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, self.units)
        state: Tensor = states.gather(1, last).squeeze(1)
        return state * (lengths > 0).unsqueeze(1)


class TransformerEncoder(nn.Module):
    """Encodes a sequence as the output of a small transformer for a token in front of its elements."""

    def __init__(self, width: int, *, units: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.units = units + -units % heads
        self.project = nn.Linear(width, self.units)
        # Its token is never masked, so the attention of an empty sequence is defined, too.
        self.first = nn.Parameter(torch.randn(self.units) * 0.02)
        layer = nn.TransformerEncoderLayer(
            self.units,
            heads,
            dim_feedforward=2 * self.units,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(self.units), enable_nested_tensor=False
        )

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Return [rows, units] of [rows, longest, width]."""
        rows, longest, _ = steps.shape
        elements = self.project(steps) + _positions(longest, self.units, steps.device)
        tokens = torch.cat([self.first.expand(rows, 1, -1), elements], dim=1)
        is_padding = ~is_element(lengths + 1, longest + 1)
        encoded: Tensor = self.layers(tokens, src_key_padding_mask=is_padding)
        return encoded[:, 0]


def _positions(longest: int, units: int, device: torch.device) -> Tensor:
    """Return sines and cosines of the positions, [longest, units] (Vaswani et al. 2017)."""
    position = torch.arange(longest, device=device, dtype=torch.float32).unsqueeze(1)
    unit = torch.arange(0, units, 2, device=device, dtype=torch.float32)
    angles = position * torch.exp(-math.log(10_000.0) * unit / units)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :units]
