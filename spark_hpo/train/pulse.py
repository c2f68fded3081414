"""Between two steps of a rank: that it moves is noted, and all ranks agree when to save and when to stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rendezvous.world import World

_AGREE_S = 0.5  # between two agreements, about
_LOOK_S = 1.0  # between two looks into the study directory, at least
_MOST_STEPS = 10_000
_GO_ON, _SAVE, _STOP = 0, 1, 2


class Stopped(BaseException):
    """The driver has asked for it. Not an Exception: a training function's own code must not catch it."""


class Pulse:
    """Counts steps, and has the state saved in between.

    Rank 0 decides, by its clock and by what the driver has left in the study directory; the others hear of it
    at the same step, because saving takes all of them.
    """

    def __init__(
        self,
        world: World,
        storage: Storage,
        *,
        epochs: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            epochs: units of the resource after which to save; None: not by these.
            seconds: after which to save, once a step has ended; None: not by the clock.
        """
        self.moves = 0  # anything that shows that the rank is at work
        self._world = world
        self._storage = storage
        self._epochs = epochs
        self._seconds = seconds
        self._clock = clock
        self._steps = 0
        self._agreed_at = 0  # step
        self._next = 1
        self._agreed = self._saved = clock()
        self._looked = clock() - _LOOK_S

    def move(self) -> None:
        """Something was done, be it less than a step."""
        self.moves += 1

    def step(self, save: Callable[[], None]) -> None:
        """A step of the training has ended. Every rank must call it.

        Raises:
            Stopped: after saving, when the driver has asked for it.
        """
        self.moves += 1
        self._steps += 1
        if self._steps >= self._next:
            self._obey(self._agree(), save)

    def end_of_pass(self, done: int, save: Callable[[], None]) -> None:
        """A unit of the resource is done. Every rank must call it."""
        self.moves += 1
        if self._epochs is not None and done % self._epochs == 0:
            self._obey(_SAVE, save)

    def _obey(self, order: int, save: Callable[[], None]) -> None:
        if order != _GO_ON:
            save()
            self._saved = self._clock()
        if order == _STOP:
            raise Stopped

    def _agree(self) -> int:
        now = self._clock()
        each = (now - self._agreed) / max(self._steps - self._agreed_at, 1)  # seconds a step
        ahead = min(max(int(_AGREE_S / each), 1), _MOST_STEPS) if each > 0 else _MOST_STEPS
        said = torch.tensor([self._decide(now), ahead], dtype=torch.int64, device=self._world.device)
        self._world.broadcast([said])
        order, ahead = said.tolist()
        self._agreed, self._agreed_at, self._next = now, self._steps, self._steps + ahead
        return int(order)

    def _decide(self, now: float) -> int:
        if self._world.rank != 0:
            return _GO_ON
        if now - self._looked >= _LOOK_S:
            self._looked = now
            with contextlib.suppress(StorageError):  # an outage is told by what has to be written
                if self._storage.read(layout.STOP) is not None:
                    return _STOP
        is_due = self._seconds is not None and now - self._saved >= self._seconds
        return _SAVE if is_due else _GO_ON
