"""What a user writes: a task, that is a model and how it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import TrialError
from spark_hpo.trial import Params

Batch = Mapping[str, Tensor]
"""One tensor a column: [rows] for scalars (int64 or float32), [rows, *shape] for arrays (float32)."""


class TrainTask(ABC):
    """A model from parameters and schema, an optimizer, a loss, metrics.

    Everything else is done for it: distributed training, devices, data, mixed precision, gradient clipping,
    evaluation over all ranks, checkpoints, early stopping. Only `build_model` and `loss` must be written:

        class Linear(TrainTask):
            def build_model(self):
                return nn.Linear(len(self.schema.features), 1)
            def forward(self, model, batch):
                return model(torch.stack([batch[f.name] for f in self.schema.features], dim=1))
            def loss(self, outputs, batch):
                return nn.functional.mse_loss(outputs[:, 0], batch[self.schema.label.name])
    """

    def __init__(self, params: Params, schema: TableSchema) -> None:
        self.params = params
        self.schema = schema

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model, on the CPU. The generators are seeded for the trial already."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW with the parameters `learning_rate` (1e-3) and `weight_decay` (0.01), unless overridden."""
        return torch.optim.AdamW(
            model.parameters(),
            lr=self.params.get("learning_rate", 1e-3),
            weight_decay=self.params.get("weight_decay", 0.01),
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        """The learning-rate schedule, moved on after every step; None for a constant rate.

        Args:
            total_steps: optimizer steps of a trial that is trained to the maximum resource. It does not
                depend on the rung, so that a promoted trial goes on along the same curve.
        """
        return None

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs for a batch; `model(batch)` unless overridden."""
        outputs: Tensor = model(batch)
        return outputs

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss to minimise: a scalar, the mean over the rows of the batch."""

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Further metrics, each as one value a row: [rows]. Their means over all rows are reported."""
        return {}

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """What the registered model answers, one tensor [rows, ...] a column; the bare outputs by default."""
        return {"prediction": outputs}


class LabelledTask(TrainTask):
    """A task whose loss, metrics and answers follow from the label: classes, or a number."""

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: one a class, or one for a regression."""
        return len(self.schema.label.classes) or 1

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, or the squared error in units of the label's deviation."""
        if outputs.ndim != 2 or outputs.shape[1] < self.num_outputs:
            raise TrialError(
                f"{type(self).__name__}: the model must return outputs of shape (rows, {self.num_outputs}) "
                f"for the label {self.schema.label.name!r} (got {tuple(outputs.shape)})"
            )
        target = batch[self.schema.label.name]
        if self.schema.label.is_regression:
            return nn.functional.mse_loss(outputs[:, 0], self._scaled(target))
        return nn.functional.cross_entropy(outputs, target)

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """`accuracy`, or `squared_error` and `absolute_error` in the label's own units."""
        target = batch[self.schema.label.name]
        if self.schema.label.is_regression:
            error = (outputs[:, 0] - self._scaled(target)) * self.schema.label.deviation
            return {"squared_error": error.square(), "absolute_error": error.abs()}
        return {"accuracy": (outputs.argmax(dim=1) == target).float()}

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """`prediction` (the class's code, or the number) and, for classes, `probability` [rows, classes]."""
        label = self.schema.label
        if label.is_regression:
            return {"prediction": outputs[:, 0] * label.deviation + label.mean}
        return {"prediction": outputs.argmax(dim=1), "probability": outputs.softmax(dim=1)}

    def _scaled(self, target: Tensor) -> Tensor:
        return (target.float() - self.schema.label.mean) / self.schema.label.deviation
