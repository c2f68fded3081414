"""The seam of schedulers: what spends the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A decision: train this trial from one resource to the next."""

    trial_id: int
    bracket: int  # number of the bracket in the study, counted from 0 in the order of opening
    rung: int  # 0 is the lowest of its bracket
    resource_from: int  # epochs completed, 0 for a new trial without a parent
    resource_to: int
    parent: int | None = None  # whose checkpoint, at resource_from, and parameters a new trial takes over

    @property
    def is_new(self) -> bool:
        """Whether the trial starts here and needs parameters."""
        return self.resource_from == 0 or self.parent is not None


class Scheduler(Protocol):
    """Decides which trial is trained next, and how far. Pure: no clock, no randomness, no I/O.

    Ask for a slot only when it can run at once: a scheduler may always have one more new trial.

    Trials are numbered 0, 1, 2, ... in the order in which their first slots open. A trace for one bracket
    of successive halving, 3 trials, eta = 3:
        next_slot() x 3 -> trials 0, 1, 2 in rung 0;  next_slot() -> None
        report(slot of 0, 0.5) -> []; report(slot of 1, 0.1) -> []; report(slot of 2, 0.3) -> [0, 2]
        next_slot() -> trial 1 in rung 1;  report(..., 0.05) -> [];  is_done() -> True

    The same calls in the same order give the same decisions: that is how a study resumes.
    """

    @property
    def max_resource(self) -> int:
        """Epochs of a trial that is trained to the end."""
        ...

    def next_slot(self) -> Slot | None:
        """Open the next slot. None: wait for a report (or, when `is_done`, for ever); nothing changes."""
        ...

    def report(self, slot: Slot, loss: float) -> list[int]:
        """Take the loss of a slot; infinite or NaN for a failure, which is never promoted.

        Returns the trials that are now out, in ascending order: they will not be promoted, and their
        checkpoints may go. A failed trial is out at once; one that has reached the maximum resource is
        never among them.
        """
        ...

    def close(self) -> list[int]:
        """Open no new trials from now on. Rungs complete with the trials that they have.

        Returns the trials that are now out, in ascending order. Closing again changes nothing.
        """
        ...

    def is_done(self) -> bool:
        """Whether no slot is open and none will ever open again."""
        ...
