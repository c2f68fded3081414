"""Shares the trials that have ended with the pruners on executors, through the study directory."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from spark_hpo.errors import StorageError
from spark_hpo.porting.optuna_sampler import INTERMEDIATE, STATE, SYSTEM_ATTRS, VALUES, frozen_trial
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Report, Trial

if TYPE_CHECKING:
    from spark_hpo.study import RunningStudy

_REFRESH_S = 2.0
_SEGMENT_BYTES = 2**14  # a segment is full from this size on


class PeersCallback(Callback):
    """Writes the trials that have ended to the study directory.

    The files are segments of limited size, so that the cost of a report does not grow with the number of
    trials.

    A trace, with segments of 2 trials: trial 0 ends -> peers/000000.json {0}; trial 2 -> peers/000000.json
    {0, 2}, which is full; trial 1 -> peers/000001.json {1}
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pending: dict[int, Mapping[str, Any]] = {}  # ended, but not written yet
        self._segment: dict[int, Mapping[str, Any]] = {}  # the content of the last segment
        self._number = 0

    def on_study_start(self, study: RunningStudy) -> None:
        # An earlier driver may have written the trials in another order.
        self._storage.delete_all([f"{layout.PEERS}/{name}" for name in self._storage.names(layout.PEERS)])
        for trial in study.trials.values():
            self._add(trial.trial_id, trial.notes)
        self._write()

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._add(trial.trial_id, report.notes)
        if report.notes.get(INTERMEDIATE):  # pruners compare these; a trial without them can wait
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


@dataclass(eq=False)
class Peers:
    """Adds the ended trials of the study to the in-memory Optuna study of one trial."""

    study: Study
    storage: Storage
    number: int

    def __post_init__(self) -> None:
        self._known: set[int] = set()
        self._full: set[str] = set()  # segments that will not change any more
        self._read_at = -math.inf
        for _ in range(self.number):  # so that the trial gets this number
            self._add_running()

    def refresh(self) -> None:
        """Read the trials that have ended since the last call; at most every `_REFRESH_S` seconds."""
        if time.monotonic() - self._read_at < _REFRESH_S:
            return
        try:
            names = [name for name in self.storage.names(layout.PEERS) if name not in self._full]
            segments = self.storage.read_all([f"{layout.PEERS}/{name}" for name in names])
        except StorageError:
            return  # the pruner decides from the trials it knows
        finally:
            self._read_at = time.monotonic()
        self._full.update(names[:-1])
        for data in segments:
            for key, peer in json.loads(data or b"{}").items():
                if (number := int(key)) not in self._known and number != self.number:
                    self._known.add(number)
                    self._end(number, peer)

    def _end(self, number: int, peer: Mapping[str, Any]) -> None:
        storage = self.study._storage
        while len(self.study.get_trials(deepcopy=False)) <= number:
            self._add_running()
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        ended = frozen_trial({}, {**peer, "distributions": {}, "user_attrs": {}})
        for step, value in ended.intermediate_values.items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        for name, attribute in ended.system_attrs.items():
            storage.set_trial_system_attr(trial_id, name, attribute)
        storage.set_trial_state_values(trial_id, ended.state, ended.values)

    def _add_running(self) -> None:
        self.study._storage.create_new_trial(self.study._study_id)


@dataclass(eq=False)
class PeersPruner(BasePruner):
    """A pruner that sees the ended trials before it decides."""

    pruner: BasePruner
    peers: Peers

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self.peers.refresh()
        return self.pruner.prune(study, trial)
