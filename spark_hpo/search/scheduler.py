"""The scheduler protocol: schedulers spend the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A decision: train this trial from one resource to the next."""

    trial_id: int
    bracket: int  # number of the bracket in the study, from 0 in the order of opening
    rung: int  # 0 is the lowest of its bracket
    resource_from: int  # epochs completed; 0 for a new trial without a parent
    resource_to: int
    parent: int | None = None  # a new trial starts from the checkpoint and parameters of this one

    @property
    def is_new(self) -> bool:
        """True if this is the trial's first slot, so that it needs parameters."""
        return self.resource_from == 0 or self.parent is not None


Choose = Callable[[Sequence[int]], int]
"""Chooses one of several trials, which are passed in the order of their losses, the lowest first."""


class Scheduler(Protocol):
    """Decides which trial is trained next, and how far. Pure: no clock, no randomness, no I/O.

    Ask for a slot only when it can run at once, because a scheduler may always offer another new trial.

    Trials are numbered 0, 1, 2, ... in the order in which their first slots open. A trace for one bracket
    of successive halving, 3 trials, eta = 3:
        next_slot() x 3 -> trials 0, 1, 2 in rung 0;  next_slot() -> None
        report(slot of 0, 0.5) -> []; report(slot of 1, 0.1) -> []; report(slot of 2, 0.3) -> [0, 2]
        next_slot() -> trial 1 in rung 1;  report(..., 0.05) -> [];  is_done() -> True

    The same calls in the same order must give the same decisions: a study resumes by replaying them.

    A class that derives from this one declares what it does in the attributes; a class that does not derive
    gets their defaults.
    """

    stops_early: bool = True
    """Ranks trials by their loss and stops some of them before `max_resource`."""

    handles_limits: bool = False
    """Uses `violation`. Other schedulers are told that a trial that violates a limit has failed."""

    has_parents: bool = False
    """Opens slots of new trials that start from the checkpoint of another trial."""

    num_rungs: int | None = None
    """Rungs of its longest bracket; None: not known."""

    warning: str | None = None
    """What its settings and its number of trials do not allow, for the user, in one line; None: nothing."""

    max_resource: int
    """Epochs of a fully trained trial."""

    def next_slot(self) -> Slot | None:
        """Open the next slot. None, which changes nothing: wait for a report, unless `is_done`."""
        ...

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        """Take the loss of a slot; infinite or NaN for a failed trial, which is never promoted.

        Args:
            violation: by how much the trial breaks the study's limits; 0: it keeps them. Passed only if
                `handles_limits`.

        Returns:
            The trials that are out now, in ascending order: they will not be promoted, so their checkpoints
            can be deleted. A failed trial is out at once; a trial that has reached `max_resource` never is.
        """
        ...

    def close(self) -> list[int]:
        """Open no new trials from now on; rungs complete with the trials that they have. Idempotent.

        Returns:
            The trials that are out now, in ascending order.
        """
        ...

    def drop(self, trial_id: int) -> list[int]:
        """Take out a trial that has reported and waits; its promotion goes to the next best trial.

        A trial with an open slot leaves by a report that it has failed instead. Any other trial, which is
        out already or fully trained, changes nothing.

        Returns:
            The trials that are out now, in ascending order: this one, and those that are out because of it.
            Empty without this one: the scheduler may still promote it.
        """
        return []

    def is_done(self) -> bool:
        """True if no slot is open and none will ever open again."""
        ...

    def guide(self, choose: Choose) -> None:
        """Ask this function from now on which of several trials to promote. Ignored by default.

        The function must depend only on the calls before it, and be repeatable.
        """
        return

    def limit_trials(self, max_trials: int | None) -> None:
        """Change how many trials may start: each driver of a study may have another budget.

        Only `StagedScheduler` needs to implement it; studies put every other scheduler into one.
        """
        return
