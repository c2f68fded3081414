"""Runs a study: one driver's work, from checking its configuration to registering its best model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from spark_hpo.backend.base import Backend
from spark_hpo.backend.sharing import open_share
from spark_hpo.config import StudyConfig, defaults
from spark_hpo.data.table import Table
from spark_hpo.driver.backend_choice import with_backend
from spark_hpo.driver.backends import open_backend
from spark_hpo.driver.build import (
    build_budget,
    build_dispatch_policy,
    build_rank_spec,
    build_table,
    open_tracker,
    prepare_table,
    start_spark,
)
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.earlier_studies import keep_earlier_trials, read_earlier_trials
from spark_hpo.driver.interrupt import Interrupt
from spark_hpo.driver.notifications import Notifications
from spark_hpo.driver.plan import StudyPlan, check_table, plan_study
from spark_hpo.driver.precheck import check_parameters
from spark_hpo.driver.provenance import provenance
from spark_hpo.driver.publish import finish_runs, load_best, publish_best, record_constant_answer
from spark_hpo.driver.result import Result
from spark_hpo.driver.table_snapshot import keep_snapshot
from spark_hpo.driver.table_source import check_source, is_ready
from spark_hpo.errors import (
    ConfigError,
    DataError,
    LeaseError,
    StudyInterrupted,
    TrackingOutage,
    TrialError,
    located,
)
from spark_hpo.search.methods import METHODS_VERSION
from spark_hpo.search.sampler import Sampler
from spark_hpo.study import Search, Study
from spark_hpo.study.callback import Callback, call_each
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.time_left import ForecastWriter
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.study_dir.tracking_place import TrackingPlace
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_registry import RegisteredModel
from spark_hpo.tracking.study_runs import RunStatus
from spark_hpo.train.reference import Trainable
from spark_hpo.trial import Trial

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.snapshots.frames import Frame


logger = logging.getLogger(__name__)

_MLFLOW_CLOSE_S = 5.0
_END_S = 15.0  # for journal and MLflow, after running trials have saved


def run_study(
    config: StudyConfig,
    *,
    resume: str = "auto",
    task: Trainable | None = None,
    space: object = None,
    sampler: Sampler | None = None,
    frame: Frame | None = None,
    spark: SparkSession | None = None,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> Result:
    """Run a study to the end of its budget, or resume the one in its directory.

    Args:
        config: the study, from `load_config` or `build_config`.
        resume: auto; must: fail if there is no study yet; never: fail if there is one.
        task: a task class or training function that replaces the configuration's task, whose text is then
            only its name. A task that was defined in a notebook is sent to executors, and stored with the
            model, as it is.
        space: replaces the configuration's space: a mapping as in YAML, a hyperopt `hp.*` space, or a Space.
        sampler: replaces the configuration's sampler.
        frame: the Spark or pandas DataFrame of a study with `data.dataframe`; not needed to resume one.
        spark: the session to use; None: the active one, or a new one.
        callbacks: called on the driver as the study progresses.
        test: whether to evaluate the best trial on the test split at the end.

    Raises:
        ConfigError: a setting is wrong.
        DataError: the table is not what the task needs.
        NoTrialSucceeded: every trial has failed.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call resumes the study.
    """
    began = time.monotonic()
    config = with_backend(config, spark)
    with located(config.source), ExitStack() as stack:
        plan = plan_study(config, task=task, space=space)
        storage = Storage(config.study_dir)
        if (warning := check_parameters(plan.code.reference, plan.space, storage)) is not None:
            logger.warning("%s", warning)
        earlier = read_earlier_trials(config, storage)
        known = Definition.load(storage)
        if resume == "must" and known is None:
            raise ConfigError(f"{storage.url}: there is no study to resume", cure="Use resume auto")
        search = build_search(config, plan.space, earlier=earlier, sampler=sampler, definition=known)
        # Errors of an existing table are raised before anything is written to the study directory.
        if config.data is not None:
            check_source(config, known)
        has_table = config.data is None or is_ready(config, known)
        table = build_table(config, plan.transforms) if has_table else None
        check_table(plan, table)
        if config.notify is not None:
            callbacks = (*callbacks, stack.enter_context(Notifications(config)))
        journal = stack.enter_context(Journal.open(storage, plan.objective, driver=provenance()))
        stack.enter_context(_interruptible(journal))
        definition = _define(plan, journal, resume)
        Settings.of(config, objects=plan.objects).write(storage)
        keep_earlier_trials(config, storage, earlier)
        session = None
        if not has_table:
            session = prepare_table(config, spark, frame)
            table = build_table(config, plan.transforms)
            check_table(plan, table)
        definition = _complete(definition, plan, journal, table)
        if config.needs_spark:
            session = session or start_spark(config, spark)  # executors warm up while MLflow is contacted
        if has_table and config.data is not None:
            keep_snapshot(config, session or spark, frame)
        logger.info("connecting to MLflow")
        tracker = open_tracker(plan, definition)
        stack.callback(tracker.close, _MLFLOW_CLOSE_S)
        TrackingPlace(tracking_uri=tracker.tracking_uri, **tracker.info()).write(storage)
        with _ending_in_mlflow(journal, tracker):
            spec = build_rank_spec(plan, table, storage, definition.study_id)
            backend = stack.enter_context(open_backend(plan, spec, session))
            interrupt = stack.enter_context(_interrupts(config, session))
            with open_share(backend.shared_slots, weight=config.resources.share) as share:
                policy = build_dispatch_policy(config, storage, table, share, interrupt.is_requested)
                study = _build_study(
                    plan, definition, search, journal, backend, tracker, policy, callbacks, resume
                )
                tracker.sync(journal)
                stopped_by = study.run()
                best = study.best
                assert best is not None, "run raises when no trial has succeeded"
                record_constant_answer(plan, table, best, study.excluded_files)
                best, tested, test_error = _complete_best(plan, study, best, test=test)
                if tested:
                    call_each(callbacks, Callback.on_tested, study, best, tested)
            model, is_published = _publish(plan, table, tracker, journal, best, tested, test_error)
            study.refuse_requests()
            journal.closed(stopped_by)
        is_complete = finish_runs(tracker, journal, RunStatus.FINISHED, best=best, test=tested)
        return Result(
            config=config,
            study=study,
            journal=journal,
            best=best,
            test=tested,
            test_error=test_error,
            stopped_by=stopped_by,
            wall_s=time.monotonic() - began,
            tracking=dict(tracker.info()),
            model=model,
            is_tracked=is_published and is_complete,
            load_model=partial(load_best, plan, table, best),
        )


def _define(plan: StudyPlan, journal: Journal, resume: str) -> Definition:
    """Create the study's definition, or check the configuration against it if the study has begun."""
    storage = journal.storage
    config = {**plan.config.model_dump(mode="json"), "space": plan.space.to_json()}
    definition = Definition.load(storage)
    if definition is None or not journal.trials:
        # Nothing has been decided yet, so what a first attempt got wrong may be corrected.
        if resume == "must":
            raise ConfigError(f"{storage.url}: there is no study to resume", cure="Use resume auto")
        created = (
            definition.redefined(config) if definition else Definition.create(config, methods=METHODS_VERSION)
        )
        created.write(storage)
        return created
    if resume == "never":
        raise ConfigError(
            f"{storage.url}: there is a study already",
            cure="Use resume auto to continue it, or choose another study_dir (`storage=` in tune)",
        )
    definition.check(config, defaults=defaults())
    return definition


