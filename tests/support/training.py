"""Trains a shipped task on one rank, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spark_hpo.data.table import Table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report


def train_task(
    task: str,
    table: Table,
    folder: Path,
    *,
    epochs: int,
    start: Report | None = None,
    max_epochs: int | None = None,
    params: Mapping[str, Any] | None = None,
    **more_params: Any,
) -> Report:
    """Train a trial to a number of epochs.

    Args:
        folder: the study directory.
        start: of the same trial, whose checkpoint the training resumes; None: from scratch.
        max_epochs: of a fully trained trial, if it is trained further.
        params, more_params: of the trial; pass one of them.
    """
    spec = RankSpec(
        study_id="s",
        storage=Storage(folder),
        trainable=task,
        table=table,
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=32),
        max_resource=max_epochs or epochs,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params=more_params if params is None else params,
        bracket=0,
        rung=0 if start is None else 1,
        resource_from=0 if start is None else start.resource,
        resource_to=epochs,
        checkpoint=None if start is None else start.checkpoint,
        seed=1,
    )
    return run_rank(spec, assignment, rank=0, world_size=1)
