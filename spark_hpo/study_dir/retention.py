"""Decides which checkpoints are kept, and deletes the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import AssignmentKey, Part


class Role(StrEnum):
    """A reason to keep a checkpoint."""

    TRIAL = "trial"  # the trial may train on from it; a new one starts from its parent's
    BEST = "best"
    FRONT = "front"  # the trial is on the Pareto front
    PEAK = "peak"  # the best of a trial that may train on
    CANDIDATE = "candidate"  # the trial is one of the best, and may be trained to the end
    CANDIDATE_PEAK = "candidate-peak"  # the best of such a trial
    FINALIST = "finalist"  # the trial may win when the best ones are trained with other seeds
    PARENT = "parent"  # other trials may start from it, although its own trial is trained further


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
                    self._delete(before)

    def tidy(self, trial_id: int, part: Part = None) -> None:
        """Delete what lost attempts of a trial, or of one of its folds, have saved."""
        if self._is_live:
            self._delete_unowned(layout.checkpoints(trial_id, part))

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

    def _delete(self, checkpoint: str) -> None:
        """Delete a checkpoint with its parts, but not those that another checkpoint of the trial shares."""
        shared: set[str] = set()
        if manifest.is_manifest(checkpoint):
            folder, _, deleted = checkpoint.rpartition("/")
            for name in self._storage.names(folder):
                shared |= set() if name == deleted else manifest.parts(self._storage, f"{folder}/{name}")
        manifest.delete(self._storage, checkpoint, keep=shared)

    def _delete_unowned(self, folder: str) -> None:
        names = self._storage.names(folder, hidden=True)
        owned = {name for name in names if f"{folder}/{name}" in self._owners}
        kept = owned.union(*(manifest.parts(self._storage, f"{folder}/{name}") for name in owned))
        self._storage.delete_all([f"{folder}/{name}" for name in names if name not in kept])