def _complete(definition: Definition, plan: StudyPlan, journal: Journal, table: Table | None) -> Definition:
    """Add the fingerprints of table and code to the definition, after comparing them with earlier ones."""
    fingerprint = None if table is None else table.fingerprint
    if journal.trials:
        definition.check_table(fingerprint)
        if plan.code.has_changed(definition.code):
            logger.warning(
                "%s: the code of the task has changed since the study began; earlier results are kept. To "
                "search with the new code only, use another study_dir (`storage=` in tune)",
                journal.storage.url,
            )
    source = None if table is None else table.source
    if source is not None and source["version"] is not None:
        logger.info(
            "%s: the study reads version %s of this %s table",
            source["url"],
            source["version"],
            source["format"],
        )
    completed = definition.of_table(fingerprint, source).of_code(plan.code.fingerprint)
    completed.write(journal.storage)
    return completed


def _build_study(
    plan: StudyPlan,
    definition: Definition,
    search: Search,
    journal: Journal,
    backend: Backend,
    tracker: MlflowTracker,
    policy: DispatchPolicy,
    callbacks: Sequence[Callback],
    resume: str,
) -> Study:
    if search.warning:
        logger.warning("%s", search.warning)
    return Study(
        journal=journal,
        search=replace(search, choice=definition.choice),
        backend=backend,
        tracker=tracker,
        budget=build_budget(plan.config, definition),
        policy=policy,
        callbacks=[ForecastWriter(journal.storage), *callbacks],
        lifts_pause=resume == "must",
    )


def _complete_best(
    plan: StudyPlan, study: Study, best: Trial, *, test: bool
) -> tuple[Trial, dict[str, float], str | None]:
    """Train the final model, after a cross-validation, and evaluate the model on the test split.

    Returns:
        The best trial with its model; its metrics on the test split, or none and the error.
    """
    step = "trained on all training rows"
    try:
        best = study.train_final(best)
        if plan.config.backend == "driver" and best.checkpoint is None:
            test = False  # there is no model to evaluate, and training takes the whole cluster
        step = "evaluated on the test split"
        return best, study.test(best) if test else {}, None
    except (TrialError, DataError) as exc:
        logger.warning("trial %d could not be %s: %s", best.trial_id, step, exc)
        return best, {}, str(exc).partition("\n")[0]


def _publish(
    plan: StudyPlan,
    table: Table | None,
    tracker: MlflowTracker,
    journal: Journal,
    best: Trial,
    tested: Mapping[str, float],
    test_error: str | None,
) -> tuple[RegisteredModel | None, bool]:
    """Register the best trial's model. Return it, and whether MLflow has all of it."""
    try:
        model = publish_best(tracker, plan, table, best, tested, journal=journal, test_error=test_error)
        return model, True
    except TrackingOutage as exc:  # the search is complete; the model can be registered later
        logger.warning("%s", exc)
        return None, False


@contextmanager
def _interrupts(config: StudyConfig, session: SparkSession | None) -> Iterator[Interrupt]:
    """Turn Ctrl-C, SIGTERM and the end of spark-submit's JVM into a request that the study sees."""
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())  # after Spark has installed its own handler of Ctrl-C
        if session is not None:
            from spark_hpo.backend.spark.session import cluster_of

            limit_s = config.resources.grace_s + _END_S
            stack.enter_context(cluster_of(session).shutdown_hold(interrupt.request, limit_s=limit_s))
        yield interrupt


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
def _ending_in_mlflow(journal: Journal, tracker: MlflowTracker) -> Iterator[None]:
    """End the study's run in MLflow when the search ends early, with the status that the journal has."""
    try:
        yield
    except KeyboardInterrupt as exc:
        journal.failed(exc)
        finish_runs(tracker, journal, RunStatus.KILLED)
        raise
    except LeaseError:
        tracker.close(0.0)  # the study and its runs belong to another driver now
        raise
    except Exception as exc:  # every way in which a driver ends is recorded
        journal.failed(exc)
        finish_runs(tracker, journal, RunStatus.FAILED)
        raise
