"""The Gaussian process of PB2."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spark_hpo.search.explorers.gaussian_process import Array, Points, TimeVaryingProcess


def points(inputs: list[list[float]], times: list[float]) -> Points:
    return Points(inputs=np.array(inputs), times=np.array(times))


def random_points(number: int, columns: int = 2) -> tuple[Points, np.random.Generator]:
    rng = np.random.default_rng(0)
    return Points(inputs=rng.random((number, columns)), times=np.sort(rng.random(number))), rng


def standardized(values: Array) -> Array:
    scaled: Array = (values - values.mean()) / values.std()
    return scaled


@pytest.mark.parametrize("groups", [(0, 0), (0, 1)])
def test_gaussian_process_gradient_matches_its_loss(groups: tuple[int, ...]) -> None:
    known, rng = random_points(15)
    process = TimeVaryingProcess(known, rng.standard_normal(15), groups)
    for shift in (0.0, 0.3, -0.5):
        at = process.parameters + shift
        _, gradient = process.loss(at)
        for i, slope in enumerate(gradient):
            step = np.zeros_like(at)
            step[i] = 1e-5
            numeric = (process.loss(at + step)[0] - process.loss(at - step)[0]) / 2e-5
            assert slope == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def test_gaussian_process_learns_a_noisy_function() -> None:
    known, rng = random_points(120)
    truth = np.sin(5 * known.inputs[:, 0]) + known.inputs[:, 1]
    process = TimeVaryingProcess(known, standardized(truth + 0.05 * rng.standard_normal(120)), (0, 0))
    grid = Points(inputs=rng.random((200, 2)), times=np.full(200, 1.0))
    mean, deviation = process.predict(grid)
    there = np.sin(5 * grid.inputs[:, 0]) + grid.inputs[:, 1]
    assert np.corrcoef(mean, there)[0, 1] > 0.98
    assert deviation.mean() < 0.5


def test_gaussian_process_discounts_old_points() -> None:
    # The same place was good for a long time, and is bad of late.
    times = [0.0, 0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 1.0]
    process = TimeVaryingProcess(
        points([[0.5]] * 8, times), np.array([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]), (0,)
    )
    mean, _ = process.predict(points([[0.5]] * 2, [0.0, 1.0]))
    assert mean[0] > 0.5
    assert mean[1] < -0.5


def test_pending_points_reduce_only_the_deviation() -> None:
    known, rng = random_points(20)
    process = TimeVaryingProcess(known, standardized(rng.standard_normal(20)), (0, 0))
    where = points([[0.5, 0.5], [0.02, 0.98]], [1.0, 1.0])
    mean, deviation = process.predict(where)
    same, narrower = process.predict(where, pending=points([[0.5, 0.5]], [1.0]))
    assert same == pytest.approx(mean)
    assert narrower[0] < deviation[0]
    assert narrower[1] <= deviation[1] + 1e-9


def test_gaussian_process_accepts_equal_points_and_targets() -> None:
    process = TimeVaryingProcess(points([[0.3]] * 6, [0.0] * 6), np.zeros(6), (0,))
    mean, deviation = process.predict(points([[0.3], [0.9]], [0.0, 1.0]))
    assert mean == pytest.approx([0.0, 0.0])
    assert all(math.isfinite(one) and one > 0 for one in deviation)
