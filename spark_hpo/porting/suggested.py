"""An Optuna objective as a training function: a real trial of Optuna's, on an executor."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from spark_hpo.errors import StorageError, TrialError, TrialPruned
from spark_hpo.porting.suggesting import (
    INTERMEDIATE,
    STATE,
    SYSTEM_ATTRS,
    VALUES,
    frozen_trial,
    notes_of,
    quiet_study,
)
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Measurement, Report, Trial

if TYPE_CHECKING:
    import spark_hpo.study
    from spark_hpo.train.context import TrainContext

_REFRESH_S = 2.0


class OptunaObjective:
    """Calls the objective with a trial whose parameters are those proposed, where it asks for them.

    Args:
        function: `objective(trial)`, as for `study.optimize`.
        directions: of its values.
        pruner: is asked here, about this trial and those that have ended.
        storage: of the study directory.
        name: of the study; Hyperband's pruner makes its brackets of it.
    """

    def __init__(
        self,
        function: Callable[[optuna.Trial], float | Sequence[float]],
        directions: Sequence[str],
        pruner: BasePruner,
        storage: Storage,
        name: str,
    ) -> None:
        self.carries = function
        self.directions = tuple(directions)
        self.pruner = pruner
        self.storage = storage
        self.name = name

    def __call__(self, ctx: TrainContext) -> None:
        study = quiet_study(
            study_name=self.name,
            directions=self.directions,
            sampler=_Proposed(ctx.params, ctx.seed),
        )
        peers = _Peers(study, self.storage, ctx.trial_id)
        study.pruner = _Informed(self.pruner, peers)
        trial = study.ask()
        state, values = "FAIL", None
        try:
            values = self._values(self.carries(trial))
            state = "COMPLETE"
        except optuna.TrialPruned as exc:
            state = "PRUNED"
            raise TrialPruned(str(exc)) from exc
        finally:
            frozen = study._storage.get_trial(trial._trial_id)
            ctx.params = dict(frozen.params)
            for name, note in notes_of(frozen, state=state, values=values).items():
                ctx.note(name, note)
            ctx.trace = self._curve(frozen, values)
        ctx.report(dict(zip(metrics_of(self.directions), values, strict=True)))

    def _curve(self, trial: FrozenTrial, values: Sequence[float] | None) -> tuple[Measurement, ...]:
        """What the trial has reported on its way, and at its end."""
        names = metrics_of(self.directions)
        steps = [({names[0]: value}, step + 1) for step, value in sorted(trial.intermediate_values.items())]
        if values is not None:
            last = steps[-1][1] if steps else 0
            steps.append((dict(zip(names, values, strict=True)), last + 1))
        now = time.time()
        return tuple(
            Measurement(resource=step, metrics=metrics, time=now, seconds=0.0, rows=0)
            for metrics, step in steps
            if all(map(math.isfinite, metrics.values()))
        )

    def _values(self, returned: Any) -> list[float]:
        values = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(values) != len(self.directions):
            raise TrialError(
                f"the objective has returned {returned!r}; it must be {len(self.directions)} values"
            )
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as exc:
            raise TrialError(f"the objective has returned {returned!r}; it must be numbers") from exc
        if not all(map(math.isfinite, numbers)):
            raise TrialError(f"the objective has returned {returned!r}; it must be finite")
        return numbers


class PeersCallback(Callback):
    """Tells the pruners on executors of the trials that have ended: a file in the study directory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def on_study_start(self, study: spark_hpo.study.RunningStudy) -> None:
        self._write(study.trials)

    def on_report(self, study: spark_hpo.study.RunningStudy, trial: Trial, report: Report) -> None:
        if report.notes.get(INTERMEDIATE):
            self._write(study.trials)

    def _write(self, trials: Mapping[int, Trial]) -> None:
        wanted = (STATE, VALUES, INTERMEDIATE, SYSTEM_ATTRS)
        peers = {i: {key: trial.notes[key] for key in wanted} for i, trial in trials.items() if trial.notes}
        if peers:
            self._storage.write(layout.PEERS, json.dumps(peers, separators=(",", ":")).encode())


def metrics_of(directions: Sequence[str]) -> tuple[str, ...]:
    """The names of an objective's values as metrics."""
    if len(directions) == 1:
        return ("value",)
    return tuple(f"value_{i}" for i in range(len(directions)))


class _Proposed(BaseSampler):
    """What the driver has proposed; a draw of the trial's own for all else, and where it does not fit."""

    def __init__(self, params: Mapping[str, Any], seed: int) -> None:
        self._params = params
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._params and _fits(self._params[param_name], param_distribution):
            return self._params[param_name]
        random = RandomSampler(seed=zlib.crc32(param_name.encode(), self._seed))
        return random.sample_independent(study, trial, param_name, param_distribution)


def _fits(value: Any, distribution: BaseDistribution) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


class _Peers:
    """The other trials of the study, as far as they have ended, around this one in a study in memory."""

    def __init__(self, study: Study, storage: Storage, number: int) -> None:
        self._study = study
        self._storage = storage
        self._number = number
        self._known: set[int] = set()
        self._read_at = -math.inf
        for _ in range(number):  # so that this one gets its number
            self._add_running()

    def refresh(self) -> None:
        """Read what has ended since; at most every other second."""
        if time.monotonic() - self._read_at < _REFRESH_S:
            return
        try:
            data = self._storage.read(layout.PEERS)
        except StorageError:
            return  # the pruner knows what it knew
        finally:
            self._read_at = time.monotonic()
        for key, peer in json.loads(data or b"{}").items():
            if (number := int(key)) not in self._known and number != self._number:
                self._known.add(number)
                self._end(number, peer)

    def _end(self, number: int, peer: Mapping[str, Any]) -> None:
        storage = self._study._storage
        while len(self._study.get_trials(deepcopy=False)) <= number:
            self._add_running()
        trial_id = self._study.get_trials(deepcopy=False)[number]._trial_id
        ended = frozen_trial({}, {**peer, "distributions": {}, "user_attrs": {}})
        for step, value in ended.intermediate_values.items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        for name, attribute in ended.system_attrs.items():
            storage.set_trial_system_attr(trial_id, name, attribute)
        storage.set_trial_state_values(trial_id, ended.state, ended.values)

    def _add_running(self) -> None:
        self._study._storage.create_new_trial(self._study._study_id)


class _Informed(BasePruner):
    """Another pruner, told of the other trials before it is asked."""

    def __init__(self, pruner: BasePruner, peers: _Peers) -> None:
        self._pruner = pruner
        self._peers = peers

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self._peers.refresh()
        return self._pruner.prune(study, trial)
