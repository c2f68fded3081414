"""Several objectives: which points no other one beats in all of them, and how crowded these lie.

`Penalty` adds limits: with its losses, dominance is the constrained dominance of Deb et al. 2002.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spark_hpo.search.space.axis import Array

Ints = npt.NDArray[np.int64]
Losses = tuple[float, ...]
"""One loss for each objective, the primary one first."""


@dataclass(frozen=True, slots=True)
class Penalty:
    """Losses of infeasible points, for methods that compare or model plain losses.

    In each objective, infeasible points are placed above the worst feasible one, in the order of their
    violations (Deb 2000). So every feasible point dominates every infeasible one, and of two infeasible
    points the one with the smaller violation dominates. Where they are placed follows from the feasible
    losses alone: between one and two times their range above the worst of them.

    A trace, feasible losses 0.2 and 0.5: Penalty.among(...).losses((0.1,), 1.0) -> (0.95,)
    """

    worst: Losses  # of the feasible points
    spread: Losses

    @classmethod
    def among(cls, feasible: Iterable[Losses], num_objectives: int = 1) -> Penalty:
        """Make the penalty that belongs to the losses of all feasible points."""
        columns = list(zip(*feasible, strict=True)) or [(0.0,)] * num_objectives
        worst = tuple(max(column) for column in columns)
        # Where all are equal, the size of the loss is the only scale there is.
        return cls(worst, tuple(max(c) - min(c) or abs(max(c)) or 1.0 for c in columns))

    def losses(self, losses: Losses, violation: float) -> Losses:
        """Return the losses of a feasible point as they are, else those that its violation puts it at."""
        if not violation:
            return losses
        share = 1 + violation / (1 + violation)
        return tuple(worst + spread * share for worst, spread in zip(self.worst, self.spread, strict=True))


def pareto_ranks(losses: Sequence[Sequence[float]] | Array, *, enough: int | None = None) -> Ints:
    """The front of each point: 0 for those that no other dominates, 1 for the next, and so on.

    One point dominates another that is nowhere better and somewhere worse (Deb et al. 2002, NSGA-II).
    Equal points share a front. A loss that is not finite is worse than any other.

    Args:
        losses: [points, objectives], all to be minimised.
        enough: points that need a rank of their own front; those of all later fronts share the next rank.
            None: all.

    Returns:
        [points]
    """
    points = _points(losses)
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    # Sorted by the first objective, then by the next: a point is dominated by earlier ones alone.
    distinct, inverse, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    ranks = np.zeros(len(distinct), dtype=np.int64)
    left = np.arange(len(distinct))
    enough = len(points) if enough is None else enough
    while len(left):
        on_front = _is_on_front(distinct[left])
        enough -= int(counts[left[on_front]].sum())
        left = left[~on_front]
        ranks[left] += 1
        if enough <= 0:
            break
    result: Ints = ranks[inverse.reshape(-1)]
    return result


def pareto_front(losses: Sequence[Sequence[float]] | Array) -> list[int]:
    """The numbers of the points that no other dominates, in their order."""
    return [int(i) for i in np.flatnonzero(pareto_ranks(losses, enough=1) == 0)]


def crowding_distances(losses: Sequence[Sequence[float]] | Array) -> Array:
    """How much room each point of a front has: the sides of the box between its neighbours.

    Section III-B of Deb et al. 2002, in parts of the front's range in each objective. Infinite for the
    points at its ends.

    Args:
        losses: [points, objectives], finite.

    Returns:
        [points]
    """
    points = _points(losses)
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        spread = ordered[-1] - ordered[0]
        if spread > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / spread
            distances[order[[0, -1]]] = np.inf
    return distances


def best_points(losses: Sequence[Sequence[float]] | Array, count: int) -> list[int]:
    """The numbers of the best points, in their order: `count` of them, or all where there are fewer.

    They are taken front by front. Of the last one that has a place, the most crowded tenth is left out,
    again and again until the rest fits: the room is measured anew after each cut, or of two neighbours
    both would go (Kukkonen and Deb 2006, "Improved Pruning of Non-Dominated Solutions Based on Crowding
    Distance for Bi-Objective Optimization Problems"). The lower number stays of equals.

    Args:
        losses: [points, objectives], finite, all to be minimised.
    """
    points = _points(losses)
    ranks = pareto_ranks(points, enough=count)
    best: list[int] = []
    for rank in range(int(ranks.max(initial=-1)) + 1):
        front = np.flatnonzero(ranks == rank)
        best += [int(i) for i in _least_crowded(front, points, count - len(best))]
        if len(best) == count:
            break
    return sorted(best)


def _least_crowded(front: Ints, points: Array, count: int) -> Ints:
    while len(front) > count:
        order = np.argsort(-crowding_distances(points[front]), kind="stable")
        front = np.sort(front[order[: max(count, len(front) * 9 // 10)]])
    return front


def _points(losses: Sequence[Sequence[float]] | Array) -> Array:
    points: Array = np.asarray(losses, dtype=float)
    return np.where(np.isfinite(points), points, np.inf)


def _is_on_front(points: Array) -> npt.NDArray[np.bool_]:
    """Of distinct points in lexicographic order: which ones no other dominates. [points]"""
    on_front = np.zeros(len(points), dtype=bool)
    if points.shape[1] == 2:  # a point is dominated unless its second loss is the lowest so far
        lowest = np.minimum.accumulate(points[:, 1])
        on_front[0] = True
        on_front[1:] = points[1:, 1] < lowest[:-1]
        return on_front
    left = np.arange(len(points))
    while len(left):
        first = points[left[0]]
        on_front[left[0]] = True
        left = left[(points[left] < first).any(axis=1)]  # the others are dominated by it
    return on_front
