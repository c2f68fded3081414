"""The end of a study: its report, its figures in MLflow, and its best model in the registry."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spark_hpo.backend.spark import package
from spark_hpo.data.prepared_rows import stored_ranges
from spark_hpo.data.table import Table, first_rows
from spark_hpo.errors import CheckpointError
from spark_hpo.objective import Objective
from spark_hpo.ranking import pareto_front
from spark_hpo.report import leaderboard
from spark_hpo.report.study_report import FILE, write_report
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_registry import ModelFiles, RegisteredModel, TestResult, register_model
from spark_hpo.tracking.run_store import RunStatus
from spark_hpo.train import checkpoint, predictor
from spark_hpo.train.reference import Code, is_task
from spark_hpo.train.task import TrainTask
from spark_hpo.trial import Split, Trial

_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "fsspec")  # of a model that is loaded elsewhere


def finish_runs(
    tracker: MlflowTracker,
    journal: Journal,
    objective: Objective,
    status: RunStatus,
    *,
    best: Trial | None = None,
    test: Mapping[str, float] | None = None,
) -> bool:
    """Write the report into the study directory; to MLflow what is pending, the leaderboard, the report and
    the final metrics; and close the tracker.

    Returns whether MLflow has all of it; never raises for an outage.
    """
    trials = list(journal.trials.values())
    front = {trial.trial_id for trial in pareto_front(trials, objective)}
    tracker.sync(journal)  # first: runs are written while the report is made
    report = write_report(journal.storage, is_running=False)
    metrics = {f"test_{name}": value for name, value in (test or {}).items()}
    if best is not None:
        metrics[f"best_{objective.metric}"] = best.metrics[objective.metric]
    return tracker.finish(
        status,
        metrics=metrics,
        leaderboard=leaderboard.leaderboard(trials, objective, front),
        artifacts={} if report is None else {FILE: report},
        front=front if objective.extra_objectives else None,
    )


_EXAMPLE_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Where a study's model comes from and where it goes."""

    storage: Storage  # of the study directory
    table: Table
    reader: str
    code: Code  # of the task
    files: tuple[Path, ...]  # of the task and the transforms, where they are not installed
    registered_model: str
    promote: bool  # whether the alias moves to it where it is better


def publish_model(
    tracker: MlflowTracker, publication: Publication, best: Trial, test: Mapping[str, float]
) -> RegisteredModel:
    """Export the best trial's model and register it. Called again, it finds what is there.

    Raises:
        TrackingOutage: MLflow does not answer.
        TrackingError: it refuses, or the model is not as it must be.
    """
    table, reader = publication.table, publication.reader
    assert best.checkpoint is not None, "a task always saves one"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as ours:
        predictor.export(
            Path(folder),
            code=publication.code,
            params=best.params,
            table=table,
            load_checkpoint=partial(checkpoint.load, publication.storage, best.checkpoint),
        )
        files = ModelFiles(
            model_dir=Path(folder),
            loader_module=predictor.__name__,
            input_example=first_rows(table, Split.TEST, _EXAMPLE_ROWS),
            predict=predictor.Predictor.load(folder).predict,
            pip_requirements=[f"{name}=={version(name)}" for name in _requirements(publication.code)],
            code_paths=[package.as_folder(Path(ours)), *_code_of(publication)],
        )
        return register_model(
            tracker,
            files,
            trial_id=best.trial_id,
            resource=best.resource,
            test=TestResult(metrics=test, fingerprint=table.manifest(Split.TEST).fingerprint),
            name=publication.registered_model,
            promote=publication.promote,
            evaluate_champion=lambda model_dir: predictor.Predictor.load(model_dir).evaluate(
                table, Split.TEST, reader=reader
            ),
        )


def load_best(storage: Storage, code: Code, table: Table | None, best: Trial) -> Any:
    """The best trial's model: a Predictor; of a training function, what it has saved.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if best.checkpoint is None:
        raise CheckpointError(
            f"trial {best.trial_id} has no checkpoint: the training function must give its model to "
            "ctx.report(metrics, checkpoint=model.state_dict())"
        )
    state = checkpoint.load(storage, best.checkpoint)
    if table is None or not is_task(code.trainable):
        return state["function"]
    task: TrainTask = code.trainable(best.params, table.schema)
    model = task.build_model()
    model.load_state_dict(state["model"])
    return predictor.Predictor(task, model, stored_ranges(table))


def _requirements(code: Code) -> tuple[str, ...]:
    return (*_REQUIREMENTS, "cloudpickle") if code.by_value else _REQUIREMENTS


def _code_of(publication: Publication) -> list[Path]:
    """The user's own code, to travel with the model; what is installed does not."""
    if publication.files:
        return list(publication.files)
    module_name, separator, _ = publication.code.reference.partition(":")
    top = module_name.partition(".")[0]
    if not separator or top == package.NAME or publication.code.by_value:
        return []
    file = importlib.import_module(top).__file__
    if file is None or "site-packages" in file or not Path(file).is_file():  # or in a zip of --py-files
        return []
    return [Path(file).parent if Path(file).name == "__init__.py" else Path(file)]
