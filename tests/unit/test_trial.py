"""The objective: one sign, penalties, limits, further objectives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.search.pareto import pareto_ranks

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
SMALL = Objective(
    metric="accuracy",
    mode=Mode.MAX,
    limits=(Limit(metric="latency_ms", at_most=20.0), Limit(metric="recall", at_least=0.5)),
)


def test_the_sign_is_flipped_once_and_back() -> None:
    assert ACCURACY.loss({"accuracy": 0.9}) == -0.9
    assert ACCURACY.value(-0.9) == 0.9
    assert ACCURACY.loss({"accuracy": math.nan}) == ACCURACY.loss({}) == math.inf


def test_a_penalty_makes_more_of_a_metric_worse_in_either_mode() -> None:
    for mode in Mode:
        objective = Objective(metric="m", mode=mode, penalties=(("seconds", 0.01),))
        quick, slow = ({"m": 0.5, "seconds": s} for s in (1.0, 10.0))
        assert objective.loss(quick) < objective.loss(slow)
        assert objective.loss({"m": 0.5}) == math.inf


def test_what_breaks_a_limit_is_worse_than_anything_that_keeps_them() -> None:
    poor = {"accuracy": 0.1, "latency_ms": 20.0, "recall": 0.5}
    beyond = {"accuracy": 0.99, "latency_ms": 22.0, "recall": 0.5}
    further = {"accuracy": 0.99, "latency_ms": 22.0, "recall": 0.4}
    losses = [SMALL.loss(metrics) for metrics in (poor, beyond, further)]
    assert losses == sorted(losses)
    assert losses[0] == -0.1
    assert losses[1] < losses[2] < math.inf
    assert math.isnan(SMALL.value(losses[1]))
    assert SMALL.loss({"accuracy": 0.9, "latency_ms": 1.0}) == math.inf, "recall is not known"


def test_further_objectives_have_losses_of_their_own() -> None:
    both = replace(ACCURACY, also=(("latency_ms", Mode.MIN), ("recall", Mode.MAX)))
    assert both.metrics == ("accuracy", "latency_ms", "recall")
    metrics = {"accuracy": 0.9, "latency_ms": 7.0, "recall": 0.5}
    assert (both.loss(metrics), both.others(metrics)) == (-0.9, (7.0, -0.5))
    assert both.others({"accuracy": 0.9, "latency_ms": math.nan}) == (math.inf, math.inf)
    assert ACCURACY.others(metrics) == ()


def test_what_breaks_a_limit_is_dominated_by_all_that_keep_it_and_by_what_breaks_it_less() -> None:
    objective = replace(SMALL, also=(("flops", Mode.MIN),))

    def losses(latency_ms: float, accuracy: float, flops: float) -> tuple[float, ...]:
        metrics = {"accuracy": accuracy, "latency_ms": latency_ms, "recall": 0.9, "flops": flops}
        assert objective.keeps_limits(metrics) == (latency_ms <= 20)
        return (objective.loss(metrics), *objective.others(metrics))

    kept, beyond, further = losses(20.0, 0.1, 1e12), losses(22.0, 0.9, 1.0), losses(23.0, 0.99, 0.5)
    assert pareto_ranks([kept, beyond, further]).tolist() == [0, 1, 2]


def test_a_metric_that_is_not_there_is_named_with_its_setting() -> None:
    both = replace(ACCURACY, also=(("latency_ms", Mode.MIN),))
    assert both.missing({"latency_ms": 1.0}) == "objective.metric is 'accuracy'"
    assert both.missing({"accuracy": 1.0}) == "objective.also names 'latency_ms'"
    assert both.missing({"accuracy": 1.0, "latency_ms": 1.0, "loss": 1.0}) is None


@pytest.mark.parametrize(
    ("limit", "value", "violation"),
    [
        (Limit(metric="m", at_most=10.0), 9.0, 0.0),
        (Limit(metric="m", at_most=10.0), 12.0, 0.2),
        (Limit(metric="m", at_least=10.0), 8.0, 0.2),
        (Limit(metric="m", at_least=0.0), -3.0, 3.0),
        (Limit(metric="m", at_least=1.0, at_most=2.0), 1.5, 0.0),
    ],
)
def test_a_violation_is_in_parts_of_the_bound(limit: Limit, value: float, violation: float) -> None:
    assert limit.violation({"m": value}) == pytest.approx(violation)
