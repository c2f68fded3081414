"""Advice at the end of a study: ranges that are too narrow, and whether more trials would help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.report.advice import edges_of
from spark_hpo.report.answer import Answer, answer_of
from spark_hpo.trial import TrialState
from tests.support.written_studies import StudyWriter

SPACE = {
    "rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    "layers": {"type": "int", "low": 1, "high": 4},
    "dropout": {"type": "uniform", "low": 0.0, "high": 0.5},
}


def study(
    loss: Callable[[dict[str, Any]], float], *, trials: int = 40, reason: str = "trials", seed: int = 3
) -> Answer:
    """The answer of a random search, whose trials are trained to the end."""
    rng = np.random.default_rng(seed)
    pen = StudyWriter(Objective(metric="loss", mode=Mode.MIN), space=SPACE)
    for number in range(trials):
        params = {
            "rate": float(10 ** rng.uniform(-4, -2)),
            "layers": int(rng.integers(1, 5)),
            "dropout": float(rng.uniform(0, 0.5)),
        }
        pen.start(number, 0, 9, params=params).end(number, 9, loss(params))
        pen.settle(TrialState.COMPLETED, number)
    return answer_of(pen.close(reason).record())


def test_answer_names_the_range_that_the_best_trials_touch() -> None:
    answer = study(lambda p: -np.log10(p["rate"]), trials=100)
    [warning] = [text for text in answer.warnings if "space." in text]
    assert "rate" in warning
    assert "space.rate.high to 0.03" in warning


def test_answer_names_the_edge_of_a_few_integers() -> None:
    answer = study(lambda p: 1.0 / p["layers"] + 0.001 * p["dropout"])
    assert any("space.layers.high to 6" in text for text in answer.warnings)


def test_answer_leaves_natural_ends_and_inner_optima_alone() -> None:
    assert study(lambda p: p["dropout"]).warnings == ()
    assert study(lambda p: abs(np.log10(p["rate"]) + 3)).warnings == ()
    assert study(lambda p: -np.log10(p["rate"]), trials=12).warnings == ()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"rate": 0.0099, "layers": 2, "dropout": 0.0}, {"rate": "at the upper end of its range, 0.01"}),
        ({"rate": 0.000101, "layers": 2, "dropout": 0.2}, {"rate": "at the lower end of its range, 0.0001"}),
        ({"rate": 0.001, "layers": 4, "dropout": 0.2}, {"layers": "at the upper end of its range, 4"}),
        ({"rate": 0.001, "layers": 2, "dropout": 0.2}, {}),
    ],
)
def test_best_values_at_the_end_of_their_range_are_marked(
    params: dict[str, Any], expected: dict[str, str]
) -> None:
    pen = StudyWriter(Objective(metric="loss", mode=Mode.MIN), space=SPACE).start(0, 0, 9, params=params)
    record = pen.end(0, 9, 0.5).record()
    assert edges_of(record, record.ranking[0]) == expected


@pytest.mark.parametrize(("best_at", "verdict"), [(39, "would probably help"), (3, "would help little")])
def test_answer_says_whether_more_trials_would_help(best_at: int, verdict: str) -> None:
    numbers = iter(range(40))

    def loss(params: dict[str, Any]) -> float:
        number = next(numbers)
        # All good trials are equal, so a longer search would find nothing unless it has just done so.
        return 0.5 if number == best_at and best_at > 20 else 1.0 if number % 2 else 2.0

    answer = study(loss)
    assert answer.outlook is not None
    assert verdict in answer.outlook


def test_answer_has_no_outlook_unless_a_budget_ended_the_search() -> None:
    assert study(lambda p: p["dropout"], reason="target").outlook is None
    assert study(lambda p: p["dropout"], trials=5).outlook is None
