"""Which checkpoints are kept: those that somebody needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable

from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage


class Retention:
    """The checkpoints of a study and their owners. One that nobody owns any more is deleted.

    Each owner (a trial that may go on, a child that has yet to load its parent's, the best so far, each
    member of the Pareto front) has one checkpoint at a time; several may own the same. Until `sweep` is
    called nothing is deleted, so that a replay of the journal does not delete what is long gone.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._by_owner: dict[Hashable, str] = {}
        self._owners: Counter[str] = Counter()  # by checkpoint, how many
        self._is_live = False

    def keep(self, owner: Hashable, checkpoint: str | None) -> None:
        """The owner needs this checkpoint now, and no longer the one that it had. None: it needs none."""
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

    def release(self, owner: Hashable) -> None:
        """The owner needs its checkpoint no longer."""
        self.keep(owner, None)

    def fence(self, trial_id: int, rung: int, attempt: int) -> None:
        """From now on only this attempt may save checkpoints of the trial."""
        self._storage.write(layout.fence(trial_id, rung), str(attempt).encode())

    def tidy(self, trial_id: int) -> None:
        """Delete what lost attempts of a trial have left."""
        if self._is_live:
            self._delete_unowned(layout.checkpoints(trial_id))

    def sweep(self, unfinished: Collection[int] = ()) -> None:
        """Delete every checkpoint that nobody owns, of earlier drivers and lost attempts, and go live.

        Args:
            unfinished: trials that go on from what their last attempt has saved.
        """
        self._is_live = True
        spared = {layout.checkpoints(trial_id).rpartition("/")[2] for trial_id in unfinished}
        for folder in self._storage.names(layout.CHECKPOINTS):
            if folder not in spared:
                self._delete_unowned(f"{layout.CHECKPOINTS}/{folder}")

    def _delete_unowned(self, folder: str) -> None:
        for name in self._storage.names(folder, hidden=True):
            path = f"{folder}/{name}"
            if path not in self._owners:
                self._storage.delete(path)
