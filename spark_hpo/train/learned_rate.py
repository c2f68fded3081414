"""Learns the learning rate by hypergradient descent (Baydin et al. 2018, arXiv:1703.04782)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from spark_hpo.train.learned_values import LearnedValue
from spark_hpo.train.training_settings import LearnedParameter


class LearnedRate:
    """Scales the learning rates of an optimizer, by what the last step has done to the loss.

    If the last step was d = w(t) - w(t-1), the derivative of the loss at w(t) with respect to the logarithm
    of the rate of that step is g(t) d, with the gradient g(t). Where it is negative, a longer step would have
    been better. The rate follows its sign and the cosine between g(t) and d, so that no step depends on the
    scale of the loss. This is the paper's rule in its multiplicative form, and holds for any optimizer whose
    step is proportional to its rate, such as SGD with momentum and AdamW.

    A schedule continues to set the rates; they are multiplied for the time of a step only. The value is that
    of a schedule's peak.
    """

    def __init__(self, parameter: LearnedParameter, optimizer: Optimizer, *, rate: float) -> None:
        """
        Args:
            rate: of a step of the learning rate, as a fraction of its range.
        """
        self._optimizer = optimizer
        self._base = float(optimizer.param_groups[0]["lr"])
        start = self._base if parameter.initial is None else parameter.initial
        self.value = LearnedValue.starting_at(parameter, start, 0, torch.device("cpu"))
        self._rate = rate
        self._change: list[Tensor] | None = None  # d, one tensor per weight
        self._before: list[Tensor] = []
        self._scheduled: list[float] = []
        optimizer.register_step_pre_hook(lambda *_: self._begin_step())
        optimizer.register_step_post_hook(lambda *_: self._end_step())

    def state(self) -> dict[str, Any]:
        return {"position": self.value.position.clone(), "change": self._change}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.value.position.copy_(state["position"])
        change = state["change"]
        if change is not None:
            change = [part.to(w.device) for part, w in zip(change, self._weights(), strict=True)]
        self._change = change

    def _weights(self) -> list[Tensor]:
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    @torch.no_grad()
    def _begin_step(self) -> None:
        weights = self._weights()
        if self._change is not None:
            cosine = _cosine([w.grad for w in weights], self._change)
            self.value.position.sub_(self._rate * cosine).clamp_(0, 1)
        factor = float(self.value.value(self.value.position)) / self._base
        self._scheduled = [group["lr"] for group in self._optimizer.param_groups]
        for group, scheduled in zip(self._optimizer.param_groups, self._scheduled, strict=True):
            group["lr"] = scheduled * factor
        self._before = [weight.clone() for weight in weights]

    @torch.no_grad()
    def _end_step(self) -> None:
        self._change = [w - before for w, before in zip(self._weights(), self._before, strict=True)]
        self._before = []
        for group, scheduled in zip(self._optimizer.param_groups, self._scheduled, strict=True):
            group["lr"] = scheduled


def _cosine(gradients: list[Tensor | None], change: list[Tensor]) -> float:
    """Return the cosine between the gradient, None where a weight has none, and the change; 0 for zeros."""
    pairs = [(g, d) for g, d in zip(gradients, change, strict=True) if g is not None]
    product, squared, length = (
        sum(float((a.double() * b.double()).sum()) for a, b in which)
        for which in (pairs, [(g, g) for g, _ in pairs], [(d, d) for _, d in pairs])
    )
    scale = math.sqrt(squared * length)
    return product / scale if scale > 0 and math.isfinite(product) else 0.0
