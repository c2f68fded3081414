"""The rung at which new trials start: above the rungs that rank badly."""

from __future__ import annotations

from spark_hpo.objective import Score
from spark_hpo.search.agreement import MIN_PAIRS, expected_agreement, rank_agreement

_GROWTH = 1.2  # of the number of pairs, until a rung is judged again
_ENOUGH = 100  # pairs: more change nothing


class Entry:
    """Judges each rung by the trials that have reached the next one, and moves up if a ranking says little.

    The ranks of trials at two neighbouring rungs are correlated, corrected for their selection, and shrunk
    towards agreement, so that five trials must contradict each other clearly. Below `least_agreement`, the
    ranking at the lower rung is worth less than what it costs, and new trials start above it, in the extreme
    with full training. An entry never moves down.

    A trace, 4 rungs, least_agreement 0.4: rung -> 0
        five trials have scores at the rungs 1 and 2, in opposite orders: note(...) -> rung is 2
    """

    def __init__(self, num_rungs: int, least_agreement: float) -> None:
        """
        Args:
            least_agreement: -1..1; -1: the entry stays at the lowest rung.
        """
        self.rung = 0
        self.may_rise = least_agreement > -1
        self._least_agreement = least_agreement
        self._scores: list[dict[int, Score]] = [{} for _ in range(num_rungs)]  # by rung and trial
        self._next = [MIN_PAIRS] * num_rungs  # pairs at which a rung is judged again

    def note(self, trial_id: int, rung: int, score: Score) -> None:
        """Take the score of a trial at a rung."""
        if not self.may_rise or not score.is_finite:
            return
        there = self._scores[rung]
        there[trial_id] = score
        if rung <= self.rung or not self._next[rung] <= len(there) <= _ENOUGH:
            return
        here = self._scores[rung - 1]
        pairs = [(here[trial_id], score) for trial_id, score in there.items() if trial_id in here]
        if len(pairs) < self._next[rung]:
            return
        self._next[rung] = max(len(pairs) + 1, int(_GROWTH * len(pairs)))
        agreement = rank_agreement(pairs, list(here.values()))
        if expected_agreement(agreement, len(pairs)) < self._least_agreement:
            self.rung = rung
