"""The composition root: a StudyConfig becomes a Study, and its best trial a registered model.

The only module that knows every part.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spark_hpo
from spark_hpo.backend.base import Backend
from spark_hpo.config import StudyConfig
from spark_hpo.data.readers import resolve_reader
from spark_hpo.data.shards import plan_shards
from spark_hpo.data.table import Table, open_table
from spark_hpo.definition import Definition
from spark_hpo.errors import ConfigError, StudyInterrupted
from spark_hpo.journal import Journal
from spark_hpo.report import leaderboard, plots
from spark_hpo.search.registry import build_sampler, build_scheduler, build_space
from spark_hpo.search.space import Space
from spark_hpo.storage import Storage
from spark_hpo.study import Budget, Observer, Study
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.registry import ModelFiles, RegisteredModel, TestResult, register_model
from spark_hpo.tracking.store import RunStatus, StudyCard
from spark_hpo.train import checkpoint, predictor
from spark_hpo.train.reference import find_trainable, is_task
from spark_hpo.train.settings import Precision, TrainingSettings
from spark_hpo.train.worker import RankSpec, run_rank
from spark_hpo.train.world import RendezvousServer
from spark_hpo.trial import Mode, Objective, Split, Trial

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a study has found."""

    config: StudyConfig
    study: Study
    journal: Journal
    best: Trial
    test: dict[str, float]  # of the best trial, on the test split
    stopped_by: str
    wall_s: float  # of this driver
    tracking: dict[str, Any]
    model: RegisteredModel | None  # None: a training function, whose checkpoint only it can read

    def summary(self) -> dict[str, Any]:
        """The JSON line that ends `jobs/tune.py`."""
        progress, objective = self.study.progress, objective_of(self.config)
        states = Counter(str(trial.state) for trial in self.journal.trials.values())
        return {
            "study": self.config.name,
            "study_dir": self.config.study_dir,
            "metric": objective.metric,
            "mode": str(objective.mode),
            "best": {
                "trial": self.best.trial_id,
                "params": dict(self.best.params),
                "value": objective.value(self.best.loss),
                "resource": self.best.resource,
            },
            "test": self.test,
            "trials": dict(sorted(states.items())),
            "segments": {"run": progress.run, "replayed": progress.replayed, "failed": progress.failed},
            "resource_spent": progress.resource_spent,
            "slot_utilization": round(progress.busy_seconds / progress.slot_seconds, 4)
            if progress.slot_seconds
            else None,
            "wall_s": round(self.wall_s, 1),
            "stopped_by": self.stopped_by,
            "mlflow": self.tracking,
            "model": self.model
            and {"name": self.model.name, "version": self.model.version, "uri": self.model.uri},
        }


def objective_of(config: StudyConfig) -> Objective:
    return Objective(metric=config.objective.metric, mode=Mode(config.objective.mode))


def run_study(
    config: StudyConfig,
    *,
    place: str = "study",
    resume: str = "auto",
    space: object = None,
    observers: Sequence[Callable[[Journal], Observer]] = (),
) -> Result:
    """Run a study to the end of its budget, or go on with the one in its directory.

    Args:
        space: in place of the configuration's: a mapping as in YAML, a hyperopt `hp.*` space, or a Space.
        place: where the configuration stands, for messages; a task file is looked for beside it.
        resume: auto; must: refuse when there is no study yet; never: refuse when there is one.
        observers: each is given the journal, and then sees the study.

    Raises:
        ConfigError: before anything has been started.
        DataError: the table is not what the task needs.
        NoTrialSucceeded: every trial has failed.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call goes on.
    """
    run = _Run(config, place, build_space(config.space if space is None else space, f"{place}: space"))
    return run.run(resume, observers)


