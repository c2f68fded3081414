"""Metrics that are not means over rows, such as AUROC, over all rows of a split and all ranks."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spark_hpo.data.schema import Label
from spark_hpo.errors import TrialError
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.metric_names import (
    ALL_NAMES,
    SplitMetric,
    expanded,
    find_metric,
    label_of,
    names_for,
)
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import Batch

if TYPE_CHECKING:
    from torchmetrics import Metric

logger = logging.getLogger(__name__)


class WholeSplitMetrics:
    """The metrics of torchmetrics that a study names, and those that its task returns.

    Each rank keeps what the metrics need of its rows. `values` gathers the rows of all ranks, and computes
    from them on rank 0 what a single rank would compute. States of torchmetrics are not merged, because some
    of its metrics merge those of three ranks incorrectly.

    A trace: metrics = WholeSplitMetrics(task, ["auroc"], ...); metrics.update(outputs, batch) for each batch;
    metrics.values(world) -> {"auroc": 0.91} on every rank
    """

    def __init__(self, task: CheckedTask, names: Sequence[str], *, reported: Collection[str]) -> None:
        """
        Args:
            names: of metrics of torchmetrics.
            reported: metrics that the task computes itself, as means over rows. They are left to it.

        Raises:
            TrialError: the label does not fit a name.
        """
        self._task = task
        schema = task.task.schema
        wanted = [name for name in expanded(names, schema) if name not in reported]
        for name in wanted:
            if name in ALL_NAMES and name not in names_for(schema):
                kind = "a number" if schema.label.is_regression else "a class"
                raise TrialError(
                    f"{name} is not a metric of the label {schema.label.name!r}, which is {kind}"
                )
        self._labels = {name: label_of(name, schema) for name in wanted if name in names_for(schema)}
        self._named = {name: find_metric(rest) for name, (_, rest) in self._labels.items()}
        self._of_task = task.whole_split_metrics()
        # Metrics with the same inputs share the rows that are kept for them.
        names = [*self._named, *self._of_task]
        own = task.chooses_metric_inputs
        self._key = {name: name if own else label_of(name, schema)[0].name for name in names}
        self._rows: dict[str, list[tuple[Tensor, ...]]] = {key: [] for key in self._key.values()}

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add the rows of a batch.

        Raises:
            TrialError: the task returns no probabilities, but a metric needs them.
        """
        found = {key: self._task.metric_inputs(name, outputs, batch) for name, key in self._key.items()}
        for name, named in self._named.items():
            if named.needs_probability and not found[self._key[name]][0].is_floating_point():
                raise TrialError(
                    f"{name} needs probabilities, but {type(self._task.task).__name__}.predictions returns "
                    "no 'probability', [rows, classes]"
                )
        for key, inputs in found.items():
            self._rows[key].append(inputs)

    def values(self, world: World) -> dict[str, float]:
        """Return the metrics by name; NaN where one is not defined on these rows. Every rank must call it.

        Raises:
            TrialError: a metric of the task is not a single number.
        """
        if not self._key:
            return {}
        rows = {
            key: [world.gather_rows(torch.cat(column)) for column in zip(*batches, strict=True)]
            for key, batches in self._rows.items()
        }
        values = dict.fromkeys(self._key, 0.0)
        if world.rank == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about memory, and classes without rows
                values = {name: self._value(name, rows[self._key[name]]) for name in values}
        return dict(zip(values, world.sum(list(values.values())), strict=True))

    def _value(self, name: str, inputs: list[Tensor]) -> float:
        named = self._named.get(name)
        label = self._task.task.schema.label if named is None else self._labels[name][0]
        metric = self._of_task[name] if named is None else _build(named, label)
        for part in metric.modules():
            # The other ranks do not take part.
            part.distributed_available_fn = lambda: False  # type: ignore[assignment]
        metric.set_dtype(torch.float64)
        try:
            metric.update(*(v.double() if v.is_floating_point() else v for v in inputs))
            value = metric.compute()
        except ValueError as exc:
            logger.warning("%s is not defined on these rows: %s", name, exc)
            return math.nan
        if named is not None and named.needs_two_classes:
            present = torch.bincount(inputs[1], minlength=len(label.classes)) > 0
            if present.sum() < 2:
                logger.warning("%s is not defined on these rows, because they are of one class", name)
                return math.nan
            if isinstance(value, Tensor) and value.ndim:
                value = value[present].mean()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TrialError(
                f"{type(self._task.task).__name__}.whole_split_metrics: {name!r} must be a single number "
                f"(got {value!r:.60})"
            )
        return float(value)


def _build(found: SplitMetric, label: Label) -> Metric:
    """Return a metric of torchmetrics for a label.

    The positive class of a binary label is the second one. With more classes, every class counts alike
    (macro average), except in the accuracy.
    """
    import torchmetrics.classification
    import torchmetrics.regression

    metric: Metric
    if label.is_regression:
        metric = getattr(torchmetrics.regression, found.class_name)()
        return metric
    settings: dict[str, Any] = {"validate_args": False}  # labels and probabilities are valid
    if len(label.classes) <= 2:
        metric = getattr(torchmetrics.classification, f"Binary{found.class_name}")(**settings)
        return metric
    settings["num_classes"] = len(label.classes)
    if found.needs_two_classes:
        settings["average"] = None  # torchmetrics gives a class without rows an AUROC of 0
    elif found.class_name == "Accuracy":
        settings["average"] = "micro"
    metric = getattr(torchmetrics.classification, f"Multiclass{found.class_name}")(**settings)
    return metric
