"""The reserve of a budget: it trains the best trials to the end when the search is over."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.ranking import Key, by_score
from spark_hpo.search.scheduler import Slot
from spark_hpo.trial import Trial


@dataclass(frozen=True, slots=True)
class Need:
    """The training that a trial still needs."""

    trial_id: int | None  # None: a trial that has not been measured yet
    resource: int  # to the end, from where its open slot, if there is one, leaves it


_MOST_PASSED_OVER = 10  # trials without time for their training, before the reserve takes none

Fits = Callable[[Need], bool]

_NONE: Mapping[int, Slot] = {}


def _always(_: Need) -> bool:
    return True


@dataclass(eq=False)
class Reserve:
    """Decides which trials are trained to the end after the search, over any scheduler.

    The candidates are the `count` trials with the best results so far, each as it was when it was best. A
    scheduler may have stopped one of them at a low rung, because a worse trial took the last place in the
    next rung, or the search may have ended before its promotion. Trials that failed are not candidates.

    Pure: the same calls give the same decisions.

    A trace, count 1, 81 epochs: note(trial 3 after 3 epochs); note(trial 5, worse, after 81 epochs);
        next_slot({}) -> trial 3: 3 -> 81; note(trial 3 after 81 epochs); next_slot({}) -> None
    """

    count: int  # of the candidates; 0: there is no reserve
    max_resource: int
    num_rungs: int | None = None  # of the longest bracket

    def __post_init__(self) -> None:
        self._keys: dict[int, Key] = {}  # by trial: the sort key of its best result
        self._ranking: list[Key] = []  # ascending; the last part of a key is the trial
        self._slots: dict[int, Slot] = {}  # by trial: its latest slot that has reported
        self._scores: dict[int, Score] = {}  # by trial: at the end of that slot
        self._top_rungs: dict[int, int] = {}  # by bracket: the rung of fully trained trials, once known

    def note(self, trial: Trial, slot: Slot) -> None:
        """Take a trial as of its latest report, and the slot that has reported."""
        if not self.count:
            return
        trial_id, before = trial.trial_id, self._keys.get(trial.trial_id)
        is_better = before is None or by_score(trial) < before
        if before is not None and (is_better or not trial.score.is_finite):
            del self._ranking[bisect_left(self._ranking, before)]
            del self._keys[trial_id]
        if not trial.score.is_finite:
            return
        if is_better:
            self._keys[trial_id] = by_score(trial)
            insort(self._ranking, self._keys[trial_id])
        self._slots[trial_id], self._scores[trial_id] = slot, trial.score
        if slot.resource_to == self.max_resource:
            self._top_rungs[slot.bracket] = slot.rung

    def last_score(self, trial_id: int) -> Score:
        """Return the score at the end of the trial's latest slot."""
        return self._scores.get(trial_id, NO_SCORE)

    def unfinished(self, open_slots: Mapping[int, Slot] = _NONE, fits: Fits = _always) -> list[int]:
        """Return the candidates that are not fully trained, the best first.

        Args:
            open_slots, fits: as for `needs`.
        """
        return [
            trial_id
            for trial_id in self._candidates(open_slots, fits)
            if self._slots[trial_id].resource_to < self.max_resource
        ]

    def needs(self, open_slots: Mapping[int, Slot], fits: Fits = _always) -> list[Need]:
        """Return what has to be trained after the search, if it ends now, the best trial first.

        Args:
            open_slots: the slots in flight, by trial.
            fits: returns whether there is time for a training. A trial without it is not a candidate.
        """
        found = [self._need(trial_id, open_slots) for trial_id in self._candidates(open_slots, fits)]
        num_unknown = self.count - len(found)
        if num_unknown > 0:
            reached = sorted(
                (s.resource_to for t, s in open_slots.items() if t not in self._keys), reverse=True
            )
            reached += [0] * num_unknown
            unknown = [Need(None, self.max_resource - resource) for resource in reached[:num_unknown]]
            found += filter(fits, unknown)
        return [need for need in found if need.resource > 0]

    def next_slot(self, open_slots: Mapping[int, Slot], fits: Fits = _always) -> Slot | None:
        """Return the slot that trains the next candidate to the end; None: none waits for one.

        Args:
            open_slots, fits: as for `needs`.
        """
        waiting = (t for t in self.unfinished(open_slots, fits) if t not in open_slots)
        trial_id = next(waiting, None)
        if trial_id is None:
            return None
        last = self._slots[trial_id]
        return Slot(
            trial_id=trial_id,
            bracket=last.bracket,
            rung=self._top_rungs.get(last.bracket, max(last.rung + 1, (self.num_rungs or 0) - 1)),
            resource_from=last.resource_to,
            resource_to=self.max_resource,
        )

    def _need(self, trial_id: int, open_slots: Mapping[int, Slot]) -> Need:
        return Need(trial_id, self.max_resource - open_slots.get(trial_id, self._slots[trial_id]).resource_to)

    def _candidates(self, open_slots: Mapping[int, Slot], fits: Fits) -> Iterator[int]:
        ranked = (key[-1] for key in self._ranking[: self.count + _MOST_PASSED_OVER])
        able = (t for t in ranked if not (need := self._need(t, open_slots)).resource or fits(need))
        return islice(able, self.count)
