"""The benchmark of population based training gives every method the same epochs."""

from __future__ import annotations

import pytest

from tests.benchmarks import bench_population


@pytest.mark.parametrize("method", bench_population.METHODS)
def test_every_method_trains_the_same_number_of_epochs(method: str) -> None:
    backend = bench_population.search(method, 4, seed=0)
    assert backend.epochs == 4 * bench_population.EPOCHS
    assert any(one.epoch == bench_population.EPOCHS for one in backend.measured)
