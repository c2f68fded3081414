"""Problems of which a part of the configurations fails."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.failing import Counted, crowded_functions, failing_functions
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import replay


def failures(benchmark: Benchmark, method: str, *, seeds: int = 4) -> int:
    """Return how many of the first 30 trials fail, in all seeds together."""
    counted = Counted(parse_method(method))
    total = 0
    for seed in range(seeds):
        replay(benchmark, counted, slots=4, seed=seed, budget=0.7)
        total += counted.failures(30)
    return total


@pytest.mark.medium
def test_default_fails_half_as_often_as_without_learning() -> None:
    benchmark = next(b for b in failing_functions((0.55,)) if b.task.startswith("hartmann6_corner"))
    draws = [benchmark.space.sample(np.random.default_rng(i)) for i in range(300)]
    failing = [benchmark.curve(i, params).diverges_at is not None for i, params in enumerate(draws)]
    assert np.mean(failing) == pytest.approx(0.55, abs=0.07)

    assert failures(benchmark, "default") <= 0.5 * failures(
        benchmark, "tpe:enough=10,learns_from_paused=true+adaptive_asha"
    )


@pytest.mark.medium
def test_default_fails_less_often_because_it_predicts_memory() -> None:
    benchmark = next(b for b in crowded_functions((0.5,)) if b.task == "hartmann3_rank_memory_0.5")

    assert failures(benchmark, "default", seeds=3) <= 0.7 * failures(
        benchmark, "multifidelity_gp+pioneer_asha", seeds=3
    )
