"""ASHA: asynchronous successive halving, in one bracket or in several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from spark_hpo.errors import ConfigError
from spark_hpo.objective import Score
from spark_hpo.search.scheduler import Choose, Scheduler, Slot
from spark_hpo.search.schedulers.bracket import check_resources
from spark_hpo.search.schedulers.controls import ControlBracket
from spark_hpo.search.schedulers.rungs import resource_levels
from spark_hpo.search.settings import require_integer

_MAX_CHOICES = 200  # of a rung, those with the lowest losses


@dataclass(slots=True)
class _Rung:
    """The trials of one rung. Each is first running, then paused unless it failed, then promoted or out."""

    resource: int
    max_promotions: int | None  # upper bound; None: unknown
    running: set[int] = field(default_factory=set)
    reported: int = 0  # includes failed trials
    promoted: int = 0
    paused: list[tuple[Score, int]] = field(default_factory=list)  # (score, trial), the best first

    def num_promotable(self, reduction_factor: int, *, is_complete: bool) -> int:
        """Return how many of the trials that have reported may be promoted.

        A complete rung promotes at least one trial, as in successive halving.
        """
        num_promotable = self.reported // reduction_factor
        return max(num_promotable, 1) if is_complete else num_promotable

    def take(self, trial_id: int, score: Score) -> list[int]:
        """Take the score of a trial. Returns the trials that are out, whichever trials follow."""
        self.running.remove(trial_id)
        self.reported += 1
        if not score.is_finite:
            return [trial_id]
        insort(self.paused, (score, trial_id))
        return [] if self.max_promotions is None else self.keep_best(self.max_promotions - self.promoted)

    def drop(self, trial_id: int) -> bool:
        """Remove a paused trial. Returns False if it is not paused here."""
        left = [entry for entry in self.paused if entry[1] != trial_id]
        is_here = len(left) < len(self.paused)
        self.paused = left
        return is_here

    def keep_best(self, count: int) -> list[int]:
        """Keep the best `count` of the paused trials. Returns the others."""
        count = max(count, 0)
        out = [trial_id for _, trial_id in self.paused[count:]]
        del self.paused[count:]
        return out


class AsyncBracket:
    """Rungs that never wait for each other: a trial is promoted as soon as its rung allows it.

    If n trials have reported at a rung, failed ones included, n // reduction_factor may be promoted. The next
    one is always the best paused trial, the lower trial id among equals.

    A trace, reduction factor 2:
        start(0), start(1) -> rung 0;  report(0, 0.5) -> 1 // 2 = 0 promotions
        report(1, 0.3) -> promote() -> trial 1 to rung 1;  start(2) -> rung 0

    A paused trial is **out** when its rung can no longer promote it: when the promoted trials and the better
    paused ones reach the number that the rung will promote even after all `max_trials`, or when the rung is
    complete, that is, the bracket is closed and no further trial can reach the rung.
    """

    def __init__(
        self,
        number: int,
        levels: tuple[int, ...],
        reduction_factor: int,
        max_trials: int | None,
        *,
        may_rise: bool = False,
    ) -> None:
        """
        Args:
            may_rise: the entry may become a higher rung, so any rung may get all trials.
        """
        self.number = number
        self.reduction_factor = reduction_factor
        self.choose: Choose | None = None  # which trial a rung promotes; None: the one with the lowest loss
        self.entry = 0  # the rung at which new trials start
        self.started = 0
        self.committed = 0  # resource of all slots opened so far
        self._rungs: list[_Rung] = []
        self._resources: dict[int, int] = {}  # by trial: its resource after its last slot
        self._closed = False
        for rung, resource in enumerate(levels):
            if max_trials is not None and not (may_rise and rung):
                max_trials = max(1, max_trials // reduction_factor)
            self._rungs.append(_Rung(resource, max_trials))

    @property
    def is_done(self) -> bool:
        """True if it is closed, and no slot is open or will ever open again."""
        return (
            self._closed
            and all(not rung.running and not rung.paused for rung in self._rungs[:-1])
            and (not self._rungs[-1].running)
        )

    def start(self, trial_id: int) -> Slot:
        """Open the first slot of a new trial."""
        assert not self._closed
        self.started += 1
        return self._open(trial_id, self.entry)

    def promote(self) -> Slot | None:
        """Open a slot for a trial that can be promoted, the highest rung first; None if there is none."""
        for number in reversed(range(len(self._rungs) - 1)):
            rung = self._rungs[number]
            share = self._num_promotable(number)
            if rung.paused and rung.promoted < share:
                return self._promote(number, [trial_id for _, trial_id in rung.paused[:_MAX_CHOICES]])
        return None

    def _promote(self, number: int, trials: list[int]) -> Slot:
        """Promote one of these trials, which are paused at a rung; the best of them comes first."""
        rung = self._rungs[number]
        trial_id = trials[0] if self.choose is None or len(trials) == 1 else self.choose(trials)
        rung.drop(trial_id)
        rung.promoted += 1
        return self._open(trial_id, number + 1)

    def report(self, slot: Slot, score: Score) -> list[int]:
        """Take the score of an open slot. Returns the trials that are out now."""
        rung = self._rungs[slot.rung]
        assert slot.trial_id in rung.running, f"{slot} is not open"
        if slot.rung == len(self._rungs) - 1:
            rung.running.remove(slot.trial_id)
            out = [] if score.is_finite else [slot.trial_id]
        else:
            out = rung.take(slot.trial_id, score)
        return out + self._complete_rungs()

    def drop(self, trial_id: int) -> list[int]:
        """Take out a paused trial. Returns the trials that are out now; none if it is not paused."""
        if any(rung.drop(trial_id) for rung in self._rungs):
            return [trial_id, *self._complete_rungs()]
        return []

    def close(self) -> list[int]:
        """Accept no new trials. Returns the trials that are out now."""
        self._closed = True
        return self._complete_rungs()

    def _open(self, trial_id: int, number: int) -> Slot:
        rung = self._rungs[number]
        rung.running.add(trial_id)
        start = self._resources.get(trial_id, 0)
        self._resources[trial_id] = rung.resource
        self.committed += rung.resource - start
        return Slot(
            trial_id=trial_id,
            bracket=self.number,
            rung=number,
            resource_from=start,
            resource_to=rung.resource,
        )

    def _num_promotable(self, number: int) -> int:
        return self._rungs[number].num_promotable(
            self.reduction_factor, is_complete=self._is_complete(number)
        )

    def _is_complete(self, number: int) -> bool:
        """Return whether no further trial can reach this rung and all of its trials have reported."""
        below = self._rungs[: number + 1]
        return (
            self._closed
            and not any(rung.running for rung in below)
            and not any(rung.paused for rung in below[:-1])
        )

    def _complete_rungs(self) -> list[int]:
        """Return the trials that complete rungs will not promote, from the lowest rung up."""
        out: list[int] = []
        for number, rung in enumerate(self._rungs[:-1]):
            if not self._is_complete(number):
                break
            out += rung.keep_best(self._num_promotable(number) - rung.promoted)
        return out


@dataclass(eq=False)
class AsyncScheduler(Scheduler, ABC):
    """Runs brackets that do not wait for each other, and closes itself after `max_trials` trials.

    Promotions of the first of `brackets` take precedence.
    """

    handles_limits = True

    max_resource: int  # epochs of a fully trained trial
    min_resource: int = 1  # lower bound of the epochs at the lowest rung; see `rungs.resource_levels`
    reduction_factor: int = 3  # a rung promotes 1 / reduction_factor of its trials
    max_trials: int | None = None  # number of trials to start; None: until `close`

    def __post_init__(self) -> None:
        check_resources(self.min_resource, self.max_resource, self.reduction_factor, self.max_trials)
        self.levels = resource_levels(self.min_resource, self.max_resource, self.reduction_factor)
        self.num_rungs = len(self.levels)
        self.brackets = self._open_brackets()
        self._num_trials = 0
        self._closed = False
        self._out: list[int] = []  # trials that are out since it closed itself, returned with the next report

    @abstractmethod
    def _open_brackets(self) -> Sequence[AsyncBracket | ControlBracket]: ...

    def next_slot(self) -> Slot | None:
        for bracket in self.brackets:
            if slot := bracket.promote():
                return slot
        if self._closed:
            return None
        slot = self._bracket_for_new_trial().start(self._num_trials)
        self._num_trials += 1
        if self._num_trials == self.max_trials:
            self._out = self.close()
        return slot

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        bracket = next(bracket for bracket in self.brackets if bracket.number == slot.bracket)
        out = [*self._out, *bracket.report(slot, Score.of(loss, violation))]
        self._out = []
        return sorted(out)

    def drop(self, trial_id: int) -> list[int]:
        return sorted(out for bracket in self.brackets for out in bracket.drop(trial_id))

    def close(self) -> list[int]:
        self._closed = True
        return sorted(trial_id for bracket in self.brackets for trial_id in bracket.close())

    def is_done(self) -> bool:
        return self._closed and all(bracket.is_done for bracket in self.brackets)

    def _bracket_for_new_trial(self) -> AsyncBracket | ControlBracket:
        """Return the bracket with the least resource so far."""
        return min(self.brackets, key=lambda bracket: (bracket.committed, bracket.number))


@dataclass(eq=False, kw_only=True)
class AsyncHyperbandScheduler(AsyncScheduler):
    """Brackets of ASHA that start at different rungs and run at the same time.

    A bracket that starts at a higher rung trains its trials longer before it ranks them, and the last one
    trains all of its trials fully, which is robust if low rungs are misleading. A new trial goes to the
    bracket with the least resource so far, so all brackets get the same share of the budget, as in Hyperband
    (Li et al. 2018, arXiv:1603.06560). Within a bracket, trials are promoted as in ASHA.

    With `max_trials`, trials that can no longer be promoted are out early; without it, all paused trials are
    kept.
    """

    num_brackets: int | None = None  # the one with the lowest rung first; None: one per level

    def _open_brackets(self) -> Sequence[AsyncBracket]:
        if self.num_brackets is not None:
            require_integer("num_brackets", self.num_brackets, 1)
            if self.num_brackets > len(self.levels):
                raise ConfigError(
                    f"must be <= {len(self.levels)}, one per resource level "
                    f"({', '.join(map(str, self.levels))})",
                    key="num_brackets",
                    value=self.num_brackets,
                )
        return [
            AsyncBracket(s, self.levels[s:], self.reduction_factor, self.max_trials)
            for s in range(self.num_brackets or len(self.levels))
        ]


@dataclass(eq=False, kw_only=True)
class AshaScheduler(AsyncHyperbandScheduler):
    """Asynchronous successive halving: no slot waits for the slowest trial of a rung.

    A free slot gets the promotion of one of the best trials of a rung or, if there is none, a new trial at
    the lowest rung (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning",
    arXiv:1810.05934, Algorithm 2). Two things differ from the paper: a rung never promotes more than
    1 / reduction_factor of its trials, even if a trial that was promoted early has been overtaken since; and
    at the end every rung is completed, so that the best trial is fully trained however few trials there are.
    """

    num_brackets: int | None = field(default=1, init=False)
