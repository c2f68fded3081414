"""The analytic benchmarks: their optima, their noise, and how low rungs mislead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.benchmarks.replay.functions import CountingOnes, Hartmann

# Where the minima lie: Surjanovic and Bingham, Virtual Library of Simulation Experiments.
AT_MINIMUM = {
    3: (0.114614, 0.555649, 0.852547),
    6: (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),
}


@pytest.mark.parametrize(("dimensions", "minimum"), [(3, -3.86278), (6, -3.32237)])
def test_hartmann_has_its_known_minimum_at_the_last_resource(dimensions: int, minimum: float) -> None:
    function = Hartmann(dimensions=dimensions, noise=1.0)
    params = {f"x{i}": x for i, x in enumerate(AT_MINIMUM[dimensions])}
    loss = function.curve(0, params).metrics["loss"]
    assert loss[-1] == pytest.approx(minimum, abs=1e-4)
    assert function.optimum == minimum


@pytest.mark.parametrize("dimensions", [3, 6])
def test_hartmann_is_nowhere_below_its_minimum(dimensions: int) -> None:
    function = Hartmann(dimensions=dimensions)
    assert function.reference.best >= function.optimum
    assert function.reference.median > function.reference.best


def test_hartmann_wells_lose_the_bias_at_fidelity_0() -> None:
    x, fidelities = np.array([0.2, 0.4, 0.6]), np.array([0.0, 1.0])
    imitation, exact = Hartmann(dimensions=3, bias=0.1).values(x, fidelities)
    halved, _ = Hartmann(dimensions=3, bias=0.05).values(x, fidelities)
    assert imitation > exact  # less deep
    assert imitation - halved == pytest.approx(halved - exact)


def test_only_a_large_bias_misleads_the_low_rungs() -> None:
    def correlation(bias: float) -> float:
        function = Hartmann(dimensions=6, bias=bias)
        draws = [function.space.sample(np.random.default_rng(i)) for i in range(300)]
        losses = np.array([function.curve(i, x).metrics["loss"] for i, x in enumerate(draws)])
        return float(spearmanr(losses[:, 0], losses[:, -1]).statistic)

    assert correlation(0.1) > 0.95
    assert correlation(4.0) < 0.0


def test_noise_falls_to_nothing_at_the_last_resource() -> None:
    function = Hartmann(dimensions=3, bias=0.0, noise=0.5)
    params = {"x0": 0.3, "x1": 0.3, "x2": 0.3}
    losses = np.array([function.curve(trial_id, params).metrics["loss"] for trial_id in range(400)])
    spread = losses.std(axis=0)
    z = np.arange(1, 28) / 27
    np.testing.assert_allclose(spread, 0.5 * (1 - z), rtol=0.2, atol=1e-12)


def test_counting_ones_is_lowest_where_all_are_one() -> None:
    function = CountingOnes()
    ones = {f"c{i}": 1 for i in range(8)} | {f"x{i}": 1.0 for i in range(8)}
    np.testing.assert_allclose(function.curve(0, ones).metrics["loss"], -1.0)
    zeros = dict.fromkeys(ones, 0)
    np.testing.assert_allclose(function.curve(0, zeros).metrics["loss"], 0.0)


def test_counting_ones_estimates_with_as_many_tosses_as_its_resource_buys() -> None:
    function = CountingOnes(num_binary=0, num_continuous=1)
    losses = np.array([function.curve(i, {"x0": 0.5}).metrics["loss"] for i in range(1000)])
    np.testing.assert_allclose(losses.mean(axis=0), -0.5, atol=0.03)
    # A fair coin tossed 27 and 729 times.
    np.testing.assert_allclose(losses.std(axis=0)[[0, -1]], 0.5 / np.sqrt([27, 729]), rtol=0.15)


def test_curve_is_repeatable() -> None:
    for function in (CountingOnes(), Hartmann(dimensions=3, noise=1.0)):
        params = function.space.sample(np.random.default_rng(0))
        first, second = (function.curve(7, params).metrics["loss"] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        other = function.curve(8, params).metrics["loss"]
        assert (first != other).any()
