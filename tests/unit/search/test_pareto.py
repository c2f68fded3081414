"""Pareto fronts and crowding, against brute-force definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.search.pareto import best_points, crowding_distances, pareto_front, pareto_ranks

Point = tuple[float, ...]


def points(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[Point]]:
    """Up to 30 points of one to four objectives."""
    return st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[values] * width), max_size=30))


few = points(st.integers(0, 4).map(float))  # so few values that many are equal
any_points = points(st.floats(allow_nan=True, allow_infinity=True))


def dominates(one: Point, other: Point) -> bool:
    one, other = (tuple(v if math.isfinite(v) else math.inf for v in point) for point in (one, other))
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def ranks_by_definition(points: list[Point]) -> list[int]:
    ranks = [-1] * len(points)
    for rank in range(len(points)):
        left = [i for i, known in enumerate(ranks) if known < 0]
        for i in left:
            if not any(dominates(points[j], points[i]) for j in left):
                ranks[i] = rank
    return ranks


def test_pareto_front_is_non_dominated() -> None:
    points = [(1, 4), (2, 2), (4, 1), (3, 3), (2, 2), (4, 4), (math.nan, 0)]
    assert pareto_front(points) == [0, 1, 2, 4, 6]
    assert pareto_ranks(points).tolist() == [0, 0, 0, 1, 0, 2, 0]
    assert pareto_ranks([]).tolist() == pareto_front([]) == []


@given(few | any_points)
def test_pareto_ranks_match_the_definition(points: list[Point]) -> None:
    expected = ranks_by_definition(points)
    assert pareto_ranks(points).tolist() == expected
    assert pareto_front(points) == [i for i, rank in enumerate(expected) if rank == 0]


@given(few, st.integers(1, 30))
def test_pareto_ranks_stop_after_enough_points(points: list[Point], enough: int) -> None:
    expected, ranks = ranks_by_definition(points), pareto_ranks(points, enough=enough).tolist()
    last = next((r for r in range(30) if sum(rank <= r for rank in expected) >= enough), 30)
    assert ranks == [min(rank, last + 1) for rank in expected]


def test_pareto_ranks_of_a_thousand_fronts_and_of_one() -> None:
    line = np.arange(1000.0)
    assert pareto_ranks(np.stack([line, line], axis=1)).tolist() == list(range(1000))
    assert pareto_front(np.stack([line, -line], axis=1)) == list(range(1000))
    assert pareto_front(np.stack([line, -line, line], axis=1)) == list(range(1000))


def test_crowding_distance_is_that_of_the_neighbours() -> None:
    front = [(0.0, 10.0), (1.0, 4.0), (2.0, 3.0), (10.0, 0.0)]
    assert crowding_distances(front).tolist() == [
        math.inf,
        pytest.approx(2 / 10 + 7 / 10),
        pytest.approx(9 / 10 + 4 / 10),
        math.inf,
    ]
    assert crowding_distances([(1.0, 1.0)] * 3).tolist() == [0.0, 0.0, 0.0]


@given(few, st.integers(0, 40))
def test_best_points_are_taken_front_by_front(points: list[Point], count: int) -> None:
    best, ranks = best_points(points, count), ranks_by_definition(points)
    assert len(set(best)) == len(best) == min(count, len(points))
    assert best == sorted(best)
    others = set(range(len(points))) - set(best)
    assert all(ranks[i] <= ranks[j] for i in best for j in others)


def test_best_points_of_one_objective_are_the_lowest() -> None:
    assert best_points([(3.0,), (1.0,), (2.0,), (1.0,), (1.0,)], 2) == [1, 3]


def test_best_points_keep_the_ends_of_a_large_front() -> None:
    # Two crowds, and room for one of each beside the ends.
    x = [0.0, 0.30, 0.31, 0.32, 0.70, 0.71, 0.72, 1.0]
    best = best_points([(v, 1 - v) for v in x], 4)
    assert {0, 7} < set(best)
    assert len(set(best) & {1, 2, 3}) == len(set(best) & {4, 5, 6}) == 1
