"""A finite pool: proposals become the nearest configuration that is left."""

from __future__ import annotations

from typing import Any

import numpy as np

from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.benchmarks.replay.pool import Pool, PoolSampler

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1.0},
        "x": {"type": "uniform", "low": 0.0, "high": 100.0},
        "kind": {"type": "choice", "options": ["a", "b"]},
    }
)


def params(lr: float, x: float, kind: str = "a") -> dict[str, Any]:
    return {"lr": lr, "x": x, "kind": kind}


def test_nearness_is_that_of_the_space_not_of_the_numbers() -> None:
    pool = Pool(SPACE, [params(0.01, 50.0), params(1.0, 50.0), params(1e-4, 99.0)])
    # 1e-4 and 0.01 are two of four decades apart: as far as 50 of the 100 that x spans.
    assert pool.nearest(params(0.2, 50.0), set()) == 1
    assert pool.nearest(params(0.02, 50.0), set()) == 0
    assert pool.nearest(params(1e-4, 60.0), set()) == 2


def test_another_option_is_as_far_as_the_whole_range() -> None:
    pool = Pool(SPACE, [params(0.01, 0.0, "b"), params(0.01, 90.0, "a")])
    assert pool.nearest(params(0.01, 0.0, "a"), set()) == 1


def test_pool_draws_each_configuration_once() -> None:
    rng = np.random.default_rng(0)
    pool = Pool(SPACE, [SPACE.sample(rng) for _ in range(12)])
    sampler = PoolSampler(RandomSampler(SPACE, 0), pool)
    drawn = []
    for trial_id in range(14):
        proposal = sampler.ask(trial_id)
        sampler.start(trial_id, proposal)
        drawn.append(pool.number(proposal))
    assert sorted(drawn[:12]) == list(range(12))
    assert set(drawn[12:]) <= set(range(12))


def test_sampler_learns_the_configuration_that_ran() -> None:
    class Stubborn:
        """Proposes the same again and again."""

        def __init__(self) -> None:
            self.started: list[Params] = []

        def ask(self, trial_id: int) -> Params:
            return params(1e-4, 0.0)

        def start(self, trial_id: int, params: Params) -> None:
            self.started.append(params)

        def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
            """Takes no notice."""

    stubborn = Stubborn()
    near, far = params(1e-3, 1.0), params(1.0, 100.0)
    sampler = PoolSampler(stubborn, Pool(SPACE, [far, near]))
    for trial_id in range(2):
        sampler.start(trial_id, sampler.ask(trial_id))
    assert stubborn.started == [near, far]
