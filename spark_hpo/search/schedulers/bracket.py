"""Brackets of successive halving, and a scheduler that runs several of them at the same time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from spark_hpo.errors import ConfigError
from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.rungs import Rung, next_size
from spark_hpo.search.settings import require_integer


@dataclass(slots=True)
class _RungState:
    """The trials of a bracket's current rung. Each is first pending, then running, then has a loss.

    `size` counts the places of the rung. At the lowest rung places are free until new trials occupy them; in
    higher rungs every place is occupied from the start, by the promoted trials.
    """

    size: int  # reduced when the bracket is closed while places are free
    pending: list[int] = field(default_factory=list)  # promoted, without a slot so far; ascending
    running: set[int] = field(default_factory=set)
    scores: dict[int, Score] = field(default_factory=dict)  # of trials that have reported

    @property
    def occupied(self) -> int:
        """Places taken by a trial."""
        return len(self.pending) + len(self.running) + len(self.scores)


@dataclass(eq=False)
class Bracket:
    """One bracket of successive halving. A rung opens when all trials of the rung below have reported.

    A trace, rungs of 3 and 1 trials:
        next_slot(0), next_slot(1), next_slot(2) -> rung 0; next_slot(3) -> None
        report x 3 -> the last one returns the two trials that are out; next_slot(3) -> the best, in rung 1

    Of m trials in a rung, max(1, m // reduction_factor) are promoted: the ones with the lowest losses, the
    lower trial id first among equals. Failed trials are never promoted, even if the next rung then has fewer
    trials, or none.
    """

    number: int
    rungs: tuple[Rung, ...]
    reduction_factor: int

    def __post_init__(self) -> None:
        self._rung = 0
        self._state = _RungState(self.rungs[0].size)

    @property
    def wants_new_trial(self) -> bool:
        """True if the lowest rung has a free place, so that the next slot is for a new trial."""
        return self._rung == 0 and self._state.occupied < self._state.size

    @property
    def is_done(self) -> bool:
        """True if no slot is open and none will ever open again."""
        return self._rung == len(self.rungs)

    def next_slot(self, new_trial: int) -> Slot | None:
        """Open the next slot: for `new_trial` if a place is free, else for a pending trial."""
        if self.is_done:
            return None
        if self.wants_new_trial:
            trial_id = new_trial
        elif self._state.pending:
            trial_id = self._state.pending.pop(0)
        else:
            return None
        self._state.running.add(trial_id)
        return Slot(
            trial_id=trial_id,
            bracket=self.number,
            rung=self._rung,
            resource_from=self.rungs[self._rung - 1].resource if self._rung else 0,
            resource_to=self.rungs[self._rung].resource,
        )

    def report(self, slot: Slot, score: Score) -> list[int]:
        """Take the score of an open slot. Returns the trials that are out now, a failed one at once."""
        assert slot.rung == self._rung, f"{slot} is not in the current rung, {self._rung}"
        assert slot.trial_id in self._state.running, f"{slot} is not open"
        self._state.running.remove(slot.trial_id)
        self._state.scores[slot.trial_id] = score
        failed = [] if score.is_finite else [slot.trial_id]
        return sorted(failed + self._promote_if_complete())

    def drop(self, trial_id: int) -> list[int]:
        """Take out a trial that waits. Returns the trials that are out now; none if it does not wait.

        A trial that has reported ranks like a failed one, so the next best is promoted instead. The place of
        one that was promoted already is removed, because the trials below it are out.
        """
        rung = self._state
        if self._rung + 1 < len(self.rungs) and rung.scores.get(trial_id, NO_SCORE).is_finite:
            rung.scores[trial_id] = NO_SCORE
            return [trial_id]
        if trial_id not in rung.pending:
            return []
        rung.pending.remove(trial_id)
        rung.size -= 1
        return sorted([trial_id, *self._promote_if_complete()])

    def close(self) -> list[int]:
        """Accept no new trials: free places are removed. Returns the trials that are out now."""
        if not self.wants_new_trial:
            return []
        self._state.size = self._state.occupied
        return self._promote_if_complete()

    def _promote_if_complete(self) -> list[int]:
        rung = self._state
        if len(rung.scores) < rung.size:
            return []
        ranking = sorted((score, trial_id) for trial_id, score in rung.scores.items() if score.is_finite)
        self._rung += 1
        if self.is_done:
            return []
        num_promoted = min(len(ranking), next_size(max(1, rung.size), self.reduction_factor))
        promoted = [trial_id for _, trial_id in ranking[:num_promoted]]
        if promoted:
            self._state = _RungState(num_promoted, pending=sorted(promoted))
        else:
            self._rung = len(self.rungs)  # all trials have failed, or it was closed before the first one
        return [trial_id for _, trial_id in ranking[num_promoted:]]


@dataclass(eq=False)
class BracketScheduler(Scheduler, ABC):
    """Runs brackets from a plan, overlapping: the oldest bracket with work is served first.

    A new bracket opens when no open bracket can fill a slot, so no slot of the cluster waits for the
    slowest trial of a rung. Ask only for slots that can run at once: without `max_trials`, and until the
    plan ends, there is always another one.

    At `max_trials` the scheduler closes itself. A closed scheduler opens no new trials, and the last bracket
    completes with the trials that it has, so that the budget still ends with fully trained trials.
    """

    handles_limits = True

    max_resource: int  # epochs of a fully trained trial: the resource of every bracket's last rung
    min_resource: int = 1  # lower bound of the epochs at the lowest rung; see `rungs.resource_levels`
    reduction_factor: int = 3  # a rung promotes 1 / reduction_factor of its trials
    max_trials: int | None = None  # number of trials to start; None: until `close`, or until the plan ends

    def __post_init__(self) -> None:
        check_resources(self.min_resource, self.max_resource, self.reduction_factor, self.max_trials)
        self._rungs = self._plan()
        self._open: dict[int, Bracket] = {}  # by number, so in the order of opening
        self._num_brackets = 0
        self._num_trials = 0
        self._closed = False

    @abstractmethod
    def _plan(self) -> Iterator[tuple[Rung, ...]]:
        """Return the rungs of each bracket, in the order of opening; may be infinite."""

    def next_slot(self) -> Slot | None:
        for bracket in self._open.values():
            if slot := self._slot_of(bracket):
                return slot
        opened = None if self._closed else self._open_bracket()
        return None if opened is None else self._slot_of(opened)

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        out = self._open[slot.bracket].report(slot, Score.of(loss, violation))
        self._forget_done()
        return out

    def drop(self, trial_id: int) -> list[int]:
        # Of one bracket only: no trial is in two.
        out = [out for bracket in self._open.values() for out in bracket.drop(trial_id)]
        self._forget_done()
        return out

    def close(self) -> list[int]:
        self._closed = True
        out = [trial_id for bracket in self._open.values() for trial_id in bracket.close()]
        self._forget_done()
        return sorted(out)

    def is_done(self) -> bool:
        return self._closed and not self._open

    def _slot_of(self, bracket: Bracket) -> Slot | None:
        slot = bracket.next_slot(self._num_trials)
        if slot is not None and slot.is_new:
            self._num_trials += 1
            if self._num_trials == self.max_trials:
                self.close()
        return slot

    def _open_bracket(self) -> Bracket | None:
        rungs = next(self._rungs, None)
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


def check_resources(
    min_resource: int, max_resource: int, reduction_factor: int, max_trials: int | None
) -> None:
    """Raise ConfigError unless these are integers that fit together; `max_trials` may be None."""
    require_integer("max_resource", max_resource, 1)
    require_integer("min_resource", min_resource, 1)
    require_integer("reduction_factor", reduction_factor, 2)
    if min_resource > max_resource:
        raise ConfigError(f"must be <= max_resource, {max_resource}", key="min_resource", value=min_resource)
    if max_trials is not None:
        require_integer("max_trials", max_trials, 1)
