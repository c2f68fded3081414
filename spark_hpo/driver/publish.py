"""Publishes the results of a study: its report, its runs in MLflow and its best model in the registry."""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spark_hpo.backend.spark import package
from spark_hpo.data.raw_rows import EXAMPLE_ROWS, inputs_of
from spark_hpo.data.stored_ranges import stored_ranges
from spark_hpo.data.table import Table, first_rows
from spark_hpo.driver.build import training_settings
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.driver.served_code import LOADER, possible_modules, write_loader
from spark_hpo.errors import CheckpointError, SparkHpoError
from spark_hpo.objective import Objective
from spark_hpo.ranking import pareto_front
from spark_hpo.report import leaderboard
from spark_hpo.report.confirmation import Confirmed, compared
from spark_hpo.report.page import FILE, write_report
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_files import ModelFiles, ModelInput, SavedModel
from spark_hpo.tracking.model_registry import MLMODEL, RegisteredModel, TestResult, register_model
from spark_hpo.tracking.projection import (
    CONFIRMATION,
    MAX_TAG,
    confirmation_metrics,
    cut,
    describe_best,
    model_tags,
    name,
)
from spark_hpo.tracking.study_runs import RunStatus
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.checkpoints.folder import has_file
from spark_hpo.train.constant import constant_answer
from spark_hpo.train.reference import Code
from spark_hpo.train.task import TrainTask
from spark_hpo.trial import Split, Trial

logger = logging.getLogger(__name__)

_REQUIREMENTS = ("torch", "numpy", "pandas", "pyarrow", "fsspec")  # of a model that is loaded elsewhere


def finish_runs(
    tracker: MlflowTracker,
    journal: Journal,
    status: RunStatus,
    *,
    best: Trial | None = None,
    test: Mapping[str, float] | None = None,
) -> bool:
    """Write the report to the study directory, complete the runs in MLflow, and close the tracker.

    MLflow gets what is pending, the leaderboard, the report and the final metrics.

    Returns:
        Whether MLflow has all of it. Never raises for an outage.
    """
    trials, objective = list(journal.trials.values()), journal.objective
    front = {trial.trial_id for trial in pareto_front(trials, objective)}
    tracker.sync(journal)  # first, because runs are written while the report is made
    written = write_report(journal.storage, is_running=False)
    rows, page = (trials, None) if written is None else (written[0].at_best, written[1])
    best_id = None if best is None else best.trial_id
    finalists = _compared(journal)
    tags = {CONFIRMATION: cut(json.dumps([one.to_json() for one in finalists]), MAX_TAG)} if finalists else {}
    metrics = {f"test_{name}": value for name, value in (test or {}).items()}
    if best is not None:
        metrics[f"best_{objective.metric}"] = best.metrics[objective.metric]
        metrics |= {
            f"best_{name}_std": spread for name, spread in best.spread.items() if name == objective.metric
        }
    return tracker.finish(
        status,
        metrics=metrics | _confirmation_metrics(finalists, objective),
        tags=tags,
        best=best,
        leaderboard=leaderboard.leaderboard(rows, objective, front, best=best_id),
        artifacts={} if page is None else {FILE: page},
        front=front if objective.extra_objectives else None,
    )


def _compared(journal: Journal) -> list[Confirmed]:
    """Return the finalists, the winner first; none if they are not all trained with all seeds."""
    finals = journal.finalists
    return [] if finals is None or not finals.is_complete else compared(finals)


def _confirmation_metrics(finalists: Sequence[Confirmed], objective: Objective) -> dict[str, float]:
    if not finalists:
        return {}
    winner = finalists[0]
    return confirmation_metrics(
        objective.metric, mean=winner.mean, spread=winner.spread, chance=winner.chance
    )


def _confirmation_tags(journal: Journal) -> dict[str, str]:
    """Return tags of the model version that say what other seeds gave."""
    finalists = _compared(journal)
    found = _confirmation_metrics(finalists, journal.objective)
    seeds = {"confirmed_seeds": len(finalists[0].values)} if finalists else {}
    return {f"spark_hpo.{name(key)}": repr(value) for key, value in (found | seeds).items()}


def record_constant_answer(
    plan: StudyPlan, table: Table | None, best: Trial, excluded_files: Collection[str]
) -> None:
    """Measure the constant answer, which the report compares the best trial with, and keep it.

    A failure is logged: the study succeeds without it.
    """
    storage = Storage(plan.config.study_dir)
    if table is None or ConstantAnswer.load(storage) is not None:
        return
    objective = plan.config.objective.build()
    try:
        found = constant_answer(table.without(excluded_files), plan.code.trainable, best.params, objective)
        if found is not None:
            found.write(storage)
    except SparkHpoError as exc:
        logger.warning("cannot measure the constant answer: %s", exc)