@dataclass
class _Run:
    """One driver's work on a study, from checking its settings to registering its model."""

    config: StudyConfig
    place: str
    space: Space
    _session: SparkSession | None = field(default=None, init=False)
    _rendezvous: RendezvousServer | None = field(default=None, init=False)  # lives as long as the run

    def run(self, resume: str, observers: Sequence[Callable[[Journal], Observer]]) -> Result:
        began = time.monotonic()
        config, objective = self.config, objective_of(self.config)
        # All that can be known before Spark starts is checked before it does.
        reference, module_file = self._task_reference()
        trainable = find_trainable(reference)
        search = f"{self.place}: search"
        sampler = build_sampler(
            config.search.sampler, self.space, config.seed, place=search, **config.search.sampler_settings
        )
        scheduler = build_scheduler(
            config.search.scheduler,
            place=search,
            max_trials=_trial_limit(config, sampler),
            **_scheduler_settings(config),
        )
        table = self._table()
        if table is None and is_task(trainable):
            raise ConfigError(f"{self.place}: data is missing; only a training function can do without")
        storage = Storage(config.study_dir)
        with ExitStack() as stack:
            journal = Journal.open(storage, objective)
            stack.callback(journal.close)
            definition = self._definition(storage, table, resume, has_begun=bool(journal.trials))
            tracker = self._tracker(definition, objective)
            stack.callback(tracker.close, 5.0)
            spec = RankSpec(
                study_id=definition.study_id,
                storage=storage,
                trainable=reference,
                table=table,
                objective=objective,
                settings=_training_settings(config),
                max_resource=config.search.max_resource,
                seed=config.seed,
                reader=config.data.reader if config.data else "auto",
                shuffle_window=config.data.shuffle_window if config.data else 1,
            )
            backend = self._backend(spec, module_file)
            stack.callback(backend.close)
            study = Study(
                journal=journal,
                sampler=sampler,
                scheduler=scheduler,
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
                max_infra_retries=config.resources.max_infra_retries,
                observers=[observer(journal) for observer in observers],
            )
            with self._ends(journal, tracker, objective):
                tracker.sync(journal)
                stopped_by = study.run()
                best = study.best
                assert best is not None, "run raises when no trial has succeeded"
                test = study.test(best)
                model = None
                if is_task(trainable) and table is not None:
                    model = self._register(tracker, best, test, table, storage, reference, module_file)
                else:
                    logger.warning("the best model is in %s/%s", storage.url, best.checkpoint)
            journal.closed(stopped_by)
            self._finish(tracker, journal, objective, RunStatus.FINISHED, best, test)
            return Result(
                config=config,
                study=study,
                journal=journal,
                best=best,
                test=test,
                stopped_by=stopped_by,
                wall_s=time.monotonic() - began,
                tracking=dict(tracker.info()),
                model=model,
            )

    # The parts -------------------------------------------------------------------------------------------

    def _spark(self) -> SparkSession:
        from spark_hpo.backend.session import start_session

        if self._session is None:
            self._session = start_session(self.config.name, self.config.spark)
        return self._session

    def _task_reference(self) -> tuple[str, Path | None]:
        """`module:Name`, and the file to be shipped when the task was named by its file."""
        path, separator, name = self.config.task.rpartition(":")
        if not separator or not path.endswith(".py"):
            return self.config.task, None
        file = (Path(self.place).parent / path).resolve()
        if not file.is_file():
            raise ConfigError(f"{self.place}: task is {self.config.task!r}, but there is no file {file}")
        sys.path.insert(0, str(file.parent))
        return f"{file.stem}:{name}", file

    def _table(self) -> Table | None:
        data = self.config.data
        if data is None:
            return None
        resolve_reader(data.reader)
        if data.prepare is not None:
            from spark_hpo.prepare.cli import prepare

            prepare([*data.prepare, "--output", data.path], start_spark=self._spark)
        table = open_table(data.path)
        for split in Split:  # fewer rows than ranks are refused here, before any job
            plan_shards(table.manifest(split), self.config.resources.world_size, seed=None)
        return table

    def _definition(
        self, storage: Storage, table: Table | None, resume: str, *, has_begun: bool
    ) -> Definition:
        config = {**self.config.model_dump(mode="json"), "space": self.space.to_json()}
        fingerprint = table.fingerprint if table is not None else None
        definition = Definition.load(storage)
        if definition is None or not has_begun:
            # Nothing has been decided yet: what a first attempt got wrong may still be put right.
            if resume == "must":
                raise ConfigError(f"{storage.url}: there is no study to resume; use --resume auto")
            return Definition.create(storage, config, fingerprint)
        if resume == "never":
            raise ConfigError(
                f"{storage.url}: there is a study already; use --resume auto to go on with it, "
                "or choose another study_dir"
            )
        definition.check(config, fingerprint, place=self.place)
        return definition

    def _tracker(self, definition: Definition, objective: Objective) -> MlflowTracker:
        config = self.config
        card = StudyCard(
            study_id=definition.study_id,
            name=config.name,
            objective=objective,
            config=config.model_dump(mode="json"),
            space=self.space.to_json(),
            git_commit=_git_commit(),
        )
        return MlflowTracker(config.mlflow.tracking_uri, config.mlflow.experiment or config.name, card)

    def _backend(self, spec: RankSpec, module_file: Path | None) -> Backend:
        resources = self.config.resources
        if self.config.backend == "inline":
            from spark_hpo.backend.inline import InlineBackend

            gpu = "0" if resources.gpus_per_rank else None
            return InlineBackend(partial(run_rank, spec), world_size=resources.world_size, gpu=gpu)
        from spark_hpo.backend.session import check_resources, driver_host
        from spark_hpo.backend.spark import SparkBackend

        spark = self._spark()
        check_resources(spark, world_size=resources.world_size, gpus_per_rank=resources.gpus_per_rank)
        if module_file is not None:
            spark.sparkContext.addPyFile(str(module_file))
        if resources.world_size > 1:
            self._rendezvous = RendezvousServer(driver_host(spark), timeout_s=resources.rank_timeout_s)
            spec = replace(spec, rendezvous=self._rendezvous.address)
        return SparkBackend(
            spark,
            partial(run_rank, spec),
            world_size=resources.world_size,
            gpus_per_rank=resources.gpus_per_rank,
        )

    # The end ---------------------------------------------------------------------------------------------

    @contextmanager
    def _ends(self, journal: Journal, tracker: MlflowTracker, objective: Objective) -> Iterator[None]:
        """However the search ends, journal and MLflow say so."""
        try:
            yield
        except KeyboardInterrupt:
            journal.closed("interrupted")
            self._finish(tracker, journal, objective, RunStatus.KILLED)
            raise StudyInterrupted(
                f"interrupted; {len(journal.trials)} trials are in {self.config.study_dir}. "
                "The same command goes on with them"
            ) from None
        except Exception:
            self._finish(tracker, journal, objective, RunStatus.FAILED)
            raise

    def _finish(
        self,
        tracker: MlflowTracker,
        journal: Journal,
        objective: Objective,
        status: RunStatus,
        best: Trial | None = None,
        test: dict[str, float] | None = None,
    ) -> None:
        trials = list(journal.trials.values())
        figures = {
            "history": plots.history(trials, objective),
            "parameters": plots.parameters(trials, objective),
        }
        metrics = {f"test_{name}": value for name, value in (test or {}).items()}
        if best is not None:
            metrics[f"best_{objective.metric}"] = objective.value(best.loss)
        tracker.sync(journal)
        tracker.finish(
            status,
            metrics=metrics,
            leaderboard=leaderboard.leaderboard(trials, objective),
            artifacts={"plots.html": plots.page(figures, title=self.config.name)},
        )

    def _register(
        self,
        tracker: MlflowTracker,
        best: Trial,
        test: dict[str, float],
        table: Table,
        storage: Storage,
        reference: str,
        module_file: Path | None,
    ) -> RegisteredModel:
        reader = self.config.data.reader if self.config.data else "auto"
        assert best.checkpoint is not None, "a task always saves one"
        with tempfile.TemporaryDirectory() as folder:
            predictor.export(
                Path(folder),
                task=reference,
                params=best.params,
                schema=table.schema,
                load_checkpoint=partial(checkpoint.load, storage, best.checkpoint),
            )
            files = ModelFiles(
                model_dir=Path(folder),
                loader_module=predictor.__name__,
                input_example=predictor.example_rows(table, reader=reader),
                predict=predictor.Predictor.load(folder).predict,
                pip_requirements=[
                    f"{name}=={version(name)}" for name in ("torch", "numpy", "pandas", "pyarrow", "fsspec")
                ],
                code_paths=[Path(spark_hpo.__file__).parent, *_code_of(reference, module_file)],
            )
            return register_model(
                tracker,
                files,
                trial_id=best.trial_id,
                resource=best.resource,
                test=TestResult(metrics=test, fingerprint=table.manifest(Split.TEST).fingerprint),
                name=self.config.mlflow.registered_model or self.config.name,
                evaluate_champion=lambda model_dir: predictor.Predictor.load(model_dir).evaluate(
                    table, Split.TEST, reader=reader
                ),
            )


