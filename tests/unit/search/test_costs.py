"""Times of configurations, and improvement per second."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.costs import CostModel, CostPredictor, Costs
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


def bytes_of(params: Params) -> int:
    """From 1.1 to 5 GB: libraries, and a product."""
    return int(1e9 + 1e8 * 40 ** (params["x"] / 2 + params["y"] / 2))


def seen(num_trials: int, limit: float = math.inf) -> tuple[Costs, dict[int, Params]]:
    """Costs of trials, of which those that need more than the limit are killed before they report."""
    costs, rng = Costs(), np.random.default_rng(1)
    trials = {trial_id: SQUARE.sample(rng) for trial_id in range(num_trials)}
    for trial_id, params in trials.items():
        if (need := bytes_of(params)) <= limit:
            outcome = Outcome(units=1, seconds=need / 1e9, memory_bytes=need)
        else:
            outcome = Outcome(units=0, seconds=1.0, failure=FailureKind.MEMORY)
        costs.note(trial_id, outcome)
    return costs, trials


def test_time_and_memory_are_predicted_by_one_mechanism() -> None:
    costs, trials = seen(30)
    axes, rng = Axes(SQUARE), np.random.default_rng(2)
    unseen = [SQUARE.sample(rng) for _ in range(50)]
    predictor = CostPredictor(axes, costs, trials)
    rows = np.array([axes.row(params) for params in unseen])
    needs = np.array([bytes_of(params) for params in unseen])
    for predicted, truth in ((predictor.memory_bytes(rows), needs), (predictor.seconds(rows), needs / 1e9)):
        assert predicted is not None
        assert np.median(np.abs(np.log(predicted / truth))) < math.log(1.05)


def test_few_measurements_of_memory_predict_nothing() -> None:
    costs, trials = seen(30, limit=1.15e9)
    memory = costs.memory()
    assert memory is None
    assert CostPredictor(Axes(SQUARE), costs, trials).memory_bytes(np.array([[0.5, 0.5]])) is None


def test_memory_of_trials_that_ran_out_is_expected_above_the_limit() -> None:
    costs, trials = seen(40, limit=1.8e9)
    memory, axes = costs.memory(), Axes(SQUARE)
    assert memory is not None
    assert 10 <= len(memory.unfit) <= 30
    predicted = CostPredictor(axes, costs, trials).memory_bytes(np.array([[0.9, 0.9], [0.1, 0.2]]))
    assert predicted is not None
    largest, smallest = bytes_of({"x": 0.9, "y": 0.9}), bytes_of({"x": 0.1, "y": 0.2})
    assert predicted[0] == pytest.approx(largest, rel=0.3)
    assert predicted[1] == pytest.approx(smallest, rel=0.05)
    rows = np.array([axes.row(trials[trial_id]) for trial_id in memory.logs])
    as_measured = CostModel(axes, rows, np.array(list(memory.logs.values())))
    at_limit = memory.base + math.exp(as_measured.predict(np.array([[0.9, 0.9]]))[0])
    assert at_limit < 0.7 * largest


def test_memory_of_a_trial_is_the_most_of_its_slots_and_unknown_once_halved() -> None:
    costs = Costs()
    for trial_id in range(8):
        costs.note(trial_id, Outcome(units=1, seconds=1.0, memory_bytes=100 + trial_id))
    costs.note(0, Outcome(units=1, seconds=1.0, memory_bytes=300))
    costs.note(1, Outcome(units=1, seconds=1.0, memory_bytes=150, num_halved=1))
    costs.note(1, Outcome(units=1, seconds=1.0, memory_bytes=90))
    costs.note(2, Outcome(units=1, seconds=1.0, memory_bytes=999, failure=FailureKind.INFRASTRUCTURE))
    costs.note(9, Outcome(units=0, seconds=1.0, failure=FailureKind.MEMORY))
    memory = costs.memory()
    assert memory is not None
    assert memory.unfit == {1, 9}
    bytes_ = {trial_id: round(memory.base + math.exp(log)) for trial_id, log in memory.logs.items()}
    assert bytes_ == {0: 300, 1: 300, 2: 102, 3: 103, 4: 104, 5: 105, 6: 106, 7: 107, 9: 300}


def test_memory_of_gpus_counts_before_that_of_ranks_and_limits_of_devices_are_known() -> None:
    costs = Costs()
    for trial_id in range(6):
        used: dict[str, int] = {"memory_bytes": 50, "memory_limit_bytes": 400}
        costs.note(trial_id, Outcome(units=1, seconds=1.0, is_gpu_memory=True, **used))
    costs.note(6, Outcome(units=1, seconds=1.0, memory_bytes=7000))  # too short to sample its GPU
    memory = costs.memory()
    assert memory is not None
    assert list(memory.logs) == list(range(6))
    assert memory.base + math.exp(memory.log_limit) == pytest.approx(400)


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