def publish_model(
    tracker: MlflowTracker,
    plan: StudyPlan,
    table: Table,
    best: Trial,
    test: Mapping[str, float],
    *,
    journal: Journal,
    test_error: str | None = None,
) -> RegisteredModel:
    """Export the best trial's model and register it. Idempotent: a second call finds the first one's.

    Args:
        tracker: of the study's runs.
        plan: the study, of a task.
        table: of the study.
        best: the best trial.
        test: its metrics on the test split; empty: the model is untested, and is not promoted.
        journal: of the study, for what the finalists' trainings with other seeds gave.
        test_error: why it is untested.

    Raises:
        TrackingOutage: MLflow does not answer.
        TrackingError: MLflow refuses, or the model is not valid.
    """
    storage, data = Storage(plan.config.study_dir), plan.config.data
    assert best.checkpoint is not None, "a task always saves one"
    assert data is not None, "a task has a table"
    metrics = training_settings(plan.config).metrics
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as code_folder:
        model_folder.export(
            Path(folder),
            code=plan.code,
            params=best.params,
            table=table,
            load_checkpoint=partial(checkpoint.load, storage, best.checkpoint),
            metrics=metrics,
        )
        files = ModelFiles(
            model_dir=Path(folder),
            loader_module=LOADER,
            input_example=first_rows(table, Split.TEST, EXAMPLE_ROWS),
            inputs=[
                ModelInput(name=i.name, type=i.type, is_required=i.is_required)
                for i in inputs_of(table.schema)
            ],
            predict=predictor.Predictor.load(folder).predict,
            pip_requirements=[f"{name}=={version(name)}" for name in _requirements(plan.code)],
            code_paths=_code_paths(plan, Path(folder), Path(code_folder)),
        )
        return register_model(
            tracker,
            files,
            trial_id=best.trial_id,
            resource=best.resource,
            test=TestResult(
                metrics=test, fingerprint=table.manifest(Split.TEST).fingerprint, error=test_error
            ),
            name=plan.config.registered_model,
            tags=model_tags(best) | _confirmation_tags(journal),
            description=f"Study {plan.config.name}. {describe_best(best, tracker.card.objective)}",
            promote=plan.config.mlflow.promote == "auto",
            evaluate_champion=lambda model_dir: predictor.Predictor.load(model_dir).evaluate(
                table, Split.TEST, reader=data.reader, metrics=metrics
            ),
        )


def publish_best(
    tracker: MlflowTracker,
    plan: StudyPlan,
    table: Table | None,
    best: Trial,
    test: Mapping[str, float],
    *,
    journal: Journal,
    test_error: str | None = None,
) -> RegisteredModel | None:
    """Register the best trial's model: of a task, or what a training function saved with MLflow.

    Args, errors: as for `publish_model`.

    Returns:
        None if there is no model that can be registered.
    """
    storage = Storage(plan.config.study_dir)
    if best.checkpoint is None:
        return None
    if plan.has_task:
        assert table is not None, "a task has a table"
        return publish_model(tracker, plan, table, best, test, journal=journal, test_error=test_error)
    if not has_file(storage, best.checkpoint, f"{layout.MLFLOW_MODEL}/{MLMODEL}"):
        logger.warning("the best model is in %s/%s", storage.url, best.checkpoint)
        return None
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.load(storage, best.checkpoint, folder=Path(folder))["function"]
        # Without a table, only models of this study have been tested on the same rows.
        rows = tracker.card.study_id if table is None else table.manifest(Split.TEST).fingerprint
        return register_model(
            tracker,
            SavedModel(folder=saved / layout.MLFLOW_MODEL),
            trial_id=best.trial_id,
            resource=best.resource,
            test=TestResult(metrics=test, fingerprint=rows, error=test_error),
            name=plan.config.registered_model,
            tags=_confirmation_tags(journal),
            promote=plan.config.mlflow.promote == "auto",
        )


def load_best(plan: StudyPlan, table: Table | None, best: Trial) -> Any:
    """Load the best trial's model: a Predictor, or what a training function saved.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    if best.checkpoint is None:
        raise CheckpointError(
            f"trial {best.trial_id} has no checkpoint: the training function must give its model to "
            "ctx.report(metrics, checkpoint=model.state_dict())"
        )
    state = checkpoint.load(Storage(plan.config.study_dir), best.checkpoint)
    if table is None or not plan.has_task:
        return state["function"]
    task: TrainTask = plan.code.trainable(best.params, table.schema)
    model = task.build_model()
    model.load_state_dict(state["model"])
    return predictor.Predictor(task, model, stored_ranges(table), training_settings(plan.config).metrics)


def _requirements(code: Code) -> tuple[str, ...]:
    return (*_REQUIREMENTS, "cloudpickle") if code.by_value else _REQUIREMENTS


def _code_paths(plan: StudyPlan, model: Path, folder: Path) -> list[Path]:
    """Copy the code that is stored with a model: the user's, and what the model needs of this package."""
    code = _user_code(plan, folder)
    names = {predictor.__name__, plan.code.reference.partition(":")[0]}
    if plan.code.by_value:
        names |= possible_modules((model / predictor.PICKLED_TASK).read_bytes())
    return [*write_loader(package.as_folder(folder / "whole"), names, code, folder), *code]


def _user_code(plan: StudyPlan, folder: Path) -> list[Path]:
    """Return the user's code that other machines may lack; installed packages are not in it."""
    if plan.files:
        return [file.copy_to(folder) for file in plan.files]
    module_name, separator, _ = plan.code.reference.partition(":")
    top = module_name.partition(".")[0]
    if not separator or top == package.NAME or plan.code.by_value:
        return []
    file = importlib.import_module(top).__file__
    if file is None or "site-packages" in file or not Path(file).is_file():  # or in a zip of --py-files
        return []
    return [Path(file).parent if Path(file).name == "__init__.py" else Path(file)]
