"""What a sampler has been told: losses by resource, ranked, and which trials are in flight or failed."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

Ranking = list[tuple[float, int]]
"""(loss, trial), the best first; the lower trial among equals."""

Losses = tuple[float, ...]
"""Of all objectives, the first one first."""


class History:
    """The results of a study, by level of resource. A failed trial has results nowhere.

    With several objectives trials are ranked by the first; `results` has all.

    A trace: start(0); tell(0, 1, 0.7); tell(0, 3, 0.5) -> ranking(1) = [(0.7, 0)], ranking(3) = [(0.5, 0)]
    """

    def __init__(self) -> None:
        self.num_objectives = 1  # as many as the last trial that was told of has losses
        self._levels: dict[int, Ranking] = {}
        self._losses: dict[int, dict[int, float]] = {}  # by trial, then by resource
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
        return len(self._losses) + len(self._failed)

    @property
    def in_flight(self) -> list[int]:
        """Trials of which nothing is known yet, in the order of their start."""
        return list(self._in_flight)

    @property
    def failed(self) -> list[int]:
        """Trials that have failed, in the order in which they did."""
        return list(self._failed)

    def ranking(self, resource: int) -> Ranking:
        """Losses at a resource. Not to be changed by the caller."""
        return self._levels.get(resource, [])

    def results(self, resource: int) -> dict[int, Losses]:
        """The losses of all objectives at a resource by trial, in the order of `ranking`."""
        others = self._others
        return {trial_id: (loss, *others[trial_id][resource]) for loss, trial_id in self.ranking(resource)}

    def losses(self, trial_id: int) -> dict[int, float]:
        """A trial's losses by resource."""
        return self._losses.get(trial_id, {})

    def start(self, trial_id: int) -> None:
        self._in_flight[trial_id] = None

    def tell(self, trial_id: int, resource: int, loss: float, others: Losses = ()) -> None:
        """A trial's losses; infinite or NaN for a failure, which takes back what it had promised below."""
        self.num_objectives = 1 + len(others)
        self._in_flight.pop(trial_id, None)
        if trial_id in self._failed:
            return
        losses = self._losses.setdefault(trial_id, {})
        if resource in losses:
            self._remove(trial_id, resource)
        if all(map(math.isfinite, (loss, *others))):
            losses[resource] = loss
            self._others.setdefault(trial_id, {})[resource] = others
            insort(self._levels.setdefault(resource, []), (loss, trial_id))
            return
        for level in list(losses):
            self._remove(trial_id, level)
        del self._losses[trial_id]
        self._others.pop(trial_id, None)
        self._failed[trial_id] = None

    def _remove(self, trial_id: int, resource: int) -> None:
        loss = self._losses[trial_id].pop(resource)
        ranking = self._levels[resource]
        del ranking[bisect_left(ranking, (loss, trial_id))]
