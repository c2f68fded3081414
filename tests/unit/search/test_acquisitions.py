"""Acquisition functions of the Gaussian process, and the genetic algorithm, by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.registry import build_sampler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is an extra")
SPACE = Space.from_config(
    {
        "x": {"type": "uniform", "low": -5.0, "high": 5.0},
        "y": {"type": "loguniform", "low": 1e-3, "high": 1e3},
        "kind": {"type": "choice", "options": ["a", "b", "c"]},
    }
)


def loss(params: Any) -> float:
    return float((params["x"] - 2) ** 2 + np.log10(params["y"]) ** 2 + 3 * (params["kind"] != "b"))


def best_of(sampler: Sampler, trials: int) -> float:
    losses = []
    for trial_id in range(trials):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        losses.append(loss(params))
        sampler.tell(trial_id, resource=1, loss=losses[-1])
    return min(losses)


def mean_best(name: str, trials: int, **settings: Any) -> float:
    return float(
        np.mean([best_of(build_sampler(name, SPACE, seed, **settings), trials) for seed in range(3)])
    )


@needs_optuna
@pytest.mark.parametrize("acquisition", ["ucb", "pi", "thompson"])
def test_acquisition_finds_the_optimum_that_random_draws_miss(acquisition: str) -> None:
    found = mean_best("gp", 35, acquisition=acquisition, num_startup_trials=8)
    assert found < mean_best("random", 35) / 5


@needs_optuna
def test_acquisitions_propose_differently() -> None:
    proposed = set()
    for acquisition in ("ei", "ucb", "pi", "thompson"):
        sampler = build_sampler("gp", SPACE, 0, acquisition=acquisition, num_startup_trials=8)
        best_of(sampler, 12)
        proposed.add(repr(sampler.ask(12)))
    assert len(proposed) == 4


@needs_optuna
def test_unknown_acquisition_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        build_sampler("gp", SPACE, 0, acquisition="ucbb")
    assert caught.value.key == "sampler_settings.acquisition"
    assert "ucb" in caught.value.cure


def test_genetic_algorithm_finds_the_optimum_that_random_draws_miss() -> None:
    assert mean_best("genetic", 150, population_size=15) < mean_best("random", 150) / 2


def test_genetic_algorithm_takes_each_parameter_from_a_parent_without_mutations() -> None:
    sampler = build_sampler("genetic", SPACE, 0, population_size=4, mutation_probability=0.0)
    known = []
    for trial_id in range(4):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=loss(params))
        known.append(params)
    for trial_id in range(4, 20):
        child = sampler.ask(trial_id)
        for name in ("x", "y"):
            assert any(child[name] == pytest.approx(parent[name]) for parent in known)
