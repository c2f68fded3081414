"""Several objectives: which trials no other one beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_hpo.search.axis import Array


def pareto_ranks(losses: Sequence[Sequence[float]]) -> list[int]:
    """The front of each point: 0 for those that no other dominates, 1 for the next, and so on.

    One point dominates another that is nowhere better and somewhere worse (Deb et al. 2002, NSGA-II).
    Equal points share a front. A loss that is not finite is worse than any other.

    Args:
        losses: [points, objectives], all to be minimised.
    """
    if not losses:
        return []
    points: Array = np.asarray(losses, dtype=float)
    points = np.where(np.isfinite(points), points, np.inf)
    ranks = np.full(len(points), -1)
    rank = 0
    while (ranks < 0).any():
        left = np.flatnonzero(ranks < 0)
        here = points[left]
        no_worse = (here[:, None, :] <= here[None, :, :]).all(axis=2)
        dominates = no_worse & (here[:, None, :] < here[None, :, :]).any(axis=2)
        ranks[left[~dominates.any(axis=0)]] = rank
        rank += 1
    return [int(r) for r in ranks]


def pareto_front(losses: Sequence[Sequence[float]]) -> list[int]:
    """The numbers of the points that no other dominates, in their order."""
    return [i for i, rank in enumerate(pareto_ranks(losses)) if rank == 0]
