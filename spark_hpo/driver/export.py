"""Exports a trial's model as a folder, without Spark and MLflow."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spark_hpo.config import StudyConfig
from spark_hpo.driver.build import build_table, training_settings
from spark_hpo.driver.plan import plan_study
from spark_hpo.errors import ConfigError, located
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.model_folder import export
from spark_hpo.trial import Trial


def export_model(config: StudyConfig, trial: Trial, folder: str | Path, *, space: object = None) -> None:
    """Write a trial's model, with the source files of its task, to a folder that `Predictor.load` reads.

    Args:
        config: as for the study.
        trial: a trial whose checkpoint still exists: the best one, or one of the Pareto front.
        folder: where to write.
        space: as for the study.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: the task is a training function.
        DataError: the table, whose schema is a part of the model, cannot be read.
    """
    with located(config.source):
        plan = plan_study(config, space=space)
        if not plan.has_task or trial.checkpoint is None:
            raise ConfigError("is a training function, so there is no model to load", key="task")
        table = build_table(config, plan.transforms)
        assert table is not None, "a task has a table"
    export(
        Path(folder),
        code=plan.code,
        params=trial.params,
        table=table,
        load_checkpoint=partial(checkpoint.load, Storage(config.study_dir), trial.checkpoint),
        metrics=training_settings(config).metrics,
    )
    for file in plan.files:
        file.copy_to(Path(folder))
