"""Brackets of successive halving, and the scheduler that keeps several of them going."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from spark_hpo.errors import ConfigError
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.rungs import Rung, next_size
from spark_hpo.search.wording import require_integer


@dataclass(slots=True)
class _Contest:
    """The rung that a bracket is in: who waits for a slot, who runs, who has reported what."""

    size: int  # trials that take part; at the lowest rung this shrinks when the bracket is closed
    waiting: list[int] = field(default_factory=list)  # promoted, in ascending order
    running: set[int] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)


class Bracket:
    """One bracket. A slot opens in a rung only when the rung below has reported.

    A trace, rungs of 3 and 1 trials:
        next_slot(0), next_slot(1), next_slot(2) -> rung 0; next_slot(3) -> None
        report x 3 -> the last one returns the two that are out; next_slot(3) -> the best, in rung 1

    Of m trials in a rung, max(1, m // reduction_factor) go on: the best ones, the lower trial first among
    equals. A failure never does, even if the next rung then has fewer trials, or none.
    """

    def __init__(self, number: int, rungs: tuple[Rung, ...], reduction_factor: int) -> None:
        self.number = number
        self.rungs = rungs
        self.reduction_factor = reduction_factor
        self._rung = 0
        self._contest = _Contest(rungs[0].size)

    @property
    def wants_new_trial(self) -> bool:
        """Whether the next slot is one for a new trial."""
        return self._rung == 0 and self._entered < self._contest.size

    @property
    def is_done(self) -> bool:
        """Whether no slot is open and none will ever open again."""
        return self._rung == len(self.rungs)

    def next_slot(self, new_trial: int) -> Slot | None:
        """Open the next slot: for the best waiting trial, or for `new_trial` where one is wanted."""
        if self.is_done:
            return None
        if self.wants_new_trial:
            trial_id = new_trial
        elif self._contest.waiting:
            trial_id = self._contest.waiting.pop(0)
        else:
            return None
        self._contest.running.add(trial_id)
        return Slot(
            trial_id=trial_id,
            bracket=self.number,
            rung=self._rung,
            resource_from=self.rungs[self._rung - 1].resource if self._rung else 0,
            resource_to=self.rungs[self._rung].resource,
        )

    def report(self, slot: Slot, loss: float) -> list[int]:
        """Take the loss of an open slot. Returns the trials that are now out: a failed one at once."""
        assert slot.rung == self._rung, f"{slot} is not in the rung of its bracket, {self._rung}"
        assert slot.trial_id in self._contest.running, f"{slot} is not open"
        self._contest.running.remove(slot.trial_id)
        self._contest.losses[slot.trial_id] = loss
        failed = [] if math.isfinite(loss) else [slot.trial_id]
        return sorted(failed + self._promote_if_complete())

    def close(self) -> list[int]:
        """Take no new trials; the lowest rung completes with those that it has. Returns trials now out."""
        if not self.wants_new_trial:
            return []
        self._contest.size = self._entered
        return self._promote_if_complete()

    @property
    def _entered(self) -> int:
        return len(self._contest.running) + len(self._contest.losses)

    def _promote_if_complete(self) -> list[int]:
        contest = self._contest
        if len(contest.losses) < contest.size:
            return []
        ranking = sorted((loss, trial_id) for trial_id, loss in contest.losses.items() if math.isfinite(loss))
        self._rung += 1
        if self.is_done:
            return []
        num_promoted = min(len(ranking), next_size(max(1, contest.size), self.reduction_factor))
        promoted = [trial_id for _, trial_id in ranking[:num_promoted]]
        if promoted:
            self._contest = _Contest(num_promoted, waiting=sorted(promoted))
        else:
            self._rung = len(self.rungs)  # all have failed, or closed before any had come
        return [trial_id for _, trial_id in ranking[num_promoted:]]


class BracketScheduler:
    """Runs brackets from a plan, overlapping: the oldest with a free slot is served first.

    A new bracket opens only when a slot is asked for that no open bracket can fill, so no slot of the
    cluster has to wait for the slowest trial of a rung. Ask only for what can run at once: unless there is
    a `max_trials`, or the plan ends, there is always one more slot.

    At `max_trials` it closes itself. Closed, it opens no new trials, and the last bracket completes with
    those that it has: the budget still ends with trials that are fully trained.

    Args:
        plan: the rungs of each bracket, in the order of opening; it may be endless.
        max_resource: epochs of a trial that is trained to the end, the last rung of every bracket.
        reduction_factor: a rung promotes one trial in so many.
        max_trials: how many trials may start; None: until `close`, or until the plan ends.
    """

    def __init__(
        self,
        plan: Iterator[tuple[Rung, ...]],
        *,
        max_resource: int,
        reduction_factor: int,
        max_trials: int | None,
    ) -> None:
        if max_trials is not None:
            require_integer("max_trials", max_trials, 1)
        self.max_resource = max_resource
        self.reduction_factor = reduction_factor
        self.max_trials = max_trials
        self._plan = plan
        self._open: dict[int, Bracket] = {}  # by number, so in the order of opening
        self._num_brackets = 0
        self._num_trials = 0
        self._closed = False

    def next_slot(self) -> Slot | None:
        """Open the next slot; None when closed and waiting for reports, or done."""
        for bracket in self._open.values():
            if slot := self._slot_of(bracket):
                return slot
        opened = None if self._closed else self._open_bracket()
        return None if opened is None else self._slot_of(opened)

    def report(self, slot: Slot, loss: float) -> list[int]:
        """Take the loss of a slot. Returns the trials that are now out, in ascending order."""
        out = self._open[slot.bracket].report(slot, loss)
        self._forget_done()
        return out

    def close(self) -> list[int]:
        """Open no new trials from now on. Returns the trials that are now out."""
        self._closed = True
        out = [trial_id for bracket in self._open.values() for trial_id in bracket.close()]
        self._forget_done()
        return sorted(out)

    def is_done(self) -> bool:
        """Whether no slot is open and none will ever open again."""
        return self._closed and not self._open

    def _slot_of(self, bracket: Bracket) -> Slot | None:
        slot = bracket.next_slot(self._num_trials)
        if slot is not None and slot.is_new:
            self._num_trials += 1
            if self._num_trials == self.max_trials:
                self.close()
        return slot

    def _open_bracket(self) -> Bracket | None:
        rungs = next(self._plan, None)
        if rungs is None:
            self._closed = True
            return None
        bracket = Bracket(self._num_brackets, rungs, self.reduction_factor)
        self._open[bracket.number] = bracket
        self._num_brackets += 1
        return bracket

    def _forget_done(self) -> None:
        for number in [n for n, bracket in self._open.items() if bracket.is_done]:
            del self._open[number]


def check_resources(min_resource: int, max_resource: int, reduction_factor: int) -> None:
    """Raise ConfigError unless these make sense together."""
    require_integer("max_resource", max_resource, 1)
    require_integer("min_resource", min_resource, 1)
    require_integer("reduction_factor", reduction_factor, 2)
    if min_resource > max_resource:
        raise ConfigError(f"min_resource is {min_resource}; it must be at most max_resource, {max_resource}")
