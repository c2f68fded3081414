"""The composition root: a StudyConfig becomes a Study, and its best trial a registered model.

The only module that knows every part.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spark_hpo.backend.spark.cluster import cluster_of
from spark_hpo.config import StudyConfig
from spark_hpo.driver.build import Parts
from spark_hpo.driver.build_search import knowledge_of
from spark_hpo.driver.interrupt import Interrupt
from spark_hpo.driver.provenance import provenance
from spark_hpo.driver.publish import finish_runs, load_best, publish_model
from spark_hpo.driver.result import Result
from spark_hpo.driver.sync import Synced, journal_at_rest, write_missing
from spark_hpo.driver.wiring import dispatch_policy
from spark_hpo.errors import ConfigError, LeaseError, StudyInterrupted, TrackingOutage
from spark_hpo.objective import Objective
from spark_hpo.search.sampler import Sampler
from spark_hpo.study import Budget, Study
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_registry import RegisteredModel
from spark_hpo.tracking.run_store import RunStatus
from spark_hpo.train.checkpoint import load as load_checkpoint
from spark_hpo.train.predictor import export
from spark_hpo.train.reference import Trainable, is_task
from spark_hpo.trial import Trial

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


logger = logging.getLogger(__name__)

_OTHER_CODE = (
    "the task's code is not what this study was started with, and what was found before stays as it is; "
    "for a search with the new code alone choose another study_dir (storage of tune)"
)
_END_S = 15.0  # for journal and MLflow, when running trials have saved


def run_study(
    config: StudyConfig,
    *,
    place: str = "study",
    resume: str = "auto",
    task: Trainable | None = None,
    space: object = None,
    sampler: Sampler | None = None,
    spark: SparkSession | None = None,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> Result:
    """Run a study to the end of its budget, or go on with the one in its directory.

    Args:
        place: where the configuration stands, for messages; a task file is looked for beside it.
        resume: auto; must: refuse when there is no study yet; never: refuse when there is one.
        task: in place of the configuration's, which is but its name then: a task class or a training
            function. What was written in a notebook is sent to executors, and kept with the model, as it is.
        space: in place of the configuration's: a mapping as in YAML, a hyperopt `hp.*` space, or a Space.
        sampler: in place of the configuration's: what proposes parameters.
        spark: the session to be used; None: the active one, or a new one.
        callbacks: are told what happens, on the driver.
        test: whether the best trial is evaluated on the test split at the end.

    Raises:
        ConfigError: before anything has been started.
        DataError: the table is not what the task needs.
        NoTrialSucceeded: every trial has failed.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call goes on.
    """
    parts = Parts.of(config, place, space=space, task=task, spark=spark, sampler=sampler)
    return _run(parts, resume, callbacks, test=test)


def sync_study(
    config: StudyConfig, *, place: str = "study", task: Trainable | None = None, space: object = None
) -> Synced:
    """Write what MLflow lacks of a study that has run: runs, the report, the registered model.

    Nothing is trained, and Spark is not started.

    Args:
        config: as it was for the study.
        place: as for `run_study`.
        task: as it was for the study.
        space: as it was for the study.

    Raises:
        ConfigError: there is no such study.
        LeaseError: a driver works on it, and writes its runs itself.
        TrackingError: MLflow still does not answer, or refuses.
    """
    return _sync(Parts.of(config, place, space=space, task=task))


def export_model(
    config: StudyConfig, trial: Trial, folder: str | Path, *, place: str = "study", space: object = None
) -> None:
    """Write a trial's model to a folder that `Predictor.load` reads. MLflow and Spark are not needed.

    The file of the task's code, if it has one, lies in the folder too.

    Args:
        config: as it was for the study.
        trial: with its checkpoint there still: the best one, or one of the Pareto front.
        place: as for `run_study`.
        space: as it was for the study.

    Raises:
        CheckpointError: its checkpoint is gone, or damaged.
        ConfigError: the task is a function.
        DataError: the table cannot be read: its schema is a part of the model.
    """
    parts = Parts.of(config, place, space=space)
    code = parts.code()
    if not is_task(code.trainable) or trial.checkpoint is None:
        raise ConfigError(f"{parts.place}: the task is a training function, and that has no model to load")
    table = parts.table(may_prepare=False)
    assert table is not None, "a study of a task has one"
    export(
        Path(folder),
        code=code,
        params=trial.params,
        table=table,
        load_checkpoint=partial(load_checkpoint, Storage(config.study_dir), trial.checkpoint),
    )
    for file in parts.code_files(code):
        shutil.copy(file, folder)


def _run(parts: Parts, resume: str, callbacks: Sequence[Callback], *, test: bool) -> Result:
    """One driver's work on a study, from checking its settings to registering its model."""
    began = time.monotonic()
    config, objective = parts.config, parts.config.objective.build()
    # All that can be known before Spark starts is checked before it does.
    code = parts.code()
    parts.search()
    if config.data is not None:
        parts.check_reader()
    elif is_task(code.trainable):
        raise ConfigError(f"{parts.place}: data is missing; only a training function can do without")
    storage = Storage(config.study_dir)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal.open(storage, objective, driver=provenance()))
        stack.enter_context(_interruptible(journal))
        has_begun = bool(journal.trials)
        definition = parts.definition(storage, resume, has_begun=has_begun)
        parts.settings(code).write(storage)
        table = parts.table()
        if config.backend == "spark":
            parts.start_spark()  # its executors warm up while MLflow is looked for
        tracker = parts.tracker(definition, objective)
        stack.callback(tracker.close, 5.0)
        with _ends(journal, tracker, objective):
            fingerprint = table.fingerprint if table is not None else None
            if has_begun:
                definition.check_table(fingerprint, place=parts.place)
                if code.has_changed(definition.code):
                    logger.warning("%s: %s", storage.url, _OTHER_CODE)
            definition.of_table(fingerprint).of_code(code.fingerprint).write(storage)
            knowledge = knowledge_of(config, parts.space, storage)
            search = parts.search(knowledge)
            if search.warning:
                logger.warning("%s", search.warning)
            spec = parts.spec(definition.study_id, storage, table, code)
            backend = parts.backend(spec, code, stack)
            interrupt = stack.enter_context(Interrupt())  # after Spark, which takes Ctrl-C for itself
            if parts.session is not None:
                limit_s = config.resources.grace_s + _END_S
                hold = cluster_of(parts.session).shutdown_hold(interrupt.request, limit_s=limit_s)
                stack.enter_context(hold)
            study = Study(
                journal=journal,
                search=search,
                backend=backend,
                tracker=tracker,
                budget=Budget(
                    trials=config.budget.trials,
                    resource=config.budget.resource,
                    seconds=config.budget.seconds,
                ),
                policy=dispatch_policy(config, storage, table, interrupt.is_requested),
                callbacks=callbacks,
            )
            tracker.sync(journal)
            stopped_by = study.run()
            best = study.best
            assert best is not None, "run raises when no trial has succeeded"
            tested = study.test(best) if test else {}
            journal.closed(stopped_by)
            model, is_published = None, True
            if is_task(code.trainable) and table is not None:
                publication = parts.publication(storage, table, code)
                try:
                    model = publish_model(tracker, publication, best, tested)
                except TrackingOutage as exc:  # the search has come to its end all the same
                    logger.warning("%s", exc)
                    is_published = False
            elif best.checkpoint is not None:
                logger.warning("the best model is in %s/%s", storage.url, best.checkpoint)
        is_complete = finish_runs(tracker, journal, objective, RunStatus.FINISHED, best=best, test=tested)
        return Result(
            config=config,
            study=study,
            journal=journal,
            best=best,
            test=tested,
            stopped_by=stopped_by,
            wall_s=time.monotonic() - began,
            tracking=dict(tracker.info()),
            model=model,
            is_tracked=is_published and is_complete,
            load_model=partial(load_best, storage, code, table, best),
        )


