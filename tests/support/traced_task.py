"""A task that reports the weights and learning rates of each assignment as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.image import ImageTask


class Traced(ImageTask):
    """The built-in task at a constant learning rate. It adds metrics, each the same for all rows:

    `weights` and `weights_at_start`, the sum of their absolute values now and before the first step of the
    assignment; `rate` and `decay`, those of the optimizer.
    """

    at_start: float | None = None

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        self.optimizer = super().build_optimizer(model)
        return self.optimizer

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> Any:
        return None

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        self.weights = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
        if self.at_start is None:
            self.at_start = self.weights
        return super().forward(model, batch)

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        assert self.at_start is not None
        group = self.optimizer.param_groups[0]
        traced = {
            "weights": self.weights,
            "weights_at_start": self.at_start,
            "rate": group["lr"],
            "decay": group["weight_decay"],
        }
        rows = torch.ones(len(outputs), dtype=torch.float64)
        return {**super().metrics(outputs, batch), **{name: rows * value for name, value in traced.items()}}
