"""Computes the constant answer of a table, or the naive forecast: what every model should beat."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from spark_hpo.data.loader import Batch
from spark_hpo.data.schema import Label
from spark_hpo.data.table import Table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.label_statistics import batches_of, label_batches
from spark_hpo.train.metric_names import known_among, label_of
from spark_hpo.train.reference import Trainable
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import LabelledTask
from spark_hpo.train.tasks.forecast import ForecastTask
from spark_hpo.train.whole_split import WholeSplitMetrics
from spark_hpo.trial import Params, Split

_ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def constant_answer(
    table: Table, trainable: Trainable, params: Params, objective: Objective
) -> ConstantAnswer | None:
    """Measure a model that ignores its input, with the task's own loss and metrics, on the validation split.

    The model always answers the most frequent class (with the shares of the classes as probabilities) or, in
    a regression, the mean or the median, whichever is better. It is chosen on the validation split, so no
    other constant is better there. Only the label columns are read. With several
    labels, each has its own constant.

    For a `ForecastTask`, the answer is the seasonal-naive forecast instead.

    Args:
        params: of any trial; the task is built from them.

    Returns:
        None where the task derives from neither, or its metric needs more than the label.

    Raises:
        DataError: the split cannot be read.
    """
    if isinstance(trainable, type) and issubclass(trainable, ForecastTask):
        return _naive_forecast(table, trainable(params, table.schema), objective.metric)
    if not (isinstance(trainable, type) and issubclass(trainable, LabelledTask)):
        return None
    task = trainable(params, table.schema)
    batches = list(label_batches(table, Split.VALIDATION))
    if not table.schema.extra_labels:
        return _best_constant(task, objective.metric, objective.mode, batches)
    if type(task).loss is not LabelledTask.loss or type(task).metrics is not LabelledTask.metrics:
        return None
    heads = {name: head for name, (_, head) in task.heads().items()}
    if objective.metric != "loss":
        label, metric = label_of(objective.metric, table.schema)
        found = _best_constant(heads[label.name], metric, objective.mode, batches)
        return found and replace(found, metric=objective.metric)
    # The loss is the sum over the labels, so the best answers are those of each label.
    parts = {name: _best_constant(head, "loss", objective.mode, batches) for name, head in heads.items()}
    known = {name: part for name, part in parts.items() if part is not None}
    if len(known) < len(parts):
        return None
    answer = ", ".join(f"{name}: {part.answer}" for name, part in known.items())
    return ConstantAnswer(metric="loss", value=sum(part.value for part in known.values()), answer=answer)


def _best_constant(
    task: LabelledTask, metric: str, mode: Mode, batches: Sequence[Batch]
) -> ConstantAnswer | None:
    """Measure constant answers of a task with one label, and return the best."""
    label = task.schema.label
    measured = []
    for answer, outputs in _candidates(label, torch.cat([batch[label.name] for batch in batches])):
        value = _measured(task, metric, outputs, batches)
        if not math.isfinite(value):
            return None
        measured.append(ConstantAnswer(metric=metric, value=value, answer=answer))
    best = max if mode is Mode.MAX else min
    return best(measured, key=lambda found: found.value)


def _candidates(label: Label, labels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield answers in words, and the outputs [1, num_outputs] that give them."""
    if label.is_regression:
        for value in (labels.double().mean().item(), labels.double().median().item()):
            yield f"{value:.5g}", torch.tensor([[(value - label.mean) / label.deviation]])
        return
    counts = torch.bincount(labels, minlength=len(label.classes)).float()
    most = int(counts.argmax())
    # A class that is never the right answer gets a tiny probability, because its logarithm must be finite.
    outputs = (counts / counts.sum()).clamp(min=1e-12).log()
    yield repr(label.classes[most]), outputs[None]
    if len(label.classes) == 2:  # the better answer by a metric of the rare class, such as F1
        yield repr(label.classes[1 - most]), outputs[None].flip(1)


def _measured(task: LabelledTask, metric: str, outputs: torch.Tensor, batches: Sequence[Batch]) -> float:
    """Return a metric over all rows; NaN where it cannot be computed from the label."""
    total, rows = 0.0, 0.0
    checked = CheckedTask(task)
    whole: WholeSplitMetrics | None = None
    try:
        for batch in batches:
            size = len(batch[task.schema.label.name])
            answers = outputs.expand(size, -1)
            weights = checked.row_weights(batch)
            rows += size if weights is None else float(weights.sum())
            if metric == "loss":
                total += float(checked.loss(answers, batch, is_training=False)) * size
            elif metric in (means := task.metrics(answers, batch)):
                values = means[metric].double()
                total += float((values if weights is None else values * weights).sum())
            else:
                whole = whole or WholeSplitMetrics(checked, known_among([metric]), reported=means)
                whole.update(answers, batch)
        return total / rows if whole is None else whole.values(_ALONE)[metric]
    except Exception:  # user code, which may need other columns or another shape of outputs
        return math.nan


def _naive_forecast(table: Table, task: ForecastTask, metric: str) -> ConstantAnswer | None:
    """Measure the seasonal-naive forecast, which the task reports beside each of its errors."""
    name = "naive_scaled_error" if metric == "loss" else f"naive_{metric}"
    total, rows = 0.0, 0
    for batch in batches_of(table, Split.VALIDATION):
        naive = batch[task.schema.label.name]
        means = task.metrics(naive, batch)
        if name not in means:
            return None
        total += float(means[name].double().sum())
        rows += len(naive)
    return ConstantAnswer(metric=metric, value=total / rows, answer="the last season")
