"""The checkpoints of one attempt at an assignment: the state it resumes from, and the states it saves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spark_hpo.errors import CheckpointError, StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rendezvous.world import World
from spark_hpo.trial import Assignment

logger = logging.getLogger(__name__)

_ASSIGNMENT = "assignment"  # the key, in a partial checkpoint, of the assignment that it belongs to


@dataclass(eq=False)
class AttemptCheckpoints:
    """Loads and saves the checkpoints of one attempt.

    Each attempt has its own file names, and saves nothing once the driver has started another attempt.

    A trace:
        attempt 1: save_partial(a); save_partial(b); killed
        attempt 2: resume(load) -> load(b); save_partial(c); save(9, d) -> "checkpoints/.../000009-2.pt"
    """

    storage: Storage
    assignment: Assignment
    world: World

    def __post_init__(self) -> None:
        self._partial = self._partial_of(self.assignment.attempt)
        self._has_partial = False

    def resume(self, load: Callable[[Mapping[str, Any]], None]) -> bool:
        """Call `load` with the newest state that an earlier attempt saved. Every rank must call this.

        A damaged checkpoint is skipped in favour of an older one.

        Returns:
            False: no earlier attempt has saved a state.

        Raises:
            CheckpointError: from `load`, or because this rank does not see the file that rank 0 has read.
        """
        number, state = self._newest() if self.world.rank == 0 else (0, None)
        message = torch.tensor([number], dtype=torch.int64, device=self.world.device)
        self.world.broadcast([message])
        number = int(message)
        if number == 0:
            return False
        if state is None:
            state = checkpoint.load(self.storage, self._partial_of(number))
        del state[_ASSIGNMENT]
        load(state)
        return True

    def save_partial(self, state: Mapping[str, Any]) -> None:
        """Save a state within the assignment. It replaces the last one of this attempt."""
        if self.world.rank == 0:  # DDP keeps the parameters of all ranks equal
            self._save(self._partial, {**state, _ASSIGNMENT: self._identity()})
            self._has_partial = True

    def save(self, resource: int, state: Mapping[str, Any]) -> str:
        """Save the state at the end of the assignment, and return its path in the study directory."""
        path = layout.checkpoint(self.assignment.trial_id, resource, self.assignment.attempt)
        if self.world.rank == 0:
            self._save(path, state)
            self.delete_partial()
        return path

    def delete_partial(self) -> None:
        """Delete what this attempt has saved within the assignment."""
        if self._has_partial:
            with contextlib.suppress(StorageError):  # a file that is left over does no harm
                self.storage.delete(self._partial)

    def _partial_of(self, attempt: int) -> str:
        return layout.partial(self.assignment.trial_id, attempt, self.assignment.fold)

    def _save(self, path: str, state: Mapping[str, Any]) -> None:
        assignment = self.assignment
        fence = self.storage.read(layout.fence(assignment.trial_id, assignment.rung, assignment.fold))
        if fence is not None and int(fence) > assignment.attempt:
            raise StorageError(
                f"{self.storage.url}/{path}: not saved, because the driver has given attempt "
                f"{assignment.attempt} up and started attempt {int(fence)}"
            )
        checkpoint.save(self.storage, path, state)

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """Return the number and the state of the last attempt that saved one; 0 and None: there is none."""
        for number in range(self.assignment.attempt - 1, 0, -1):
            path = self._partial_of(number)
            if not self.storage.size(path):
                continue
            try:
                state = checkpoint.load(self.storage, path)
            except CheckpointError as exc:
                logger.warning("%s; trying an older checkpoint", exc)
                continue
            if state.get(_ASSIGNMENT) == self._identity():
                return number, state
        return 0, None

    def _identity(self) -> dict[str, int]:
        return {
            "rung": self.assignment.rung,
            "resource_from": self.assignment.resource_from,
            "resource_to": self.assignment.resource_to,
            "without": len(self.assignment.excluded_files),
        }
