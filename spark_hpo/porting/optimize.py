"""Optuna objectives on Spark: what a program calls instead of `study.optimize`."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from spark_hpo.porting.study_options import MANY, TrialLimit, study_config
from spark_hpo.porting.suggesting import STATE, SuggestingSampler, frozen_trial, quiet_study
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.storage import Storage

if TYPE_CHECKING:
    import optuna
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

_PLACE = "optimize"
_MODES = {"minimize": "min", "maximize": "max"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OptunaResult(Result):
    """What an Optuna objective has come to."""

    def to_optuna(self) -> optuna.Study:
        """A study of Optuna's with all trials that have ended, in memory: for its plots and its tables."""
        objective = self.config.objective
        words = {mode: word for word, mode in _MODES.items()}
        study = quiet_study(
            study_name=self.config.name,
            directions=[words[mode] for mode in (objective.mode, *objective.also.values())],
        )
        for trial in self.journal.trials.values():
            if STATE in trial.notes and trial.ended_at is not None:
                began, ended = map(datetime.datetime.fromtimestamp, (trial.started_at, trial.ended_at))
                study.add_trial(
                    frozen_trial(trial.params, trial.notes, datetime_start=began, datetime_complete=ended)
                )
        return study


def optimize(
    objective: Callable[[optuna.Trial], float | Sequence[float]],
    *,
    n_trials: int | None = None,
    timeout: float | None = None,
    direction: str | None = None,
    directions: Sequence[str] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
    seed: int | None = None,
    parallelism: int | None = None,
    name: str | None = None,
    storage: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    spark: SparkSession | None = None,
    callbacks: Sequence[Callback] = (),
    **sections: Any,
) -> OptunaResult:
    """Optimise an Optuna objective, each trial as a Spark job.

        def objective(trial):
            x = trial.suggest_float("x", -5, 5)
            return (x - 1) ** 2

        result = spark_hpo.optimize(objective, n_trials=40, parallelism=4)

    The trial is Optuna's own: `suggest_*`, in branches and loops, `report`, `should_prune`,
    `set_user_attr`, `params` and `number` are what they are there.

    Args:
        objective: returns a number, or several. It may be a closure.
        n_trials: of the study, those of earlier calls included.
        timeout: seconds until nothing new is started. Running trials are finished.
        direction: "minimize" (the default) or "maximize".
        directions: the same for several values.
        sampler: Optuna's, asked on the driver; None: its TPE. A parameter that no trial has asked for yet is
            drawn at random.
        pruner: Optuna's, asked on executors, with trials that have ended; None: its median rule.
        enqueue: parameters of trials that run first.
        seed: of the search; None: any. A study that is resumed keeps its own.
        parallelism: trials at the same time; None: as many as the cluster has slots for.
        name: of the study and its MLflow experiment; None: the function's.
        storage: the study directory, any URL that driver and executors reach; the same call with the same
            storage goes on where the last one ended. None: a new one in `studies/`.
        resume: auto; must: refuse when there is no study yet; never: refuse when there is one.
        spark: the session to be used; None: the active one, or a new one.
        callbacks: are told what happens, on the driver.
        sections: of a study file, over what this sets: `mlflow={"tracking_uri": ...}`,
            `resources={"gpus_per_rank": 1}`.

    Raises:
        ConfigError: an argument is wrong, or Optuna is not installed.
        NoTrialSucceeded: every trial has failed or was pruned.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call with the same `storage` goes on.
    """
    try:
        import optuna
    except ImportError as exc:
        raise ConfigError(f"{_PLACE}: Optuna is not installed: pip install 'spark_hpo[optuna]'") from exc

    from spark_hpo.porting.suggested import OptunaObjective, PeersCallback, metrics_of

    if isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler):
        raise ConfigError(
            f"{_PLACE}: sampler is {type(sampler).__name__}, but what there is to go through is not known "
            "before trials have run: use run_study, with a space and search.sampler: grid"
        )
    wanted = _directions(direction, directions)
    metrics = dict(zip(metrics_of(wanted), (_MODES[word] for word in wanted), strict=True))
    (metric, mode), *also = metrics.items()
    if n_trials is None and timeout is None:
        raise ConfigError(f"{_PLACE}: set n_trials, timeout or both, or the study never ends")
    config = study_config(
        _PLACE,
        objective,
        name=name,
        storage=storage,
        seed=seed,
        parallelism=parallelism,
        record={
            "objective": {"metric": metric, "mode": mode, "also": dict(also)},
            "space": {"optuna": "chosen by each trial as it runs"},
            "search": {"sampler": "random", "scheduler": "full", "max_resource": 1},
            "budget": {"resource": MANY, "seconds": timeout},
        },
        sections=sections,
    )
    study_dir = Storage(config.study_dir)
    told: list[Callback] = [TrialLimit(n_trials or MANY), *callbacks]
    if not isinstance(pruner, optuna.pruners.NopPruner):
        told.append(PeersCallback(study_dir))
    logger.info("the study is in %s: with it as `storage`, the same call goes on", config.study_dir)
    result = run_study(
        config,
        resume=resume,
        task=OptunaObjective(
            objective, wanted, pruner or optuna.pruners.MedianPruner(), study_dir, config.name
        ),
        sampler=SuggestingSampler(
            sampler or optuna.samplers.TPESampler(), config.seed, directions=wanted, first=enqueue
        ),
        spark=spark,
        callbacks=told,
        test=False,  # an objective has no test split
    )
    return OptunaResult(**{item.name: getattr(result, item.name) for item in fields(result)})


def _directions(direction: str | None, directions: Sequence[str] | None) -> tuple[str, ...]:
    if direction is not None and directions is not None:
        raise ConfigError(f"{_PLACE}: direction and directions are both set; set one of them")
    wanted = tuple(directions) if directions is not None else (direction or "minimize",)
    for word in wanted:
        if word not in _MODES:
            raise ConfigError(f"{_PLACE}: direction is {word!r}; it must be minimize or maximize")
    if not wanted:
        raise ConfigError(f"{_PLACE}: directions is empty; it must have one for each value")
    return wanted
