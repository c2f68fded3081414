"""Calls the methods of a user's task, and checks what they return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from spark_hpo.errors import TrialError
from spark_hpo.train.task import Batch, TrainTask

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A task whose mistakes are errors that name the method.

    All methods raise `TrialError` for a value of the wrong type or shape.
    """

    task: TrainTask

    def build_model(self) -> nn.Module:
        """Return the task's model."""
        model: nn.Module = self._checked("build_model", self.task.build_model(), nn.Module)
        return model

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Return the task's optimizer."""
        optimizer: Optimizer = self._checked("build_optimizer", self.task.build_optimizer(model), Optimizer)
        return optimizer

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        """Return the task's learning-rate schedule, if it has one."""
        return self.task.build_schedule(optimizer, total_steps=total_steps)

    def modules_to_shard(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that FSDP shards one by one."""
        found = list(self._checked("modules_to_shard", self.task.modules_to_shard(model), Iterable))
        for module in found:
            self._checked("modules_to_shard", module, nn.Module)
        return found

    def outputs_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs, [rows, ...], and the loss, a scalar: the training loss in training mode.

        With row weights, it is the sum of weight times loss, divided by the number of rows.
        """
        outputs = self._checked("forward", self.task.forward(model, batch), Tensor)
        return outputs, self.loss(outputs, batch, is_training=model.training)

    def loss(self, outputs: Tensor, batch: Batch, *, is_training: bool) -> Tensor:
        """Return the loss of a batch, as `outputs_and_loss`."""
        method = "training_loss" if is_training else "loss"
        loss: Tensor = self._checked(method, getattr(self.task, method)(outputs, batch), Tensor)
        weights = self.row_weights(batch)
        if loss.shape == outputs.shape[:1]:
            return (loss if weights is None else loss * weights.to(loss.dtype)).mean()
        if loss.ndim > 0:
            raise TrialError(
                f"{type(self.task).__name__}.{method} must return a scalar, the mean over the rows of the "
                f"batch, or the loss of each row (got {_described(loss)})"
            )
        if weights is not None:
            raise TrialError(
                f"{type(self.task).__name__}.{method} must return the loss of each row, [rows], because "
                "data.weight weights the rows (got a scalar)"
            )
        return loss

    def row_weights(self, batch: Batch) -> Tensor | None:
        """Return the weights of the rows, [rows] in double precision; None: the rows have none."""
        weight = self.task.schema.weight
        return None if weight is None else weight.weights(batch[weight.name].double())

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Return the task's metrics by name, each [rows]."""
        metrics: Mapping[str, Tensor] = self._checked("metrics", self.task.metrics(outputs, batch), Mapping)
        rows = outputs.shape[0]
        for name, values in metrics.items():
            if not isinstance(values, Tensor) or values.shape != (rows,):
                raise TrialError(
                    f"{type(self.task).__name__}.metrics: {name!r} must be a tensor of shape "
                    f"({rows},), one value per row (got {_described(values)})"
                )
        return metrics

    def whole_split_metrics(self) -> Mapping[str, Metric]:
        """Return the task's metrics of a whole split by name."""
        if type(self.task).whole_split_metrics is TrainTask.whole_split_metrics:
            return {}  # without importing torchmetrics, which takes seconds
        from torchmetrics import Metric

        metrics: Mapping[str, Metric] = self._checked(
            "whole_split_metrics", self.task.whole_split_metrics(), Mapping
        )
        for metric in metrics.values():
            self._checked("whole_split_metrics", metric, Metric)
        return metrics

    @property
    def chooses_metric_inputs(self) -> bool:
        """True if the task decides for each metric what it is updated with."""
        return type(self.task).metric_inputs is not TrainTask.metric_inputs

    def metric_inputs(self, name: str, outputs: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments of `update` for a metric of a whole split."""
        inputs: tuple[Tensor, ...] = self._checked(
            "metric_inputs", self.task.metric_inputs(name, outputs, batch), tuple
        )
        return inputs

    def _checked(self, method: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
            raise TrialError(
                f"{type(self.task).__name__}.{method} must return a {name} (got {_described(value)})"
            )
        return value


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.60}"
