"""The results that a sampler has been told, by resource."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

from spark_hpo.objective import Score
from spark_hpo.search.pareto import Losses, Penalty

Ranking = list[tuple[Score, int]]
"""(score, trial), the best first; of equal scores, the lower trial id first."""

Result = tuple[Losses, float]
"""The losses of all objectives, and the violation of the limits."""


class History:
    """Scores by resource, and the trials in flight or failed. A failed trial has no results at any resource.

    With several objectives, trials are ranked by the first one; `results` has the losses of all.

    A trace: start(0); tell(0, 1, 0.7); tell(0, 3, 0.5) -> ranking(1) = [((0.0, 0.7), 0)]
    """

    def __init__(self) -> None:
        self.num_objectives = 1  # losses of the last result
        self._levels: dict[int, Ranking] = {}
        self._results: dict[int, dict[int, tuple[Score, Losses]]] = {}  # by trial, then by resource
        self._in_flight: dict[int, None] = {}  # an ordered set
        self._failed: dict[int, None] = {}

    @property
    def levels(self) -> list[int]:
        """Resources with results, ascending."""
        return sorted(resource for resource, ranking in self._levels.items() if ranking)

    @property
    def num_reported(self) -> int:
        """Number of trials that have reported or failed."""
        return len(self._results) + len(self._failed)

    @property
    def in_flight(self) -> list[int]:
        """Trials that have started and not reported, in the order of their start."""
        return list(self._in_flight)

    @property
    def failed(self) -> list[int]:
        """Failed trials, in the order of their failures."""
        return list(self._failed)

    def rankings(self) -> list[Ranking]:
        """Return copies of the rankings at all levels, ascending."""
        return [list(self._levels[resource]) for resource in self.levels]

    def highest_level(self, enough: int) -> int | None:
        """Return the highest resource that this many trials have reported; None if there is none."""
        return max((r for r, ranking in self._levels.items() if len(ranking) >= enough), default=None)

    def ranking(self, resource: int) -> Ranking:
        """Return the scores at a resource. The caller must not change the list."""
        return self._levels.get(resource, [])

    def paused_below(self, resource: int) -> set[int]:
        """Return the trials that have results below a resource and none at it."""
        reached = {trial_id for _, trial_id in self.ranking(resource)}
        lower = (ranking for level, ranking in self._levels.items() if level < resource)
        return {trial_id for ranking in lower for _, trial_id in ranking} - reached

    def results(self, resource: int) -> dict[int, Result]:
        """Return losses and violation at a resource by trial, in the order of `ranking`."""
        return {
            trial_id: ((score.loss, *self._results[trial_id][resource][1]), score.violation)
            for score, trial_id in self.ranking(resource)
        }

    def penalty(self, resource: int) -> Penalty | None:
        """Return the penalty of infeasible trials at a resource; None if all trials are feasible."""
        ranking = self.ranking(resource)
        if not ranking or not ranking[-1][0].violation:
            return None
        results = self.results(resource).values()
        return Penalty.among((losses for losses, violation in results if not violation), self.num_objectives)

    def scores(self, trial_id: int) -> dict[int, Score]:
        """Return a trial's scores by resource."""
        return {resource: score for resource, (score, _) in self._results.get(trial_id, {}).items()}

    def start(self, trial_id: int) -> None:
        self._in_flight[trial_id] = None

    def tell(
        self, trial_id: int, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        """Add the losses of a trial at a resource. A loss that is not finite removes all its results."""
        self.num_objectives = 1 + len(others)
        self._in_flight.pop(trial_id, None)
        if trial_id in self._failed:
            return
        score, results = Score.of(loss, violation), self._results.setdefault(trial_id, {})
        if resource in results:
            self._remove(trial_id, resource)
        if score.is_finite and all(map(math.isfinite, others)):
            results[resource] = score, others
            insort(self._levels.setdefault(resource, []), (score, trial_id))
            return
        for level in list(results):
            self._remove(trial_id, level)
        del self._results[trial_id]
        self._failed[trial_id] = None

    def _remove(self, trial_id: int, resource: int) -> None:
        score, _ = self._results[trial_id].pop(resource)
        ranking = self._levels[resource]
        del ranking[bisect_left(ranking, (score, trial_id))]
