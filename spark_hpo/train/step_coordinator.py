"""Coordinates the ranks between steps: counts their progress, and decides when to save and when to stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rendezvous.world import World

_DECISION_INTERVAL_S = 0.5  # between two decisions of the ranks, approximately
_STOP_CHECK_INTERVAL_S = 1.0  # between two reads of the study directory, at least
_MAX_STEPS_AHEAD = 10_000
_CONTINUE, _SAVE, _STOP = 0, 1, 2


class Stopped(BaseException):
    """The driver has asked the ranks to stop. Not an Exception: a training function must not catch it."""


@dataclass(eq=False)
class StepCoordinator:
    """Counts the steps of a rank, and saves the state between two steps when the ranks agree to.

    Saving takes all ranks, so they must decide at the same step. Rank 0 decides, by its clock and by the stop
    file in the study directory, and broadcasts its decision with the number of the step of the next one. A
    broadcast at every step would cost too much, so the steps between two decisions take about 0.5 s.

    A trace, with seconds=60 and steps of 10 ms: decide at steps 1, 51, 101, ...; at step 6001 rank 0 finds
    that 60 s are over -> all ranks save
    """

    world: World
    storage: Storage
    _: KW_ONLY
    epochs: int | None = None  # save after this many units of the resource; None: do not
    seconds: float | None = None  # save after this time, at the end of a step; None: do not
    is_saving: Callable[[], bool] = lambda: False  # a save is in progress; further ones have to wait for it
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.progress = 0  # grows with everything that shows that the rank is at work
        self._steps = 0
        self._decided_at_step = 0
        self._next_decision_step = 1
        self._decided_at = self._saved_at = self.clock()
        self._checked_stop_at = self.clock() - _STOP_CHECK_INTERVAL_S

    def note_progress(self) -> None:
        """Count progress that is less than a step."""
        self.progress += 1

    def step(self, save: Callable[[], None]) -> None:
        """Count a step of the training. Every rank must call it.

        Raises:
            Stopped: the driver has asked for it; the state is saved.
        """
        self.progress += 1
        self._steps += 1
        if self._steps >= self._next_decision_step:
            self._carry_out(self._agree(), save)

    def end_of_pass(self, done: int, save: Callable[[], None]) -> None:
        """Count a unit of the resource, the `done`-th. Every rank must call it."""
        self.progress += 1
        if self.epochs is not None and done % self.epochs == 0:
            self._carry_out(_SAVE, save)

    def _carry_out(self, decision: int, save: Callable[[], None]) -> None:
        if decision != _CONTINUE:
            save()
            self._saved_at = self.clock()
        if decision == _STOP:
            raise Stopped

    def _agree(self) -> int:
        """Return rank 0's decision, and set the step of the next one."""
        now = self.clock()
        step_s = (now - self._decided_at) / max(self._steps - self._decided_at_step, 1)
        ahead = _MAX_STEPS_AHEAD
        if step_s > 0:
            ahead = min(max(int(_DECISION_INTERVAL_S / step_s), 1), _MAX_STEPS_AHEAD)
        message = torch.tensor([self._decide(now), ahead], dtype=torch.int64, device=self.world.device)
        self.world.broadcast([message])
        decision, ahead = message.tolist()
        self._decided_at, self._decided_at_step = now, self._steps
        self._next_decision_step = self._steps + ahead
        return int(decision)

    def _decide(self, now: float) -> int:
        if self.world.rank != 0:
            return _CONTINUE  # overwritten by rank 0's decision
        if now - self._checked_stop_at >= _STOP_CHECK_INTERVAL_S:
            self._checked_stop_at = now
            with contextlib.suppress(StorageError):  # the next write reports an outage
                if self.storage.read(layout.STOP) is not None:
                    return _STOP
        is_due = self.seconds is not None and now - self._saved_at >= self.seconds
        # Other ranks would wait for this one while it waits for the save before.
        must_wait = self.world.is_distributed and self.is_saving()
        return _SAVE if is_due and not must_wait else _CONTINUE
