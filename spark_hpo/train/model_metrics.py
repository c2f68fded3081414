"""Measures a trained model on a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table
from spark_hpo.train.loop import Trainer
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import TrainTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Split

_BATCH_ROWS = 4096


def measure(
    task: TrainTask,
    model: torch.nn.Module,
    table: Table,
    split: Split,
    *,
    reader: str,
    metrics: Sequence[str],
) -> dict[str, float]:
    """Return the metrics of a model on a split, computed as in training.

    Args:
        model: of the task.
        metrics: of torchmetrics, besides those of the task.
    """
    world = World(rank=0, size=1, device=torch.device("cpu"))
    trainer = Trainer(task, world, TrainingSettings(metrics=tuple(metrics)), seed=0, total_steps=1)
    trainer.model.load_state_dict(model.state_dict())
    loader = Loader(
        table,
        split,
        rank=0,
        world_size=1,
        batch_size=_BATCH_ROWS,
        seed=0,
        reader=reader,
        shuffle_window=None,
    )
    return trainer.evaluate(loader)
