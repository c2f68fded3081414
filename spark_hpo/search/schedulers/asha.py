"""ASHA: asynchronous successive halving, and several brackets of it side by side."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from spark_hpo.errors import ConfigError
from spark_hpo.objective import Score
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.bracket import check_resources
from spark_hpo.search.schedulers.rungs import resource_levels
from spark_hpo.search.settings import require_integer


@dataclass(slots=True)
class _Rung:
    """The trials that have come to one resource, and what has become of them."""

    resource: int
    most: int | None  # trials that it can ever promote; None: not known
    running: set[int] = field(default_factory=set)
    reported: int = 0  # failures too
    promoted: int = 0
    waiting: list[tuple[Score, int]] = field(default_factory=list)  # (score, trial), the best first

    def share(self, reduction_factor: int, *, is_complete: bool) -> int:
        """How many it may promote by now: one in so many of those that have reported.

        A complete rung promotes at least one, as one of successive halving does.
        """
        share = self.reported // reduction_factor
        return max(share, 1) if is_complete else share

    def take(self, trial_id: int, score: Score) -> list[int]:
        """A trial has reported. Returns those that are out, whoever else may come."""
        self.running.remove(trial_id)
        self.reported += 1
        if not score.is_finite:
            return [trial_id]
        insort(self.waiting, (score, trial_id))
        return [] if self.most is None else self.cut(self.most - self.promoted)

    def cut(self, places: int) -> list[int]:
        """Keep the best `places` of those that wait. Returns the others."""
        places = max(places, 0)
        out = [trial_id for _, trial_id in self.waiting[places:]]
        del self.waiting[places:]
        return out


class AsyncBracket:
    """Rungs that never wait for each other: a trial is promoted as soon as its rung has a place for it.

    Of n trials that have reported at a rung, failures among them, n // reduction_factor may have been
    promoted, and the next to go is always the best of those waiting, the lower trial among equals.

    A trace, reduction factor 2:
        start(0), start(1) -> rung 0;  report(0, 0.5) -> one of one has reported: nothing to promote
        report(1, 0.3) -> promote() -> trial 1 to rung 1;  start(2) -> rung 0

    A trial that waits is **out** when its rung can never promote it: when those promoted and those
    better than it are already as many as the rung will promote even if all `max_trials` come (this needs
    a `max_trials`), or when the rung is complete, that is, closed and with nobody still to come.
    """

    def __init__(
        self, number: int, levels: tuple[int, ...], reduction_factor: int, max_trials: int | None
    ) -> None:
        self.number = number
        self.reduction_factor = reduction_factor
        self.started = 0
        self.committed = 0  # resource of all slots that it has opened
        self._rungs: list[_Rung] = []
        self._stands: dict[int, int] = {}  # resource that a trial has, or will have when it reports
        self._closed = False
        for resource in levels:
            if max_trials is not None:
                max_trials = max(1, max_trials // reduction_factor)
            self._rungs.append(_Rung(resource, max_trials))

    @property
    def is_done(self) -> bool:
        """Whether it is closed and no slot is open or will ever open again."""
        return (
            self._closed
            and all(not rung.running and not rung.waiting for rung in self._rungs[:-1])
            and (not self._rungs[-1].running)
        )

    def start(self, trial_id: int) -> Slot:
        """Open the first slot of a new trial."""
        assert not self._closed
        self.started += 1
        return self._open(trial_id, 0)

    def promote(self) -> Slot | None:
        """Open a slot for a trial that has earned it, the highest rung first; None: there is none."""
        for number in reversed(range(len(self._rungs) - 1)):
            rung = self._rungs[number]
            share = rung.share(self.reduction_factor, is_complete=self._is_complete(number))
            if rung.waiting and rung.promoted < share:
                _, trial_id = rung.waiting.pop(0)
                rung.promoted += 1
                return self._open(trial_id, number + 1)
        return None

    def report(self, slot: Slot, score: Score) -> list[int]:
        """Take the score of an open slot. Returns the trials that are now out."""
        rung = self._rungs[slot.rung]
        assert slot.trial_id in rung.running, f"{slot} is not open"
        if slot.rung == len(self._rungs) - 1:
            rung.running.remove(slot.trial_id)
            out = [] if score.is_finite else [slot.trial_id]
        else:
            out = rung.take(slot.trial_id, score)
        return out + self._settle()

    def close(self) -> list[int]:
        """Take no new trials. Returns the trials that are now out."""
        self._closed = True
        return self._settle()

    def _open(self, trial_id: int, number: int) -> Slot:
        rung = self._rungs[number]
        rung.running.add(trial_id)
        start = self._stands.get(trial_id, 0)
        self._stands[trial_id] = rung.resource
        self.committed += rung.resource - start
        return Slot(
            trial_id=trial_id,
            bracket=self.number,
            rung=number,
            resource_from=start,
            resource_to=rung.resource,
        )

    def _is_complete(self, number: int) -> bool:
        """Whether nobody can come to this rung any more and all that came have reported."""
        below = self._rungs[: number + 1]
        return (
            self._closed
            and not any(rung.running for rung in below)
            and not any(rung.waiting for rung in below[:-1])
        )

    def _settle(self) -> list[int]:
        """Let go of those that complete rungs will not promote, from the lowest rung up."""
        out: list[int] = []
        for number, rung in enumerate(self._rungs[:-1]):
            if not self._is_complete(number):
                break
            out += rung.cut(rung.share(self.reduction_factor, is_complete=True) - rung.promoted)
        return out


class AsyncHyperbandScheduler(Scheduler):
    """Brackets of ASHA that start at different rungs, side by side: safe where low rungs mislead.

    A bracket that starts at a higher rung gives its trials more training before it judges them, and the
    last one trains all of its trials to the end. A new trial goes to the bracket that has been given the
    least resource so far, so all of them get the same share of the budget, as in Hyperband (Li et al.
    2018, arXiv:1603.06560); within a bracket, trials are promoted as in ASHA. Nothing ever waits.

    Args:
        max_resource: epochs of a trial that is promoted to the end.
        min_resource: epochs at the lowest rung, at least; see `rungs.resource_levels`.
        reduction_factor: a rung promotes one trial in so many.
        num_brackets: how many brackets, the most exploring first; None: one for each level of resource.
        max_trials: how many trials may start; None: until `close`. With a number, checkpoints of trials
            that can no longer be promoted go early; without one, all that wait are kept.
    """

    handles_limits = True

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        num_brackets: int | None = None,
        max_trials: int | None = None,
    ) -> None:
        check_resources(min_resource, max_resource, reduction_factor)
        if max_trials is not None:
            require_integer("max_trials", max_trials, 1)
        levels = resource_levels(min_resource, max_resource, reduction_factor)
        if num_brackets is not None:
            require_integer("num_brackets", num_brackets, 1)
            if num_brackets > len(levels):
                raise ConfigError(
                    f"must be <= {len(levels)}, one per resource level ({', '.join(map(str, levels))})",
                    key="num_brackets",
                    value=num_brackets,
                )
        self.max_resource = max_resource
        self.levels = levels
        self.max_trials = max_trials
        self.brackets = tuple(
            AsyncBracket(s, levels[s:], reduction_factor, max_trials)
            for s in range(num_brackets or len(levels))
        )
        self._num_trials = 0
        self._closed = False
        self._out: list[int] = []  # since it closed itself, to be told with the next report

    def next_slot(self) -> Slot | None:
        """Open the next slot: a promotion wherever there is one, else a new trial."""
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
        """Take the loss of a slot. Returns the trials that are now out, in ascending order."""
        out = [*self._out, *self.brackets[slot.bracket].report(slot, Score.of(loss, violation))]
        self._out = []
        return sorted(out)

    def close(self) -> list[int]:
        """Open no new trials from now on. Returns the trials that are now out."""
        self._closed = True
        return sorted(trial_id for bracket in self.brackets for trial_id in bracket.close())

    def is_done(self) -> bool:
        """Whether no slot is open and none will ever open again."""
        return all(bracket.is_done for bracket in self.brackets)

    def _bracket_for_new_trial(self) -> AsyncBracket:
        return min(self.brackets, key=lambda bracket: (bracket.committed, bracket.number))


class AshaScheduler(AsyncHyperbandScheduler):
    """Asynchronous successive halving, by promotion: no slot ever waits for the slowest trial of a rung.

    Whoever asks for a slot gets the promotion of a trial that is among the best of its rung, or, where
    there is none, a new trial at the lowest rung (Li et al. 2020, "A System for Massively Parallel
    Hyperparameter Tuning", arXiv:1810.05934, Algorithm 2). Two things differ from the paper, both in
    favour of the budget: a rung never promotes more than its share, also when a trial that was promoted
    early has since been overtaken; and at the end each rung is completed, so that the best trial is
    trained fully however few there were.

    Args:
        max_resource: epochs of a trial that is promoted to the end.
        min_resource: epochs at the lowest rung, at least; see `rungs.resource_levels`.
        reduction_factor: a rung promotes one trial in so many.
        max_trials: how many trials may start; None: until `close`.
    """

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        max_trials: int | None = None,
    ) -> None:
        super().__init__(max_resource, min_resource, reduction_factor, 1, max_trials)
