import io
import math
from dataclasses import replace

import pandas as pd
from rich.console import Console

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.report.leaderboard import COLUMNS, flat_params, leaderboard, render
from spark_hpo.trial import Failure, FailureKind, Trial, TrialState

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)


def trial(
    trial_id: int, loss: float = math.inf, state: TrialState = TrialState.PAUSED, **params: object
) -> Trial:
    failed = state is TrialState.FAILED
    return Trial(
        trial_id=trial_id,
        params=params,
        state=state,
        bracket=0,
        rung=0,
        resource=1,
        loss=loss,
        failure=Failure(kind=FailureKind.TRIAL, message="nan") if failed else None,
    )


def measured(trial_id: int, state: TrialState = TrialState.COMPLETED, **metrics: float) -> Trial:
    return replace(trial(trial_id, -metrics["accuracy"], state, size=8), metrics=metrics)


def test_leaderboard_has_columns_for_extra_objectives_and_the_front() -> None:
    both = replace(
        ACCURACY, extra_objectives=(("latency_ms", Mode.MIN), ("seconds", Mode.MIN), ("size", Mode.MAX))
    )
    trials = [
        measured(0, accuracy=0.9, latency_ms=7.0, seconds=1.0, size=3.0),
        measured(1, accuracy=0.8, latency_ms=5.0, seconds=2.0, size=4.0),
        replace(measured(2, accuracy=0.7, latency_ms=4.0), loss=math.inf, state=TrialState.FAILED),
    ]
    table = leaderboard(trials, both, {1})
    columns = ["trial", "state", "rung", "resource", "value", "latency_ms", "metrics.seconds", "size"]
    assert list(table.columns) == [*columns, "pareto_front", "seconds", "params.size"]
    assert list(table["latency_ms"].fillna(-1)) == [7.0, 5.0, -1]
    assert list(table["metrics.seconds"].dropna()) == [1.0, 2.0]
    assert list(table["size"].dropna()) == [3.0, 4.0]
    assert list(table["params.size"]) == [8, 8, 8]
    assert list(table["pareto_front"]) == [False, True, False]
    assert '"pareto_front"' in table.to_json(orient="split", index=False)
    assert tuple(leaderboard([], both).columns) == (*columns, "pareto_front", "seconds")


def test_render_shows_extra_objectives_and_marks_the_front() -> None:
    both = replace(ACCURACY, extra_objectives=(("latency_ms", Mode.MIN),))
    trials = [measured(0, accuracy=0.9, latency_ms=7.25), measured(1, accuracy=0.8, latency_ms=5.5)]
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(trials, both, {1}))
    lines = console.export_text().splitlines()
    assert any("latency_ms" in line and "front" in line for line in lines)
    assert [("7.25" in line, "5.5" in line) for line in lines if "*" in line] == [(False, True)]


def test_leaderboard_with_limits_ranks_feasible_trials_first() -> None:
    limited = replace(ACCURACY, limits=(Limit(metric="latency_ms", at_most=6.0),))
    trials = [
        replace(measured(0, accuracy=0.9, latency_ms=7.0), violation=1 / 6),
        measured(1, accuracy=0.8, latency_ms=5.0),
        trial(2, state=TrialState.FAILED),
    ]
    table = leaderboard(trials, limited)
    assert list(table["trial"]) == [1, 0, 2]
    assert list(table["feasible"]) == [True, False, False]
    assert list(table["value"].fillna(-1)) == [0.8, 0.9, -1]
    assert "feasible" not in leaderboard(trials, ACCURACY).columns


def test_leaderboard_keeps_values_of_any_size() -> None:
    prices = Objective(metric="squared_error", mode=Mode.MIN)
    assert list(leaderboard([trial(0, 2.5e9), trial(1, 1.0)], prices)["value"]) == [1.0, 2.5e9]


def test_leaderboard_without_trials_is_empty() -> None:
    table = leaderboard([], ACCURACY)
    assert table.empty
    assert tuple(table.columns) == COLUMNS


def test_leaderboard_has_the_best_first_and_failures_last() -> None:
    trials = [
        trial(0, state=TrialState.FAILED),
        trial(1, state=TrialState.RUNNING),
        trial(2, -0.5),
        trial(3, -0.9),
        trial(4, -0.9),
        trial(5, math.nan),
    ]
    table = leaderboard(trials, ACCURACY)
    assert list(table["trial"]) == [3, 4, 2, 1, 5, 0]
    assert list(table["value"].dropna()) == [0.9, 0.9, 0.5]


def test_leaderboard_keeps_the_sign_of_a_minimised_metric() -> None:
    table = leaderboard([trial(0, 0.3), trial(1, 0.2)], Objective(metric="loss", mode=Mode.MIN))
    assert list(table["value"]) == [0.2, 0.3]


def test_leaderboard_has_missing_values_for_absent_parameters() -> None:
    table = leaderboard([trial(0, -1.0, lr=0.1, opt={"name": "sgd"}), trial(1, -0.5, lr=0.2)], ACCURACY)
    assert list(table["opt.name"].fillna("-")) == ["sgd", "-"]
    assert list(table["lr"]) == [0.1, 0.2]


def test_leaderboard_renames_parameters_named_like_a_column() -> None:
    table = leaderboard([trial(7, -1.0, trial="x", rung=3)], ACCURACY)
    assert table.loc[0, "trial"] == 7
    assert table.loc[0, "params.trial"] == "x"
    assert table.loc[0, "params.rung"] == 3


def test_nested_parameters_are_flattened_with_dots() -> None:
    assert flat_params({"a": {"b": {"c": None}}, "d": [1, 2], "e": {}}) == {
        "a.b.c": None,
        "d": "[1, 2]",
        "e": "{}",
    }


def test_leaderboard_survives_json_and_csv() -> None:
    table = leaderboard([trial(0, -1.0, a=None, b="x"), trial(1, state=TrialState.FAILED, c=[1])], ACCURACY)
    assert isinstance(table, pd.DataFrame)
    assert "null" in table.to_json(orient="split", index=False)
    assert table.to_csv(index=False).startswith("trial,state")


def test_render_shows_the_best_and_counts_the_rest() -> None:
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render([trial(i, -0.01 * i, lr=0.1) for i in range(15)], ACCURACY, top=3))
    text = console.export_text()
    assert "accuracy" in text
    assert "0.14" in text
    assert "0.11" not in text
    assert "and 12 more" in text


def test_render_gives_each_trial_one_line_with_four_significant_digits() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    params = {f"parameter_{i}": math.pi for i in range(9)}
    console.print(render([trial(i, -0.123456, **params) for i in range(3)], ACCURACY))
    lines = [line.rstrip() for line in console.export_text().splitlines() if "paused" in line]
    assert len(lines) == 3
    assert all(" 0.1235 " in line and "parameter_0=3.142 " in line and line.endswith("…") for line in lines)
