"""Measures a model on a split: the loss and the task's metrics over all rows of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spark_hpo.data.loader import Pass
from spark_hpo.errors import TrialError
from spark_hpo.train.autocast import autocast
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.device_batches import on_device
from spark_hpo.train.micro_batches import MicroBatches
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.strategy import LossModule
from spark_hpo.train.training_settings import Precision
from spark_hpo.train.whole_split import WholeSplitMetrics


def evaluate(
    task: CheckedTask,
    model: LossModule,
    batches: Pass,
    *,
    world: World,
    precision: Precision,
    parts: MicroBatches,
    names: Sequence[str] = (),
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return `loss` and all metrics over all rows of all ranks. Every rank must call it.

    The loss and the task's `metrics` are means over rows, weighted where rows have weights. A metric that is
    not defined on these rows is NaN.

    Args:
        batches: this rank's share of the split.
        names: of metrics of torchmetrics to measure, unless the task has a metric of the same name.
        parts: halves the batches that do not fit the device, if it may.
        on_progress: called after each batch.

    Raises:
        TrialError: a metric of the task does not have one value per row, or the task does not return what a
            metric in `names` needs.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    weight_sum = 0.0
    whole: WholeSplitMetrics | None = None
    with torch.inference_mode(), autocast(precision, world.device):
        for batch in batches.timed(on_device(batches, world.device)):
            for part, (outputs, loss) in parts.each_part(batch, model):
                loss = loss.detach().double() * outputs.shape[0]
                sums["loss"] = sums.get("loss", torch.zeros_like(loss)) + loss
                weights = task.row_weights(part)
                weight_sum += outputs.shape[0] if weights is None else float(weights.sum())
                for name, values in task.metrics(outputs, part).items():
                    total = (values.double() if weights is None else values.double() * weights).sum()
                    sums[name] = sums.get(name, torch.zeros_like(total)) + total
                whole = whole or WholeSplitMetrics(task, names, reported=sums)
                whole.update(outputs, part)
            on_progress()
    # The ranks agree on the order of `sums`, because the same code fills it everywhere.
    *totals, weight_sum = world.sum([*(float(value) for value in sums.values()), weight_sum])
    if not weight_sum:
        raise TrialError("all rows of the split have the weight 0 (data.weight)")
    means = {name: total / weight_sum for name, total in zip(sums, totals, strict=True)}
    return means if whole is None else {**whole.values(world), **means}
