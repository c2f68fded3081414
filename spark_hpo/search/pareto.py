"""Pareto dominance: non-dominated fronts and crowding distances.

With the losses of `Penalty`, dominance becomes the constrained dominance of Deb et al. 2002.
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
    """Return the front of each point: 0 for non-dominated points, 1 for the next front, and so on.

    A point dominates another if it is better in one objective and worse in none (Deb et al. 2002, NSGA-II).
    Equal points share a front. Losses that are not finite are worse than all others.

    Args:
        losses: [points, objectives], all to be minimised.
        enough: stop after the front that completes this number of points; the remaining points share the
            next rank. None: rank all points.

    Returns:
        [points]
    """
    points = _points(losses)
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    # In lexicographic order, a point can only be dominated by earlier ones.
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
    """Return the indices of the non-dominated points, ascending."""
    return [int(i) for i in np.flatnonzero(pareto_ranks(losses, enough=1) == 0)]


def crowding_distances(losses: Sequence[Sequence[float]] | Array) -> Array:
    """Return the crowding distance of each point of a front (Deb et al. 2002, section III-B).

    This is the sum over objectives of the distance between a point's neighbours, relative to the range of
    the front; infinite for the ends of the front.

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
    """Return the indices of the `count` best points, ascending; all if there are fewer.

    Whole fronts are taken in order. Of the last front, the most crowded tenth is dropped repeatedly until the
    rest fits. Distances are updated after each step, because otherwise both of two close neighbours would be
    dropped (Kukkonen and Deb 2006, "Improved Pruning of Non-Dominated Solutions Based on Crowding Distance
    for Bi-Objective Optimization Problems"). Of equal points, those with lower indices are kept.

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
    """Mark the non-dominated points among distinct ones in lexicographic order, [points]."""
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
        left = left[(points[left] < first).any(axis=1)]  # `first` dominates the rest
    return on_front
