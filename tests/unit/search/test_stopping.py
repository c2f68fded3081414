"""Stopping rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.stopping import CostSpent, NoImprovement, RegretBound, StoppingRule, TargetReached


def watch(rule: StoppingRule, losses: list[float], resource: int = 9, seconds: float = 0.0) -> str | None:
    for loss in losses:
        rule.observe(resource=resource, loss=loss, seconds=seconds)
    return rule.reason()


def test_target_ends_the_search_at_any_resource() -> None:
    rule = TargetReached(0.1)
    assert watch(rule, [0.5, math.inf, 0.11], resource=1) is None
    assert watch(rule, [0.1], resource=1) == "target"


def test_target_may_count_only_from_a_resource_on() -> None:
    rule = TargetReached(0.1, least_resource=5)
    assert watch(rule, [0.05], resource=4) is None
    assert watch(rule, [0.05], resource=5) == "target"


def test_no_improvement_counts_fully_trained_trials() -> None:
    rule = NoImprovement(9, 3, min_improvement=0.01)
    assert watch(rule, [0.5, 0.4, 0.6, 0.395]) is None
    assert watch(rule, [0.9] * 10, resource=3) is None
    assert watch(rule, [math.inf]) is None
    assert watch(rule, [0.41]) == "no_improvement"


def test_cost_is_slot_time_times_price() -> None:
    rule = CostSpent(2.0, price_per_slot_hour=4.0)
    assert watch(rule, [0.1], seconds=1799) is None
    assert watch(rule, [math.inf], seconds=1) == "cost"
    assert rule.cost == pytest.approx(2.0)


def test_regret_bound_estimates_the_gain_of_continuing() -> None:
    # Losses with an exponential tail of scale 0.1: twice as many draws gain 0.1 ln 2 in the mean.
    rng = np.random.default_rng(0)
    rule = RegretBound(9, bound=0.01)
    assert watch(rule, rng.exponential(0.1, 19).tolist()) is None
    assert rule.expected_gain == math.inf
    watch(rule, rng.exponential(1.0, 2000).tolist())
    flat = RegretBound(9, bound=0.01)
    assert watch(flat, [0.5 + 0.0001 * i for i in range(30)]) == "regret_bound"


@pytest.mark.parametrize(
    "build",
    [
        lambda: TargetReached(math.nan),
        lambda: NoImprovement(9, 0),
        lambda: NoImprovement(9, 1, -1.0),
        lambda: CostSpent(0.0, 1.0),
        lambda: CostSpent(1.0, math.inf),
        lambda: RegretBound(9, 0.0),
        lambda: RegretBound(9, 1.0, 3),
    ],
)
def test_stopping_rule_with_invalid_settings_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        build()
