"""The explorer protocol: explorers choose the parameters of children in population based training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from spark_hpo.search.scheduler import Slot
from spark_hpo.trial import Params


class Explorer(Protocol):
    """Changes the parameters of a child trial, which continues from its parent's checkpoint.

    Only parameters that the weights do not depend on may change, because a network with another number of
    channels cannot load the checkpoint. Only the user knows which parameters these are.

    A trace, trial 1 a child of trial 0:
        start(slot of 0: 0 -> 3, {"lr": 0.01}); tell(slot of 0, 0.7)
        explore(slot of 1, parent 0: 3 -> 6, {"lr": 0.01}) -> {"lr": 0.013}; start(slot of 1, {"lr": 0.013})

    A study that resumes replays `start` and `tell` from the journal and never calls `explore`; the explorer
    must then be in the same state as before. A child may therefore depend only on the seed, its slot, its
    parent and what the explorer was told, not on a clock or a global random generator.
    """

    handles_limits: bool = False
    """Uses `violation`. Other explorers are told that a trial that violates a limit has failed."""

    changes: Collection[str] = ()
    """The dotted names of the parameters that it changes; a child has its parent's values of all others."""

    def explore(self, slot: Slot, parent: Params) -> Params:
        """Return the parameters of a child, to be started next. Must not change what was learned.

        Args:
            slot: the first slot of the child.
            parent: the parent's parameters.
        """
        ...

    def start(self, slot: Slot, params: Params) -> None:
        """Note that a slot of any trial runs with these parameters. It is in flight until `tell`."""
        return

    def tell(self, slot: Slot, loss: float, *, violation: float = 0.0) -> None:
        """Learn the loss at the end of a slot; infinite or NaN for a failed trial.

        Args:
            violation: by how much the trial violates the study's limits; 0: not at all. Passed only if
                `handles_limits`.
        """
        return
