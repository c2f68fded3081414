"""Decides which checkpoints are kept, and deletes the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import AssignmentKey


class Role(StrEnum):
    """A reason to keep a checkpoint."""

    TRIAL = "trial"  # the trial may train on from it; a new one starts from its parent's
    BEST = "best"
    FRONT = "front"  # the trial is on the Pareto front


@dataclass(frozen=True, slots=True)
class Owner:
    """Needs one checkpoint at a time."""

    role: Role
    trial_id: int | None = None  # None: the best trial, whichever it is


BEST = Owner(Role.BEST)


class Retention:
    """The checkpoints of a study and their owners. A checkpoint that loses its last owner is deleted.

    Until `sweep` is called nothing is deleted: a replay of the journal releases checkpoints that an earlier
    driver has deleted already.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._by_owner: dict[Owner, str] = {}
        self._owners: Counter[str] = Counter()  # their number, by checkpoint
        self._is_live = False

    def keep(self, owner: Owner, checkpoint: str | None) -> None:
        """Replace the owner's checkpoint by this one. None: the owner needs none any more."""
        before = self._by_owner.pop(owner, None)
        if checkpoint is not None:
            self._by_owner[owner] = checkpoint
            self._owners[checkpoint] += 1
        if before is not None:
            self._owners[before] -= 1
            if not self._owners[before]:
                del self._owners[before]
                if self._is_live:
                    self._storage.delete(before)

    def tidy(self, trial_id: int, fold: int | None = None) -> None:
        """Delete what lost attempts of a trial, or of one of its folds, have saved."""
        if self._is_live:
            self._delete_unowned(layout.checkpoints(trial_id, fold))

    def sweep(self, unfinished: Collection[AssignmentKey] = ()) -> None:
        """Delete every checkpoint without an owner, and from now on each one that loses its last owner.

        Args:
            unfinished: assignments whose next attempt continues from what the last one has saved.
        """
        self._is_live = True
        spared = {layout.checkpoints(*key).rpartition("/")[2] for key in unfinished}
        for folder in self._storage.names(layout.CHECKPOINTS):
            if folder not in spared:
                self._delete_unowned(f"{layout.CHECKPOINTS}/{folder}")

    def _delete_unowned(self, folder: str) -> None:
        for name in self._storage.names(folder, hidden=True):
            path = f"{folder}/{name}"
            if path not in self._owners:
                self._storage.delete(path)