def _trial_limit(config: StudyConfig, sampler: Any) -> int | None:
    """Trials that the scheduler may open: the budget's, and no more than a grid has points."""
    limits = [limit for limit in (config.budget.trials, getattr(sampler, "size", None)) if limit is not None]
    return min(limits, default=None)


def _scheduler_settings(config: StudyConfig) -> dict[str, Any]:
    """What the study file sets; the scheduler refuses what does not fit it."""
    search = config.search
    given = {
        "max_resource": search.max_resource,
        "min_resource": search.min_resource,
        "reduction_factor": search.reduction_factor,
    }
    return {name: value for name, value in given.items() if value is not None} | search.scheduler_settings


def _training_settings(config: StudyConfig) -> TrainingSettings:
    fields = config.training.model_dump()
    return TrainingSettings(**{**fields, "precision": Precision(config.training.precision)})


def _code_of(reference: str, module_file: Path | None) -> list[Path]:
    """The user's own code, to travel with the model; what is installed does not."""
    if module_file is not None:
        return [module_file]
    module_name, separator, _ = reference.partition(":")
    top = module_name.partition(".")[0]
    if not separator or top == spark_hpo.__name__:
        return []
    file = importlib.import_module(top).__file__
    if file is None or "site-packages" in file:
        return []
    return [Path(file).parent if Path(file).name == "__init__.py" else Path(file)]


def _git_commit() -> str | None:
    """The commit of the working directory; None outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
