"""The classes that a user derives a task from: a model, and how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import TrialError
from spark_hpo.train.built_in import check_label, labelled_metrics
from spark_hpo.train.metric_names import label_of
from spark_hpo.trial import Params

if TYPE_CHECKING:
    from torchmetrics import Metric

CROSS_ENTROPY, FOCAL = "cross_entropy", "focal"
FOCAL_GAMMA = 2.0

Batch = Mapping[str, Tensor]
"""One tensor per column, by name.

Scalars are [rows], int64 for codes and classes and float32 for numbers; arrays and a label of several
numbers are [rows, *shape], float32. A sequence is [rows, longest], with the lengths, [rows] int64, as
`<name>.length`. So is a text: its UTF-8 bytes are uint8, which `spark_hpo.train.texts.texts_of` decodes.
"""


class TrainTask(ABC):
    """A model built from parameters and a schema, its optimizer, its loss and its metrics.

    The training loop does the rest: distributed training, devices, data, mixed precision, gradient clipping,
    evaluation over all ranks, checkpoints, early stopping. Only `build_model` and `loss` must be defined:

        class Linear(TrainTask):
            def build_model(self):
                return nn.Linear(len(self.schema.features), 1)
            def forward(self, model, batch):
                return model(torch.stack([batch[f.name] for f in self.schema.features], dim=1))
            def loss(self, outputs, batch):
                return nn.functional.mse_loss(outputs[:, 0], batch[self.schema.label.name])

    An exception in a method fails the trial, not the study.

    Attributes:
        params: the trial's parameters by name.
        schema: the columns of the table.
        assets: in an exported model, the folder with what `save_assets` has written; else None.
        learned: the current values of the hyperparameters that are learned (`method: hypergradient`), each
            [], while the loss of the training is computed. Empty in evaluations, because the validation loss
            must not depend on them: `self.learned.get("noise", 0.0)`.
    """

    learnable: ClassVar[tuple[str, ...]] = ()
    """The names that `forward` or `loss` looks up in `learned`; `*` stands for any text."""
    learned: Mapping[str, Tensor] = MappingProxyType({})
    assets: Path | None = None

    def __init__(self, params: Params, schema: TableSchema) -> None:
        self.params = params
        self.schema = schema

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return a new model on the CPU. The random generators have been seeded for the trial."""

    def save_assets(self, folder: Path) -> None:  # noqa: B027 - most tasks have none
        """Write the files that `build_model` needs beside the weights, such as a tokenizer, to a new folder.

        The folder becomes a part of the exported model. A task that is loaded from such a model finds it as
        `self.assets`.
        """

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Return the optimizer: by default AdamW with `learning_rate` (1e-3) and `weight_decay` (0.01)."""
        return torch.optim.AdamW(
            model.parameters(),
            lr=self.params.get("learning_rate", 1e-3),
            weight_decay=self.params.get("weight_decay", 0.01),
            # One kernel for all weights; it cannot update complex ones.
            fused=all(parameter.is_floating_point() for parameter in model.parameters()) or None,
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        """Return the learning-rate schedule, which is stepped after every batch; None: the rate is constant.

        Args:
            total_steps: optimizer steps of a trial that is trained to the maximum resource. It does not
                depend on the rung, so that a promoted trial continues on the same curve.
        """
        return None

    def modules_to_shard(self, model: nn.Module) -> Iterable[nn.Module]:
        """Return the modules whose parameters are gathered one module at a time, with `strategy: fsdp`.

        By default the items of each `nn.ModuleList`, such as the layers of a transformer, that have
        parameters. An item inside another comes first. All other parameters are gathered together.
        """
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        items = dict.fromkeys(item for modules in reversed(lists) for item in modules)
        can_be_sharded = [item for item in items if not isinstance(item, nn.ModuleList | nn.ModuleDict)]
        return [item for item in can_be_sharded if any(True for _ in item.parameters())]

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's outputs for a batch, [rows, ...]; by default `model(batch)`."""
        outputs: Tensor = model(batch)
        return outputs

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss: a scalar, the mean over the rows of the batch, or the loss of each row, [rows].

        If the rows have weights (`data.weight`), it must be [rows]; the loop weights it.
        """

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss to minimise, of the same shape; by default `loss`, which evaluations report."""
        return self.loss(outputs, batch)

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Return more metrics by name, each [rows]. The means over all rows of the split are reported."""
        return {}

    def whole_split_metrics(self) -> Mapping[str, Metric]:
        """Return metrics that are not means over rows, by name: new objects of torchmetrics.

        They are updated once, with `metric_inputs` of all rows of all ranks. The metrics that a study file
        names are not among them.
        """
        return {}

    def metric_inputs(self, name: str, outputs: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments of `update` for a metric of a whole split, each [rows, ...].

        By default the predictions and the label. These are, for a label of two classes, the probabilities of
        the second one, [rows]; for more classes the probabilities, [rows, classes]; for a number,
        `prediction`, [rows]. Without `probability` among the predictions: the class codes in `prediction`.

        Args:
            name: of the metric.

        Raises:
            TrialError: `predictions` does not return what the label needs.
        """
        label, _ = label_of(name, self.schema)
        prefix = f"{label.name}_" if self.schema.extra_labels else ""
        found = self.predictions(outputs.float())
        rows, target = len(outputs), batch[label.name]
        scores = found.get(f"{prefix}prediction")
        if not label.is_regression:
            scores = found.get(f"{prefix}probability", scores)
        if scores is not None and label.is_regression and scores.numel() == rows:
            return scores.reshape(rows), target
        if scores is not None and not label.is_regression:
            if scores.shape == (rows, 2) and len(label.classes) == 2:
                return scores[:, 1], target
            if scores.shape == (rows, len(label.classes)) or (
                scores.shape == (rows,) and not scores.is_floating_point()
            ):
                return scores, target
        wanted = "'prediction', [rows]" if label.is_regression else "'probability', [rows, classes]"
        raise TrialError(f"{type(self).__name__}.predictions must return {wanted}, for the metric {name!r}")

    @classmethod
    def metric_names(cls, schema: TableSchema) -> tuple[str, ...] | None:
        """Return the names of all metrics, if they can be known; None for a task with its own `metrics`.

        Metrics that a study can name for every task, such as `auroc`, are not among them.
        """
        is_default = cls.metrics is TrainTask.metrics
        return ("loss",) if is_default and cls._reports_row_means_only() else None

    @classmethod
    def _reports_row_means_only(cls) -> bool:
        return cls.whole_split_metrics is TrainTask.whole_split_metrics

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Return the predictions of the registered model, one tensor [rows, ...] per column of its answer.

        By default the outputs, as `prediction`.
        """
        return {"prediction": outputs}


class LabelledTask(TrainTask):
    """A task whose loss, metrics and predictions follow from the label: a class or a number.

    The model must return [rows, num_outputs]. `label_smoothing` of classes, and the
    weights of the losses of several labels, can be learned.
    """

    learnable: ClassVar[tuple[str, ...]] = ("label_smoothing", "loss_weight_*")

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the model: one per class, or one for a regression.

        Raises:
            DataError: the label is a list.
        """
        check_label(None, self.schema)
        return sum(len(label.classes) or 1 for label in self.schema.labels)

    def heads(self) -> Mapping[str, tuple[slice, LabelledTask]]:
        """Return for each of several labels, by name, its outputs and a task of this label alone."""
        found, start = {}, 0
        for label in self.schema.labels:
            head = _Head(self.params, self.schema.with_only(label))
            head.learned = self.learned
            found[label.name] = (slice(start, start + head.num_outputs), head)
            start += head.num_outputs
        return found

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy, or the mean squared error of the standardised label.

        It is a scalar, or [rows] if the rows of the table have weights. With several labels, the sum over
        them.

        Raises:
            TrialError: the outputs do not have the shape [rows, num_outputs].
        """
        if outputs.ndim != 2 or outputs.shape[1] < self.num_outputs:
            raise TrialError(
                f"{type(self).__name__}: the model must return outputs of shape (rows, {self.num_outputs}) "
                f"for the label {self.schema.label.name!r} (got {tuple(outputs.shape)})"
            )
        if self.schema.extra_labels:
            losses = [head.loss(outputs[:, part], batch) for part, head in self.heads().values()]
            return torch.stack(losses).sum(dim=0)
        return self._losses(outputs, batch, reduction="mean" if self.schema.weight is None else "none")

    def _losses(self, outputs: Tensor, batch: Batch, *, reduction: str) -> Tensor:
        target = batch[self.schema.label.name]
        if self.schema.label.is_regression:
            return nn.functional.mse_loss(outputs[:, 0], self._standardised(target), reduction=reduction)
        return nn.functional.cross_entropy(outputs, target, reduction=reduction)

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return `loss` or, where the study sets class weights, focal loss or label smoothing, [rows].

        A parameter of the space with the name of the setting, such as `focal_gamma`, takes precedence. A task
        that defines `loss` itself trains with it as it is.

        Raises:
            TrialError: `loss` is not a known name.
        """
        if self.schema.extra_labels and type(self).loss is LabelledTask.loss:
            total = torch.zeros((), device=outputs.device)
            for label, (part, head) in self.heads().items():
                name = f"loss_weight_{label}"
                weight = self.learned.get(name, self.params.get(name, 1.0))
                total = total + weight * head.training_loss(outputs[:, part], batch)
            return total
        name = self.params.get("loss", CROSS_ENTROPY)
        smoothing = self.learned.get("label_smoothing", self.params.get("label_smoothing", 0.0))
        weights = self.schema.label.class_weights
        is_plain = (
            name == CROSS_ENTROPY and not weights and not isinstance(smoothing, Tensor) and smoothing == 0
        )
        if self.schema.label.is_regression or is_plain or type(self).loss is not LabelledTask.loss:
            return self.loss(outputs, batch)
        if name not in (CROSS_ENTROPY, FOCAL):
            raise TrialError(f"the parameter loss must be {CROSS_ENTROPY} or {FOCAL} (got {name!r})")
        target = batch[self.schema.label.name]
        log_probabilities = outputs.log_softmax(dim=1)[:, : self.num_outputs]
        of_target = log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1)
        # torch's own smoothing takes a number only, by which a loss cannot be differentiated.
        losses = -(1 - smoothing) * of_target - smoothing * log_probabilities.mean(dim=1)
        if name == FOCAL:  # Lin et al. 2017, arXiv:1708.02002
            gamma = self.params.get("focal_gamma", FOCAL_GAMMA)
            losses = losses * (1 - of_target.exp()).clamp(min=1e-6) ** gamma
        if weights:
            losses = losses * torch.tensor(weights, device=losses.device)[target]
        return losses

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Return `accuracy`, or `squared_error` and `absolute_error` in the label's units, each [rows].

        With several labels, the metrics and the `loss` of each, with its name: `sold_accuracy`, `sold_loss`.
        """
        if self.schema.extra_labels:
            return {
                f"{name}_{metric}": values
                for name, (part, head) in self.heads().items()
                for metric, values in {
                    "loss": head._losses(outputs[:, part], batch, reduction="none"),
                    **head.metrics(outputs[:, part], batch),
                }.items()
            }
        target = batch[self.schema.label.name]
        if self.schema.label.is_regression:
            error = (outputs[:, 0] - self._standardised(target)) * self.schema.label.deviation
            return {"squared_error": error.square(), "absolute_error": error.abs()}
        return {"accuracy": (outputs.argmax(dim=1) == target).float()}

    @classmethod
    def metric_names(cls, schema: TableSchema) -> tuple[str, ...] | None:
        """Return the names of all metrics, if they can be known; None for a task with its own `metrics`."""
        is_default = cls.metrics is LabelledTask.metrics
        return labelled_metrics(schema) if is_default and cls._reports_row_means_only() else None

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Return `prediction`, [rows]: a class's code or a number; for classes also `probability`.

        `probability` is [rows, classes], in the order of `schema.label.classes`. With several labels, those
        of each, with its name: `sold_prediction`.
        """
        if self.schema.extra_labels:
            return {
                f"{name}_{answer}": values
                for name, (part, head) in self.heads().items()
                for answer, values in head.predictions(outputs[:, part]).items()
            }
        label = self.schema.label
        if label.is_regression:
            return {"prediction": outputs[:, 0] * label.deviation + label.mean}
        return {"prediction": outputs.argmax(dim=1), "probability": outputs.softmax(dim=1)}

    def _standardised(self, target: Tensor) -> Tensor:
        return (target.float() - self.schema.label.mean) / self.schema.label.deviation


class _Head(LabelledTask):
    """The part of a task with several labels that predicts one of them."""

    def build_model(self) -> nn.Module:
        raise NotImplementedError
