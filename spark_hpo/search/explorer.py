"""The seam of explorers: what makes a child's parameters in population based training."""

from __future__ import annotations

from typing import Protocol

from spark_hpo.search.scheduler import Slot
from spark_hpo.trial import Params


class Explorer(Protocol):
    """Changes parameters for a child, which goes on with its parent's weights.

    Only parameters that weights do not depend on may change: a network with another number of channels
    cannot load its parent's checkpoint. Which these are, only the user knows.

    A trace, trial 1 a child of trial 0:
        start(slot of 0: 0 -> 3, {"lr": 0.01}); tell(slot of 0, 0.7)
        explore(slot of 1, parent 0: 3 -> 6, {"lr": 0.01}) -> {"lr": 0.013}; start(slot of 1, {"lr": 0.013})

    A study that resumes calls `start` and `tell` as they are in the journal, and never `explore`: the
    explorer then stands where the first one stood. So a child depends on the seed, its slot, its parent
    and what was told alone: no clock, no global generator.
    """

    handles_limits: bool = False
    """Takes `violation` into account. To others, a trial that breaks a limit is reported as failed."""

    def explore(self, slot: Slot, parent: Params) -> Params:
        """The parameters of a child, to be started next. Never changes what has been learned.

        Args:
            slot: the child's first: its trial, its parent, and from where to where it trains.
            parent: the parent's parameters.
        """
        ...

    def start(self, slot: Slot, params: Params) -> None:
        """The slot, of whichever trial, runs with these parameters: it is in flight until told."""
        ...

    def tell(self, slot: Slot, loss: float, *, violation: float = 0.0) -> None:
        """Learn the loss at the end of a slot; infinite for a failure.

        Args:
            violation: by how much the trial breaks the study's limits; 0: it keeps them. Passed only if
                `handles_limits`.
        """
        ...
