"""Transfer from earlier studies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.registry import build_sampler
from spark_hpo.search.samplers.transfer import EarlierTrial, warm_start
from spark_hpo.search.space import Space

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
        "layers": {"type": "int", "low": 1, "high": 3},
        "act": {"type": "choice", "options": ["relu", "gelu"]},
    }
)


def trial(lr: float, loss: float, resource: int = 9, **params: object) -> EarlierTrial:
    return EarlierTrial(params={"lr": lr, "layers": 2, "act": "gelu", **params}, resource=resource, loss=loss)


def test_transfer_takes_the_best_of_each_study_in_turn() -> None:
    older = [trial((10 + i) / 1000, loss=i) for i in range(20)]
    newer = [trial((50 + i) / 1000, loss=100 + i) for i in range(20)]
    first = warm_start(SPACE, [older, newer], num_first=3).best
    assert [params["lr"] for params in first] == [0.05, 0.01, 0.051]


def test_transfer_matches_parameters_by_name_and_range() -> None:
    earlier = [
        trial(0.01, 0.0, gone="away"),  # a parameter that is no more
        trial(5.0, 0.1),  # out of the new range: only the others count
        EarlierTrial(params={"lr": 0.02}, resource=9, loss=0.2),  # parameters that are new
        EarlierTrial(params={"other": 1}, resource=9, loss=0.3),  # nothing in common
    ]
    knowledge = warm_start(SPACE, [earlier])
    rows = np.concatenate([knowledge.good, knowledge.rest])
    assert len(rows) == 3
    assert np.isnan(rows).tolist() == [[False, False, False], [True, False, False], [False, True, True]]
    assert knowledge.best == ()


def test_transfer_ranks_failed_and_stopped_trials_last() -> None:
    earlier = [trial(0.01, 5.0 + i) for i in range(7)]
    stopped = [trial(0.05, 0.0, resource=1) for _ in range(3)]
    failed = [trial(0.09, math.inf)]
    knowledge = warm_start(SPACE, [[*failed, *stopped, *earlier]])
    assert all(params["lr"] == 0.01 for params in knowledge.best)
    places = {round(float(row[0]), 3) for row in knowledge.good}
    assert places == {0.5}


def test_transfer_enqueues_the_best_for_every_sampler() -> None:
    knowledge = warm_start(SPACE, [[trial((10 + i) / 1000, loss=i) for i in range(20)]])
    for name in ("random", "tpe", "de"):
        sampler = build_sampler(name, SPACE, 0, knowledge=knowledge)
        assert sampler.ask(0)["lr"] == 0.01
    given = {"lr": 0.09, "layers": 1, "act": "relu"}
    assert build_sampler("tpe", SPACE, 0, knowledge=knowledge, enqueue=[given]).ask(0) == given


def test_transfer_of_studies_without_results_is_empty() -> None:
    knowledge = warm_start(SPACE, [[], [trial(0.01, math.inf)]])
    assert knowledge.best == ()
    assert len(knowledge.rest) <= 1
    with pytest.raises(ConfigError) as error:
        warm_start(SPACE, [], discount=0)
    assert (error.value.key, error.value.value) == ("transfer.discount", 0)
