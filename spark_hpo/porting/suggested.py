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
_SEGMENT_BYTES = 2**14  # a file of peers is full from this size on


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
        self.wrapped_function = function
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
            values = self._values(self.wrapped_function(trial))
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
    """Writes the trials that have ended to the study directory, for the pruners on executors.

    The files are segments of limited size, so that a report costs the same however many trials there are.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pending: dict[int, Mapping[str, Any]] = {}  # ended, not written yet
        self._segment: dict[int, Mapping[str, Any]] = {}  # the last one, which is not full
        self._number = 0

    def on_study_start(self, study: spark_hpo.study.RunningStudy) -> None:
        # An earlier driver may have filled the segments in another order.
        self._storage.delete_all([f"{layout.PEERS}/{name}" for name in self._storage.names(layout.PEERS)])
        for trial in study.trials.values():
            self._add(trial.trial_id, trial.notes)
        self._write()

    def on_report(self, study: spark_hpo.study.RunningStudy, trial: Trial, report: Report) -> None:
        self._add(trial.trial_id, report.notes)
        if report.notes.get(INTERMEDIATE):  # pruners compare trials by these; others can wait
            self._write()

    def _add(self, trial_id: int, notes: Mapping[str, Any]) -> None:
        if notes:
            self._pending[trial_id] = {key: notes[key] for key in (STATE, VALUES, INTERMEDIATE, SYSTEM_ATTRS)}

    def _write(self) -> None:
        while self._pending:
            trial_id = next(iter(self._pending))
            self._segment[trial_id] = self._pending.pop(trial_id)
            data = json.dumps(self._segment, separators=(",", ":")).encode()
            is_full = len(data) >= _SEGMENT_BYTES
            if is_full or not self._pending:
                self._storage.write(layout.peers(self._number), data)
            if is_full:
                self._number, self._segment = self._number + 1, {}


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
    """The trials of the study that have ended, around this one, in a study in memory."""

    def __init__(self, study: Study, storage: Storage, number: int) -> None:
        self._study = study
        self._storage = storage
        self._number = number
        self._known: set[int] = set()
        self._full: set[str] = set()  # segments that will not change any more
        self._read_at = -math.inf
        for _ in range(number):  # so that this trial gets its number
            self._add_running()

    def refresh(self) -> None:
        """Read the trials that have ended since the last call; at most every `_REFRESH_S` seconds."""
        if time.monotonic() - self._read_at < _REFRESH_S:
            return
        try:
            names = [name for name in self._storage.names(layout.PEERS) if name not in self._full]
            segments = self._storage.read_all([f"{layout.PEERS}/{name}" for name in names])
        except StorageError:
            return  # the pruner decides by what it knows
        finally:
            self._read_at = time.monotonic()
        self._full.update(names[:-1])
        for data in segments:
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
