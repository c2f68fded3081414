"""optimize: a replacement for Optuna's `study.optimize` that runs trials on Spark."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError, located
from spark_hpo.porting.optuna_sampler import STATE, OptunaDefineByRunSampler, frozen_trial, quiet_study
from spark_hpo.porting.study_options import MANY, TrialLimit, study_config
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
    """The result of `optimize`."""

    def to_optuna(self) -> optuna.Study:
        """Return an in-memory Optuna study with all trials that have ended, for Optuna's plots and tables."""
        objective = self.config.objective
        directions = {mode: word for word, mode in _MODES.items()}
        study = quiet_study(
            study_name=self.config.name,
            directions=[directions[mode] for mode in (objective.mode, *objective.also.values())],
        )
        for trial in self.journal.trials.values():
            if STATE in trial.notes and trial.ended_at is not None:
                began, ended = map(datetime.datetime.fromtimestamp, (trial.started_at, trial.ended_at))
                study.add_trial(
                    frozen_trial(trial.params, trial.notes, datetime_start=began, datetime_complete=ended)
                )
        return study


@located(_PLACE)
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
    """Optimise an Optuna objective, with each trial as a Spark job or a process.

        def objective(trial):
            x = trial.suggest_float("x", -5, 5)
            return (x - 1) ** 2

        result = spark_hpo.optimize(objective, n_trials=40, parallelism=4)

    The objective gets a real Optuna trial: `suggest_*`, also in branches and loops, `report`, `should_prune`,
    `set_user_attr`, `params` and `number` work as in Optuna.

    Args:
        objective: returns a number, or one per direction. It may be a closure.
        n_trials: the number of trials of the study, including those of earlier calls.
        timeout: seconds after which no new trial starts; running trials are finished.
        direction: "minimize" (the default) or "maximize".
        directions: one per value, for an objective that returns several.
        sampler: an Optuna sampler, which runs on the driver; None: TPESampler. A parameter that no earlier
            trial has asked for gets a random value.
        pruner: an Optuna pruner, which runs on executors and sees the trials that have ended; None:
            MedianPruner.
        enqueue: parameters of trials that run before all others.
        seed: of the search; None: a random one. A study that is resumed keeps its seed.
        parallelism: the largest number of trials at a time; None: as many as the cluster has slots for.
        name: of the study and its MLflow experiment; None: the name of the function.
        storage: the study directory: a path or URL that driver and executors can reach. The same call with
            the same storage resumes the study. None: a new directory in `studies/`.
        resume: "auto"; "must": raise if the study does not exist; "never": raise if it exists.
        spark: the session to use; None: the active one, or a new one.
        callbacks: called on the driver while the study runs.
        sections: sections of a study file that override what this function sets, such as
            `mlflow={"tracking_uri": ...}` and `resources={"gpus_per_rank": 1}`.

    Raises:
        ConfigError: an argument is wrong, or Optuna is not installed.
        NoTrialSucceeded: every trial has failed or was pruned.
        StudyInterrupted: by Ctrl-C or SIGTERM. The same call with the same `storage` resumes the study.
    """
    try:
        import optuna
    except ImportError as exc:
        raise ConfigError("Optuna is not installed", cure="Run: pip install 'spark_hpo[optuna]'") from exc

    from spark_hpo.porting.optuna_objective import OptunaObjective, metrics_of
    from spark_hpo.porting.optuna_peers import PeersCallback

    if isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler):
        raise ConfigError(
            "cannot enumerate the points, because the space is not known before trials have run",
            key="sampler",
            value=sampler,
            cure="Use run_study with a space and search.sampler: grid",
        )
    wanted = _directions(direction, directions)
    metrics = dict(zip(metrics_of(wanted), (_MODES[word] for word in wanted), strict=True))
    (metric, mode), *also = metrics.items()
    if n_trials is None and timeout is None:
        raise ConfigError("the study would never end", cure="Set n_trials, timeout or both")
    config = study_config(
        _PLACE,
        objective,
        name=name,
        storage=storage,
        seed=seed,
        parallelism=parallelism,
        timeout=timeout,
        objective={"metric": metric, "mode": mode, "also": dict(also)},
        space={"optuna": "chosen by each trial as it runs"},
        sections=sections,
    )
    study_dir = Storage(config.study_dir)
    all_callbacks: list[Callback] = [TrialLimit(n_trials or MANY), *callbacks]
    if not isinstance(pruner, optuna.pruners.NopPruner):
        all_callbacks.append(PeersCallback(study_dir))
    logger.info("study directory: %s; pass it as `storage` to resume", config.study_dir)
    result = run_study(
        config,
        resume=resume,
        task=OptunaObjective(
            objective, wanted, pruner or optuna.pruners.MedianPruner(), study_dir, config.name
        ),
        sampler=OptunaDefineByRunSampler(
            sampler or optuna.samplers.TPESampler(), config.seed, directions=wanted, enqueue=enqueue
        ),
        spark=spark,
        callbacks=all_callbacks,
        test=False,  # an objective has no test split
    )
    return OptunaResult(**{item.name: getattr(result, item.name) for item in fields(result)})


def _directions(direction: str | None, directions: Sequence[str] | None) -> tuple[str, ...]:
    if direction is not None and directions is not None:
        raise ConfigError("direction and directions are both set", cure="Set one of them")
    wanted = tuple(directions) if directions is not None else (direction or "minimize",)
    for word in wanted:
        if word not in _MODES:
            raise ConfigError("must be 'minimize' or 'maximize'", key="direction", value=word)
    if not wanted:
        raise ConfigError("is empty; it must have one direction per value", key="directions")
    return wanted
