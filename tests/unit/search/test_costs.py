"""Times of configurations, and improvement per second."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.costs import CostModel, Costs
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import FailureKind, Params

UNIT = {"type": "uniform", "low": 0, "high": 1}
SPACE = Space.from_config(
    {
        "batch": {"type": "logint", "low": 16, "high": 512},
        "layers": {"type": "int", "low": 1, "high": 6},
        "kind": {"type": "choice", "options": ["plain", {"name": "wide", "factor": UNIT}]},
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    }
)
SQUARE = Space.from_config({"x": UNIT, "y": UNIT})


def seconds_of(params: Params) -> float:
    """From 0.1 to 12 s for an epoch."""
    width = 1.0 if params["kind"] == "plain" else 2.0
    return float(width * (1 + params["layers"]) * (16 / params["batch"]) ** 0.5)


def test_times_are_predicted_from_few_trials() -> None:
    axes, rng = Axes(SPACE), np.random.default_rng(0)
    trials = [SPACE.sample(rng) for _ in range(90)]
    rows = np.array([axes.row(params) for params in trials])
    logs = np.log([seconds_of(params) for params in trials])
    model = CostModel(axes, rows[:30], logs[:30])
    errors = np.abs(model.predict(rows[30:]) - logs[30:])
    assert np.median(errors) < math.log(1.15)
    assert np.median(errors) < 0.2 * np.median(np.abs(logs[30:] - logs[:30].mean()))


def test_times_of_promoted_trials_add_up_and_failures_do_not_count() -> None:
    costs = Costs()
    for trial_id in range(6):
        costs.note(trial_id, Outcome(units=1, seconds=4.0))
    costs.note(0, Outcome(units=3, seconds=4.0))
    costs.note(1, Outcome(units=1, seconds=999.0, failure=FailureKind.INFRASTRUCTURE))
    assert costs.log_times() == {0: math.log(2)} | dict.fromkeys(range(1, 6), math.log(4))


def test_few_known_times_predict_nothing() -> None:
    costs = Costs()
    costs.note(0, Outcome(units=1, seconds=4.0))
    assert costs.log_times() == {}


def test_improvement_per_second_prefers_the_cheaper_of_two_equally_good_places() -> None:
    def share_of_cheap(acquisition: str) -> float:
        sampler, rng = MultivariateTpeSampler(SQUARE, 0, acquisition=acquisition), np.random.default_rng(0)
        for trial_id in range(60):
            params = SQUARE.sample(rng)
            sampler.start(trial_id, params)
            sampler.note(trial_id, Outcome(units=2, seconds=2 * 10 ** params["x"]))
            loss = min(abs(params["x"] - 0.2), abs(params["x"] - 0.8)) + abs(params["y"] - 0.5)
            sampler.tell(trial_id, resource=2, loss=loss)
        return float(np.mean([sampler.ask(60 + i)["x"] < 0.5 for i in range(60)]))

    assert share_of_cheap("ei") < 0.7
    assert share_of_cheap("ei_per_second") > 0.8


def test_unknown_acquisition_function_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        MultivariateTpeSampler(SQUARE, 0, acquisition="ei_per_hour")
    assert (caught.value.key, caught.value.value) == ("acquisition", "ei_per_hour")
