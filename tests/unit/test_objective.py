"""The objective: signs, penalties, limits and further objectives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from spark_hpo.objective import NO_SCORE, Limit, Mode, Objective, Score

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
PRICE_ERROR = Objective(metric="squared_error", mode=Mode.MIN)
SMALL = replace(
    ACCURACY, limits=(Limit(metric="latency_ms", at_most=20.0), Limit(metric="recall", at_least=0.5))
)


def test_loss_flips_the_sign_of_a_maximised_metric_and_value_flips_it_back() -> None:
    assert ACCURACY.loss({"accuracy": 0.9}) == -0.9
    assert ACCURACY.value(-0.9) == 0.9


@pytest.mark.parametrize("loss", [2.5e9, 1e30, -2.5e9, 0.0])
def test_value_returns_the_metric_for_every_finite_loss(loss: float) -> None:
    assert PRICE_ERROR.value(loss) == loss
    assert ACCURACY.value(loss) == -loss


def test_value_is_nan_for_a_loss_that_is_not_finite() -> None:
    assert all(math.isnan(ACCURACY.value(loss)) for loss in (math.inf, -math.inf, math.nan))


def test_score_of_a_missing_or_non_finite_metric_is_no_score() -> None:
    assert ACCURACY.score({"accuracy": math.nan}) == ACCURACY.score({}) == NO_SCORE
    assert SMALL.score({"accuracy": 0.9, "latency_ms": 1.0}) == NO_SCORE, "recall is missing"


def test_score_orders_by_feasibility_then_violation_then_loss() -> None:
    ordered = [
        PRICE_ERROR.score({"squared_error": 0.5}),
        PRICE_ERROR.score({"squared_error": 2.5e9}),
        Score.of(0.7, violation=0.1),
        Score.of(0.8, violation=0.1),
        Score.of(0.1, violation=0.2),
        Score.of(math.inf),
    ]
    assert ordered == sorted(reversed(ordered))
    assert [score.is_finite for score in ordered] == [True] * 5 + [False]


def test_score_of_an_infeasible_result_keeps_its_loss() -> None:
    metrics = {"accuracy": 0.99, "latency_ms": 22.0, "recall": 0.4}
    score = SMALL.score(metrics)
    assert score.loss == -0.99
    assert score.violation == pytest.approx(0.1 + 0.2)
    assert not SMALL.is_feasible(metrics)
    assert SMALL.is_feasible({"accuracy": 0.1, "latency_ms": 20.0, "recall": 0.5})


def test_penalty_makes_more_of_a_metric_worse_in_either_mode() -> None:
    for mode in Mode:
        objective = Objective(metric="m", mode=mode, penalties=(("seconds", 0.01),))
        quick, slow = ({"m": 0.5, "seconds": s} for s in (1.0, 10.0))
        assert objective.loss(quick) < objective.loss(slow)
        assert objective.loss({"m": 0.5}) == math.inf


def test_others_are_the_losses_of_the_further_objectives() -> None:
    both = replace(ACCURACY, extra_objectives=(("latency_ms", Mode.MIN), ("recall", Mode.MAX)))
    assert both.metrics == ("accuracy", "latency_ms", "recall")
    metrics = {"accuracy": 0.9, "latency_ms": 7.0, "recall": 0.5}
    assert (both.loss(metrics), both.extra_losses(metrics)) == (-0.9, (7.0, -0.5))
    assert both.extra_losses({"accuracy": 0.9, "latency_ms": math.nan}) == (math.inf, math.inf)
    assert ACCURACY.extra_losses(metrics) == ()


def test_missing_names_the_setting_whose_metric_is_not_reported() -> None:
    both = replace(ACCURACY, extra_objectives=(("latency_ms", Mode.MIN),))
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
def test_violation_is_a_share_of_the_bound(limit: Limit, value: float, violation: float) -> None:
    assert limit.violation({"m": value}) == pytest.approx(violation)
