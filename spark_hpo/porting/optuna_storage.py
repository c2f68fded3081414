"""Writes a study as a storage of Optuna, for optuna-dashboard and the other tools of Optuna."""

from __future__ import annotations

import math
import sqlite3
import tempfile
import warnings
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.objective import Mode, Objective
from spark_hpo.porting.optuna_sampler import STATE, frozen_trial
from spark_hpo.porting.optuna_space import OptunaSpace
from spark_hpo.redact import redact_all
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.space import Point, Space
from spark_hpo.trial import Trial, TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_DIRECTIONS: Mapping[Mode, Literal["minimize", "maximize"]] = {Mode.MIN: "minimize", Mode.MAX: "maximize"}
_CONSTRAINTS = "constraints"  # the attribute in which Optuna's own samplers keep them; above 0: violated


def optuna_storage(record: StudyRecord) -> bytes:
    """Return a study as an SQLite database that Optuna reads: `sqlite:///study.db`.

    The trials have the numbers, distributions, values, times and states of the study's:

    - A trial that was not promoted, or was pruned by its code, is PRUNED. With several objectives, for which
      Optuna has no pruning, it is COMPLETE if it has all values.
    - Its value is that of the moment when it was best; its intermediate values are its learning curve.
    - User attributes are the trial's notes, its other metrics, and where and how long it was trained.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as exc:
        raise ConfigError("Optuna is not installed", cure="Run: pip install 'spark_hpo[optuna]'") from exc
    trials = _Converter(record)
    objective = record.objective
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Optuna's experimental features
            file = Path(folder) / "study.db"
            storage = optuna.storages.RDBStorage(f"sqlite:///{file}", {"creator": partial(_connect, file)})
            study = optuna.create_study(
                storage=storage,
                study_name=record.name,
                directions=[_DIRECTIONS[mode] for _, mode in _objectives(objective)],
            )
            study.set_metric_names([name for name, _ in _objectives(objective)])
            for name, value in _study_attributes(record).items():
                study.set_user_attr(name, value)
            for trial in record.at_best:
                storage.create_new_trial(study._study_id, template_trial=trials.convert(trial))
            storage.remove_session()
            storage.engine.dispose()
            return file.read_bytes()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _connect(file: Path) -> sqlite3.Connection:
    """Open a database that need not survive a crash while it is written."""
    connection = sqlite3.connect(file, check_same_thread=False)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")
    return connection


class _Converter:
    """Converts the trials of a study."""

    def __init__(self, record: StudyRecord) -> None:
        self._now = record.trials
        self._objective = record.objective
        self._names = [name for name, _ in _objectives(record.objective)]
        found = ((t.trial_id, _point(record.space, t)) for t in record.at_best)
        self._points = {trial_id: point for trial_id, point in found if point is not None}
        self._space = OptunaSpace(record.space, self._points.values())

    def convert(self, trial: Trial) -> FrozenTrial:
        """Return an Optuna trial for a trial as it was when it was best."""
        now = self._now[trial.trial_id]
        times = {
            "datetime_start": datetime.fromtimestamp(now.started_at),
            "datetime_complete": None if now.ended_at is None else datetime.fromtimestamp(now.ended_at),
        }
        if STATE in now.notes and now.ended_at is not None:  # it was an Optuna trial where it ran
            return frozen_trial(now.params, now.notes, **times)
        from optuna.trial import create_trial

        state, values = self._state(now), self._values(trial)
        params, distributions = self._space.convert(self._points.get(trial.trial_id, {}))
        frozen = create_trial(
            state=state,
            values=values if state.is_finished() else None,
            params=params,
            distributions=distributions,
            intermediate_values=self._intermediate(now),
            user_attrs=self._attributes(now),
            system_attrs=self._system_attributes(trial),
        )
        frozen.datetime_start = times["datetime_start"]
        frozen.datetime_complete = times["datetime_complete"] if state.is_finished() else None
        return frozen

    def _state(self, trial: Trial) -> Any:
        from optuna.trial import TrialState as OptunaState

        match trial.state:
            case TrialState.RUNNING:
                return OptunaState.RUNNING
            case TrialState.FAILED:
                return OptunaState.FAIL
            case TrialState.COMPLETED:
                return OptunaState.COMPLETE
        has_all = self._objective.extra_objectives and self._values(trial) is not None
        return OptunaState.COMPLETE if has_all else OptunaState.PRUNED

    def _values(self, trial: Trial) -> list[float] | None:
        """Return the values of all objectives; None: a trial without them."""
        if not math.isfinite(trial.loss):
            return None
        first = self._objective.value(trial.loss)
        values = [first, *(trial.metrics.get(name, math.nan) for name in self._names[1:])]
        return values if all(map(math.isfinite, values)) else None

    def _intermediate(self, trial: Trial) -> dict[int, float]:
        measured = ((m.resource, self._objective.value(self._objective.loss(m.metrics))) for m in trial.curve)
        return {resource: value for resource, value in measured if math.isfinite(value)}

    def _attributes(self, trial: Trial) -> dict[str, Any]:
        metrics = {name: value for name, value in trial.metrics.items() if name not in self._names}
        failure = trial.failure
        facts = {
            "state": str(trial.state),
            "resource": trial.resource,
            "rung": trial.rung,
            "bracket": trial.bracket,
            "seconds": round(trial.seconds, 3),
            **({"spread": dict(trial.spread)} if trial.spread else {}),
            **({"failure": failure.message, "failure_kind": str(failure.kind)} if failure else {}),
            **({} if trial.trial_id in self._points else {"params": trial.params}),
        }
        attributes: dict[str, Any] = redact_all({**facts, **metrics, **trial.notes})
        return attributes

    def _system_attributes(self, trial: Trial) -> dict[str, Any]:
        limits = self._objective.limits
        if not limits or not math.isfinite(trial.loss):
            return {}
        violations = [limit.violation(trial.metrics) for limit in limits]
        return {_CONSTRAINTS: [v if math.isfinite(v) else 1.0 for v in violations]}


def _objectives(objective: Objective) -> list[tuple[str, Mode]]:
    return [(objective.metric, objective.mode), *objective.extra_objectives]


def _point(space: Space, trial: Trial) -> Point | None:
    """Return the parameters of a trial; None: they are not of this space, as if it was narrowed later."""
    try:
        return space.flatten(trial.params)
    except SpaceError:
        return None


def _study_attributes(record: StudyRecord) -> Mapping[str, Any]:
    return {
        "study_dir": record.url,
        "seed": record.seed,
        "method": record.search.method,
        "unit": record.unit,
    }
