"""The checkpoints of one attempt at an assignment: what it goes on from, and what it may save."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import checkpoint
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment

logger = logging.getLogger(__name__)

_OF = "assignment"


class Attempt:
    """An attempt saves under names of its own, and nothing at all once another one has taken over.

    A trace: attempt 1: save_partial(s1); save_partial(s2); killed. Attempt 2: partial() -> s2; save(...)
    """

    def __init__(self, storage: Storage, assignment: Assignment, world: World) -> None:
        self._storage = storage
        self._assignment = assignment
        self._world = world
        self._partial = layout.partial(assignment.trial_id, assignment.attempt)
        self._has_partial = False

    def resume(self, load: Callable[[Mapping[str, Any]], None]) -> bool:
        """Give `load` the newest state that an earlier attempt at this assignment has left, if any.

        One that is damaged is passed over. Every rank must call it.

        Raises:
            CheckpointError: from `load`.
            StorageError: ranks see different files: a store is late.
        """
        number, state = self._newest() if self._world.rank == 0 else (0, None)
        said = torch.tensor([number], dtype=torch.int64, device=self._world.device)
        self._world.broadcast([said])
        number = int(said)
        if number == 0:
            return False
        if state is None:
            state = checkpoint.load(self._storage, layout.partial(self._assignment.trial_id, number))
        del state[_OF]
        load(state)
        return True

    def save_partial(self, state: Mapping[str, Any]) -> None:
        """Save what has been reached within the assignment."""
        if self._world.rank == 0:  # alone: DDP keeps the parameters equal
            self._save(self._partial, {**state, _OF: self._identity()})
            self._has_partial = True

    def save(self, resource: int, state: Mapping[str, Any]) -> str:
        """Save the state at the end of the assignment, and return its place."""
        path = layout.checkpoint(self._assignment.trial_id, resource, self._assignment.attempt)
        if self._world.rank == 0:
            self._save(path, state)
            if self._has_partial:
                with contextlib.suppress(StorageError):  # it does no harm
                    self._storage.delete(self._partial)
        return path

    def _save(self, path: str, state: Mapping[str, Any]) -> None:
        fence = self._storage.read(layout.fence(self._assignment.trial_id, self._assignment.rung))
        if fence is not None and int(fence) > self._assignment.attempt:
            raise StorageError(
                f"{self._storage.url}/{path}: is not saved: attempt {int(fence)} has taken over from attempt "
                f"{self._assignment.attempt}, which was given up for lost"
            )
        checkpoint.save(self._storage, path, state)

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """The number of the last attempt that has left a state of this assignment, and the state; 0: none."""
        for number in range(self._assignment.attempt - 1, 0, -1):
            path = layout.partial(self._assignment.trial_id, number)
            if not self._storage.size(path):
                continue
            try:
                state = checkpoint.load(self._storage, path)
            except CheckpointError as exc:
                logger.warning("%s; an older one is taken", exc)
                continue
            if state.get(_OF) == self._identity():
                return number, state
        return 0, None

    def _identity(self) -> dict[str, int]:
        return {
            "rung": self._assignment.rung,
            "resource_from": self._assignment.resource_from,
            "resource_to": self._assignment.resource_to,
            "without": len(self._assignment.without),
        }
