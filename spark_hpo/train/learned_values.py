"""The current values of learned hyperparameters, as tensors that a loss can be differentiated by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spark_hpo.errors import TrialError
from spark_hpo.train.training_settings import WEIGHT_DECAY, LearnedParameter


@dataclass(frozen=True, slots=True)
class LearnedValue:
    """One hyperparameter, or one for each layer, at a position between its bounds.

    A trace: the range 1e-6 to 1e-2, which is logarithmic: position 0.5 -> value 1e-4
    """

    parameter: LearnedParameter
    position: Tensor
    """Of the value in the range, 0 to 1, [] or [layers], float64. Outer steps move it in place."""

    @classmethod
    def starting_at(
        cls, parameter: LearnedParameter, start: float | Sequence[float], layers: int, device: torch.device
    ) -> LearnedValue:
        """Return the parameter at a value, or at the nearest bound.

        Args:
            start: the value, or the value of each layer.
            layers: the number of its values if the parameter has one for each layer.

        Raises:
            TrialError: the start has another number of values.
        """
        low, high = parameter.low, parameter.high
        value = torch.tensor(start, dtype=torch.float64).clamp(low, high)
        if value.ndim > 0 and (not parameter.by_layer or len(value) != layers):
            expected = f"{layers} values, one for each layer" if parameter.by_layer else "one value"
            raise TrialError(f"{parameter.name} must have {expected} (got {start})")
        if parameter.is_log:
            position = torch.log(value / low) / math.log(high / low)
        else:
            position = (value - low) / (high - low)
        shape = (layers,) if parameter.by_layer else ()
        return cls(parameter, position.expand(shape).to(device, copy=True))

    def value(self, position: Tensor) -> Tensor:
        """Return the value at a position, of the same shape."""
        low, high = self.parameter.low, self.parameter.high
        if self.parameter.is_log:
            return torch.exp(math.log(low) + position * math.log(high / low))
        return low + position * (high - low)


class LayerDecay:
    """The penalty whose gradient is weight decay: half the squared norm of each layer, times its decay.

    A layer is a module with weights of at least two dimensions. Biases and the scales of normalisations are
    not decayed.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            TrialError: the model has no layer.
        """
        self._layers: dict[str, list[Tensor]] = {}
        seen: set[int] = set()
        for name, module in model.named_modules():
            matrices = [p for p in module.parameters(recurse=False) if p.requires_grad and p.ndim > 1]
            if fresh := [p for p in matrices if id(p) not in seen]:  # tied weights belong to one layer
                self._layers[name or "model"] = fresh
                seen.update(map(id, fresh))
        if not self._layers:
            raise TrialError(
                f"{WEIGHT_DECAY} cannot be learned, because the model has no weights of two dimensions"
            )

    @property
    def names(self) -> list[str]:
        """The names of the layers: those of the modules."""
        return list(self._layers)

    def penalty(self, decay: Tensor) -> Tensor:
        """Return the penalty, [], for one decay, [], or one for each layer, [layers]."""
        norms = [sum(p.square().sum() for p in layer) for layer in self._layers.values()]
        decays = decay.expand(len(norms)).unbind()
        return torch.stack([d * n for d, n in zip(decays, norms, strict=True)]).sum() / 2
