"""What a sampler has been told: losses by resource, ranked, and which trials are in flight or failed."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from spark_hpo.objective import Score
from spark_hpo.search.pareto import Losses, Penalty

Ranking = list[tuple[Score, int]]
"""(score, trial), the best first; the lower trial among equals."""

Result = tuple[Losses, float]
"""Losses and violation."""


class History:
    """The results of a study, by level of resource. A failed trial has results nowhere.

    With several objectives trials are ranked by the first; `results` has all.

    A trace: start(0); tell(0, 1, 0.7); tell(0, 3, 0.5) -> ranking(1) = [((0.0, 0.7), 0)]
    """

    def __init__(self) -> None:
        self.num_objectives = 1  # as many as the last trial that was told of has losses
        self._levels: dict[int, Ranking] = {}
        self._scores: dict[int, dict[int, Score]] = {}  # by trial, then by resource
        self._others: dict[int, dict[int, Losses]] = {}  # of the further objectives, by the same
        self._in_flight: dict[int, None] = {}  # started, and told nothing yet; a set that keeps its order
        self._failed: dict[int, None] = {}

    @property
    def levels(self) -> list[int]:
        """The resources at which there are results, ascending."""
        return sorted(resource for resource, ranking in self._levels.items() if ranking)

    @property
    def num_told(self) -> int:
        """Trials of which something is known, be it that they have failed."""
        return len(self._scores) + len(self._failed)

    @property
    def in_flight(self) -> list[int]:
        """Trials of which nothing is known yet, in the order of their start."""
        return list(self._in_flight)

    @property
    def failed(self) -> list[int]:
        """Trials that have failed, in the order in which they did."""
        return list(self._failed)

    def ranking(self, resource: int) -> Ranking:
        """Scores at a resource. Not to be changed by the caller."""
        return self._levels.get(resource, [])

    def results(self, resource: int) -> dict[int, Result]:
        """The losses of all objectives at a resource by trial, in the order of `ranking`."""
        others = self._others
        return {
            trial_id: ((score.loss, *others[trial_id][resource]), score.violation)
            for score, trial_id in self.ranking(resource)
        }

    def penalty(self, resource: int) -> Penalty | None:
        """The penalty of the trials that break a limit at a resource; None where no trial does."""
        ranking = self.ranking(resource)
        if not ranking or not ranking[-1][0].violation:
            return None
        results = self.results(resource).values()
        return Penalty.among((losses for losses, violation in results if not violation), self.num_objectives)

    def scores(self, trial_id: int) -> dict[int, Score]:
        """A trial's scores by resource."""
        return self._scores.get(trial_id, {})

    def start(self, trial_id: int) -> None:
        self._in_flight[trial_id] = None

    def tell(
        self, trial_id: int, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        """A trial's losses; infinite or NaN for a failure, which takes back what it had promised below."""
        self.num_objectives = 1 + len(others)
        self._in_flight.pop(trial_id, None)
        if trial_id in self._failed:
            return
        score, scores = Score.of(loss, violation), self._scores.setdefault(trial_id, {})
        if resource in scores:
            self._remove(trial_id, resource)
        if score.is_finite and all(map(math.isfinite, others)):
            scores[resource] = score
            self._others.setdefault(trial_id, {})[resource] = others
            insort(self._levels.setdefault(resource, []), (score, trial_id))
            return
        for level in list(scores):
            self._remove(trial_id, level)
        del self._scores[trial_id]
        self._others.pop(trial_id, None)
        self._failed[trial_id] = None

    def _remove(self, trial_id: int, resource: int) -> None:
        score = self._scores[trial_id].pop(resource)
        ranking = self._levels[resource]
        del ranking[bisect_left(ranking, (score, trial_id))]