def _sync(parts: Parts) -> Synced:
    objective, storage = parts.config.objective.build(), Storage(parts.config.study_dir)
    if Definition.load(storage) is None:
        raise ConfigError(f"{storage.url}: there is no study here that MLflow could lack")
    definition = parts.definition(storage, "must", has_begun=True)
    code = parts.code()

    def publish(best: Trial, test: Mapping[str, float]) -> RegisteredModel | None:
        table = parts.table()
        if table is None or not is_task(code.trainable):
            return None
        definition.check_table(table.fingerprint, place=parts.place)
        publication = parts.publication(storage, table, code)
        return publish_model(tracker, publication, best, test)

    with ExitStack() as stack:
        journal = stack.enter_context(journal_at_rest(storage, objective))
        tracker = parts.tracker(definition, objective)
        stack.callback(tracker.close, 5.0)
        return write_missing(tracker, journal, objective, publish=publish)


@contextmanager
def _interruptible(journal: Journal) -> Iterator[None]:
    """Raise Ctrl-C and SIGTERM, at whatever point they come, as `StudyInterrupted`."""
    try:
        yield
    except KeyboardInterrupt:
        raise StudyInterrupted(
            f"interrupted; {len(journal.trials)} trials are in {journal.storage.url}. "
            "Rerun the same command to resume"
        ) from None


@contextmanager
def _ends(journal: Journal, tracker: MlflowTracker, objective: Objective) -> Iterator[None]:
    """However the search ends, journal and MLflow say so."""
    try:
        yield
    except KeyboardInterrupt as exc:
        journal.failed(exc)
        finish_runs(tracker, journal, objective, RunStatus.KILLED)
        raise
    except LeaseError:
        tracker.close(0.0)  # the study is another driver's now, and so are its runs
        raise
    except Exception:  # whatever ends the study, its run must not seem to go on
        finish_runs(tracker, journal, objective, RunStatus.FAILED)
        raise
