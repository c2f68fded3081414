"""The composition root: a StudyConfig becomes a Study, and its best trial a registered model.

The only module that knows every part.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle

from spark_hpo.assembly import build_search, knowledge_of, objective_of
from spark_hpo.backend.base import Backend
from spark_hpo.backend.cluster import cluster_of
from spark_hpo.callback import Callback
from spark_hpo.config import StudyConfig, defaults
from spark_hpo.data.readers import resolve_reader
from spark_hpo.data.shards import plan_shards
from spark_hpo.data.table import Table, open_table
from spark_hpo.definition import Definition
from spark_hpo.errors import BackendError, ConfigError, LeaseError, StudyInterrupted, TrackingOutage
from spark_hpo.interrupt import Interrupt
from spark_hpo.journal import Journal
from spark_hpo.provenance import git_commit, provenance
from spark_hpo.publish import Publication, finish_runs, load_best, publish_model
from spark_hpo.result import Result
from spark_hpo.search.registry import build_space
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.settings import Settings
from spark_hpo.storage import Storage
from spark_hpo.study import Budget, Study
from spark_hpo.sync import Synced, journal_at_rest, write_missing
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.registry import RegisteredModel
from spark_hpo.tracking.store import RunStatus, StudyCard
from spark_hpo.train.checkpoint import load as load_checkpoint
from spark_hpo.train.predictor import export
from spark_hpo.train.reference import Code, Trainable, is_task
from spark_hpo.train.worker import RankSpec, run_rank
from spark_hpo.train.world import Rendezvous, RendezvousServer
from spark_hpo.trial import Assignment, Objective, Report, Split, Trial
from spark_hpo.wiring import dispatch_policy, node_cache, training_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.backend.cluster import Cluster

logger = logging.getLogger(__name__)

_OTHER_CODE = (
    "the task's code is not what this study was started with, and what was found before stays as it is; "
    "for a search with the new code alone choose another study_dir (storage of tune)"
)
SCRATCH_PREFIX = ".doctor-"  # of a folder in the study directory, for as long as a rehearsal takes
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
    parsed = build_space(
        config.space if space is None else space,
        f"{place}: space",
        constraints=config.search.constraints,
    )
    run = _Run(config, place, parsed, task, spark, sampler, has_own_space=space is not None)
    return run.run(resume, callbacks, test=test)


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
    parsed = build_space(
        config.space if space is None else space, f"{place}: space", constraints=config.search.constraints
    )
    return _Run(config, place, parsed, task).sync()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """What goes to the executors."""

    assignment_bytes: int  # with each assignment, to each rank
    file_bytes: Mapping[str, int]  # once, by name: the task's code


class Rehearsal:
    """A study without its search: whether it would run. Leaves nothing behind.

    What is raised is what `run_study` would raise. The table must be there: nothing is prepared.
    """

    def __init__(
        self, config: StudyConfig, *, place: str = "study", spark: SparkSession | None = None
    ) -> None:
        space = build_space(config.space, f"{place}: space", constraints=config.search.constraints)
        self._run = _Run(config, place, space, spark=spark)

    def check(self) -> None:
        """Settings, search, code and reader, as far as they can be known before Spark starts."""
        self._run.check()

    def table(self) -> Table | None:
        """The table, with its footers read and its rows planned; None: the study has none."""
        return self._run._table(may_prepare=False)

    def shipment(self) -> Shipment:
        """What goes to the executors."""
        return self._run.shipment()

    def first_step(self, timeout_s: float) -> Report | None:
        """What one batch of the first trial gives; None: only its training function would know."""
        return self._run.rehearse(timeout_s)


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
    parsed = build_space(config.space if space is None else space, f"{place}: space")
    _Run(config, place, parsed).export(trial, Path(folder))


@dataclass
class _Run:
    """One driver's work on a study, from checking its settings to registering its model."""

    config: StudyConfig
    place: str
    space: Space
    task: Trainable | None = None  # where it was not named
    spark: SparkSession | None = None  # the caller's
    sampler: Sampler | None = None  # where it was not named
    has_own_space: bool = False  # in place of the configuration's
    _session: SparkSession | None = field(default=None, init=False)
    _transform_files: list[Path] = field(default_factory=list, init=False)  # to be shipped
    _server: RendezvousServer | None = field(default=None, init=False)  # closed with the run

    def run(self, resume: str, callbacks: Sequence[Callback], *, test: bool = True) -> Result:
        began = time.monotonic()
        config, objective = self.config, objective_of(self.config)
        # All that can be known before Spark starts is checked before it does.
        code = self._code()
        build_search(config, self.space, place=self.place, sampler=self.sampler)
        if config.data is not None:
            resolve_reader(config.data.reader)
        elif is_task(code.trainable):
            raise ConfigError(f"{self.place}: data is missing; only a training function can do without")
        storage = Storage(config.study_dir)
        with ExitStack() as stack:
            journal = Journal.open(storage, objective, driver=provenance())
            stack.callback(journal.close)
            has_begun = bool(journal.trials)
            definition = self._definition(storage, resume, has_begun=has_begun)
            self._settings(code).write(storage)
            table = self._table()
            if config.backend == "spark":
                self._spark()  # its executors warm up while MLflow is looked for
            tracker = self._tracker(definition, objective)
            stack.callback(tracker.close, 5.0)
            with self._ends(journal, tracker, objective):
                fingerprint = table.fingerprint if table is not None else None
                if has_begun:
                    definition.check_table(fingerprint, place=self.place)
                    if code.has_changed(definition.code):
                        logger.warning("%s: %s", storage.url, _OTHER_CODE)
                definition.of_table(fingerprint).of_code(code.fingerprint).write(storage)
                knowledge = knowledge_of(config, self.space, storage)
                search = build_search(
                    config, self.space, place=self.place, knowledge=knowledge, sampler=self.sampler
                )
                if search.remark:
                    logger.warning("%s", search.remark)
                spec = self._spec(definition.study_id, storage, table, code)
                backend = self._backend(spec, code)
                if self._server is not None:
                    stack.callback(self._server.close)
                stack.callback(backend.close)
                interrupt = stack.enter_context(Interrupt())  # after Spark, which takes Ctrl-C for itself
                if self._session is not None:
                    limit_s = config.resources.grace_s + _END_S
                    hold = cluster_of(self._session).shutdown_hold(interrupt.request, limit_s=limit_s)
                    stack.enter_context(hold)
                study = Study(
                    journal=journal,
                    sampler=search.sampler,
                    scheduler=search.scheduler,
                    explorer=search.explorer,
                    stopping=search.stopping,
                    backend=backend,
                    tracker=tracker,
                    objective=objective,
                    budget=Budget(
                        trials=config.budget.trials,
                        resource=config.budget.resource,
                        seconds=config.budget.seconds,
                    ),
                    seed=config.seed,
                    storage=storage,
                    max_concurrent=config.resources.max_concurrent,
                    dispatch=dispatch_policy(config, storage, table, interrupt.is_requested),
                    slot_timeout_s=config.resources.slot_timeout_s,
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
                    publication = self._publication(storage, table, code)
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

    def sync(self) -> Synced:
        objective, storage = objective_of(self.config), Storage(self.config.study_dir)
        if Definition.load(storage) is None:
            raise ConfigError(f"{storage.url}: there is no study here that MLflow could lack")
        definition = self._definition(storage, "must", has_begun=True)
        code = self._code()

        def publish(best: Trial, test: Mapping[str, float]) -> RegisteredModel | None:
            table = self._table()
            if table is None or not is_task(code.trainable):
                return None
            definition.check_table(table.fingerprint, place=self.place)
            publication = self._publication(storage, table, code)
            return publish_model(tracker, publication, best, test)

        with ExitStack() as stack:
            journal = stack.enter_context(journal_at_rest(storage, objective))
            tracker = self._tracker(definition, objective)
            stack.callback(tracker.close, 5.0)
            return write_missing(tracker, journal, objective, publish=publish)

    def check(self) -> None:
        """All that can be known before Spark starts."""
        self._code()
        build_search(self.config, self.space, place=self.place)
        resolve_reader(self._reader)

    def shipment(self) -> Shipment:
        """What goes to the executors."""
        code, table = self._code(), self._table(may_prepare=False)
        spec = self._spec("doctor", Storage(self.config.study_dir), table, code)
        files = {file.name: file.stat().st_size for file in self._code_files(code)}
        return Shipment(assignment_bytes=len(cloudpickle.dumps(partial(run_rank, spec))), file_bytes=files)

    def rehearse(self, timeout_s: float) -> Report | None:
        """One batch through one step of the first trial, where and as it will be trained."""
        config, code, table = self.config, self._code(), self._table(may_prepare=False)
        if table is None or not is_task(code.trainable):
            return None  # what a training function does first is its own affair
        params = build_search(config, self.space, place=self.place).sampler.ask(0)
        batch_size = int(params.get("batch_size", config.training.batch_size))
        scratch = Storage(f"{config.study_dir.rstrip('/')}/{SCRATCH_PREFIX}{uuid.uuid4().hex[:8]}")
        spec = self._spec("doctor", scratch, table.for_one_batch(config.resources.world_size), code)
        # An epoch of so many parts has one step in each; nothing stays on the machines.
        parts = max(1, table.manifest(Split.TRAIN).rows // max(batch_size, config.resources.world_size))
        spec = replace(spec, parts=parts, max_resource=1, node_cache=None)
        first = Assignment(
            trial_id=0,
            attempt=1,
            params=params,
            bracket=0,
            rung=0,
            resource_from=0,
            resource_to=1,
            checkpoint=None,
            seed=config.seed,
        )
        with ExitStack() as stack:
            stack.callback(scratch.remove)
            backend = self._backend(spec, code)
            if self._server is not None:
                stack.callback(self._server.close)
            stack.callback(backend.close)
            backend.submit(first)
            report = backend.wait(timeout_s)
        if report is None:
            raise BackendError(f"one step of one trial has not ended within {timeout_s:.0f} s")
        return report

    def export(self, trial: Trial, folder: Path) -> None:
        code = self._code()
        if not is_task(code.trainable) or trial.checkpoint is None:
            raise ConfigError(f"{self.place}: the task is a training function, and that has no model to load")
        table = self._table(may_prepare=False)
        assert table is not None, "a study of a task has one"
        export(
            folder,
            code=code,
            params=trial.params,
            schema=table.schema,
            load_checkpoint=partial(load_checkpoint, Storage(self.config.study_dir), trial.checkpoint),
        )
        for file in self._code_files(code):
            shutil.copy(file, folder)

    # The parts -------------------------------------------------------------------------------------------

    def _spec(self, study_id: str, storage: Storage, table: Table | None, code: Code) -> RankSpec:
        config = self.config
        return RankSpec(
            study_id=study_id,
            storage=storage,
            trainable=code.shipped,
            table=table,
            objective=objective_of(config),
            settings=training_settings(config),
            max_resource=config.search.max_resource,
            seed=config.seed,
            reader=self._reader,
            shuffle_window=config.data.shuffle_window if config.data else 1,
            parts=config.search.parts,
            node_cache=node_cache(config),
            rank_timeout_s=None if config.backend == "inline" else config.resources.rank_timeout_s,
        )

    @property
    def _reader(self) -> str:
        return self.config.data.reader if self.config.data else "auto"

    def _spark(self) -> SparkSession:
        from spark_hpo.backend.session import start_session

        if self._session is None:
            self._session = start_session(
                self.config.name,
                self.config.spark,
                timeout_s=self.config.resources.slot_timeout_s,
                spark=self.spark,
            )
        return self._session

    def _code(self) -> Code:
        if self.task is not None:
            return Code.of(self.task)
        return Code.named(*self._reference("task", self.config.task))

    def _code_files(self, code: Code) -> tuple[Path, ...]:
        """What executors, and who loads the model, cannot import by themselves."""
        return tuple(dict.fromkeys([*([code.file] if code.file else []), *self._transform_files]))

    def _reference(self, key: str, reference: str) -> tuple[str, Path | None]:
        """`module:name`, and the file to be shipped when the code was named by its file."""
        path, separator, name = reference.rpartition(":")
        if not separator or not path.endswith(".py"):
            return reference, None
        file = (Path(self.place).parent / path).resolve()
        if not file.is_file():
            raise ConfigError(f"{self.place}: {key} is {reference!r}, but there is no file {file}")
        if sys.path[0] != str(file.parent):
            sys.path.insert(0, str(file.parent))
        return f"{file.stem}:{name}", file

    def _table(self, *, may_prepare: bool = True) -> Table | None:
        data = self.config.data
        if data is None:
            return None
        if data.prepare is not None and may_prepare:
            from spark_hpo.prepare.cli import prepare

            def start_spark() -> SparkSession:
                logger.info("%s: the table is being prepared", data.path)
                return self._spark()

            try:
                prepared = prepare([*data.prepare, "--output", data.path], start_spark=start_spark)
            except ConfigError as exc:
                raise ConfigError(f"{self.place}: data.prepare: {exc}") from exc
            if prepared.fresh:
                logger.info("%s: prepared, %d rows", data.path, sum(prepared.rows.values()))
        code = {column: self._reference("data.transforms", text) for column, text in data.transforms.items()}
        self._transform_files = [file for _, file in code.values() if file is not None]
        table = open_table(
            data.path,
            where=data.where,
            nulls=data.nulls,
            truncate=data.truncate,
            transforms={column: reference for column, (reference, _) in code.items()},
            trust_petastorm_metadata=data.trust_petastorm_metadata,
        )
        for split in Split:  # fewer rows than ranks are refused here, before any job
            plan_shards(table.manifest(split), self.config.resources.world_size, seed=None)
        return table

    def _publication(self, storage: Storage, table: Table, code: Code) -> Publication:
        return Publication(
            storage=storage,
            table=table,
            reader=self._reader,
            code=code,
            files=self._code_files(code),
            registered_model=self.config.registered_model,
            promote=self.config.mlflow.promote == "auto",
        )

    def _definition(self, storage: Storage, resume: str, *, has_begun: bool) -> Definition:
        config = {**self.config.model_dump(mode="json"), "space": self.space.to_json()}
        definition = Definition.load(storage)
        if definition is None or not has_begun:
            # Nothing has been decided yet: what a first attempt got wrong may still be put right.
            if resume == "must":
                raise ConfigError(f"{storage.url}: there is no study to resume; use resume auto")
            created = definition.redefined(config) if definition else Definition.create(config)
            created.write(storage)
            return created
        if resume == "never":
            raise ConfigError(
                f"{storage.url}: there is a study already; use resume auto to go on with it, "
                "or choose another study_dir (storage of tune)"
            )
        definition.check(config, place=self.place, defaults=defaults())
        return definition

    def _settings(self, code: Code) -> Settings:
        is_named = self.task is None or (not code.by_value and code.reference == self.config.task)
        objects = [*([] if is_named else ["task"]), *(["space"] if self.has_own_space else [])]
        return Settings.of(self.config, place=self.place, objects=objects)

    def _tracker(self, definition: Definition, objective: Objective) -> MlflowTracker:
        config = self.config
        card = StudyCard(
            study_id=definition.study_id,
            name=config.name,
            objective=objective,
            config=config.model_dump(mode="json"),
            space=self.space.to_json(),
            git_commit=git_commit(),
        )
        uri, registry = config.mlflow.tracking_uri, config.registry_uri
        return MlflowTracker(uri, config.experiment, card, registry_uri=registry)

    def _backend(self, spec: RankSpec, code: Code) -> Backend:
        resources = self.config.resources
        if self.config.backend == "inline":
            from spark_hpo.backend.inline import InlineBackend

            gpus = range(math.ceil(resources.gpus_per_rank))
            return InlineBackend(partial(run_rank, spec), world_size=resources.world_size, gpus=gpus)
        from spark_hpo.backend.session import check_resources
        from spark_hpo.backend.spark import SparkBackend

        spark = self._spark()
        cluster = cluster_of(spark)
        check_resources(cluster, world_size=resources.world_size)
        for file in self._code_files(code):
            cluster.ship(file)
        if resources.world_size > 1:
            spec = replace(spec, rendezvous=self._rendezvous(cluster))
        return SparkBackend(
            spark,
            partial(run_rank, spec),
            world_size=resources.world_size,
            gpus_per_rank=resources.gpus_per_rank,
            slot_timeout_s=resources.slot_timeout_s,
        )

    def _rendezvous(self, cluster: Cluster) -> Rendezvous:
        resources, driver_host = self.config.resources, cluster.driver_host
        # A rank that watches itself ends first, and can say where it stood.
        timeout_s = resources.rank_timeout_s * 1.2 + 5
        if resources.rendezvous == "driver" and driver_host is None:
            raise ConfigError(
                f"{self.place}: resources.rendezvous is 'driver', but executors of a Connect server do not "
                "reach this process; it must be auto or spark"
            )
        if driver_host is None or resources.rendezvous == "spark":
            return Rendezvous(host=None, timeout_s=timeout_s)
        self._server = RendezvousServer(
            driver_host, timeout_s=timeout_s, bind=cluster.driver_bind_address or driver_host
        )
        return self._server.address

    # The end ---------------------------------------------------------------------------------------------

    @contextmanager
    def _ends(self, journal: Journal, tracker: MlflowTracker, objective: Objective) -> Iterator[None]:
        """However the search ends, journal and MLflow say so."""
        try:
            yield
        except KeyboardInterrupt:
            journal.closed("interrupted")
            finish_runs(tracker, journal, objective, RunStatus.KILLED)
            raise StudyInterrupted(
                f"interrupted; {len(journal.trials)} trials are in {self.config.study_dir}. "
                "The same command goes on with them"
            ) from None
        except LeaseError:
            tracker.close(0.0)  # the study is another driver's now, and so are its runs
            raise
        except Exception:  # whatever ends the study, its run must not seem to go on
            finish_runs(tracker, journal, objective, RunStatus.FAILED)
            raise
