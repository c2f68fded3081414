"""Constraints, enqueued configurations and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.search.registry import SAMPLERS, build_sampler, build_space
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.space import Space

INT = {"type": "int", "low": 1, "high": 4}
CONFIG = {
    "hidden_1": INT,
    "hidden_2": INT,
    "optimizer": {
        "type": "choice",
        "options": ["adam", {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 1}}],
    },
}


def space(*constraints: str) -> Space:
    return Space.from_config(CONFIG, constraints=constraints)


@pytest.mark.parametrize(
    ("text", "params", "holds"),
    [
        ("hidden_2 <= hidden_1", {"hidden_1": 2, "hidden_2": 2}, True),
        ("hidden_2 <= hidden_1", {"hidden_1": 2, "hidden_2": 3}, False),
        ("1 <= hidden_2 < hidden_1 * 2 - 1", {"hidden_1": 2, "hidden_2": 3}, False),
        ("hidden_1 % 2 == 0 or hidden_2 > 1", {"hidden_1": 3, "hidden_2": 2}, True),
        ("not hidden_1 == 3 and hidden_2 != 1", {"hidden_1": 3, "hidden_2": 2}, False),
        ("optimizer.momentum < 0.5", {"optimizer": {"name": "sgd", "momentum": 0.9}}, False),
        ("optimizer.momentum < 0.5", {"optimizer": "adam"}, True),  # not active: it holds
        ("optimizer == 'adam'", {"optimizer": "adam"}, True),
        ("hidden_1 / (hidden_2 - 1) > 0", {"hidden_1": 3, "hidden_2": 1}, False),  # cannot be worked out
        ("-hidden_1 // 2 < 0", {"hidden_1": 3}, True),
    ],
)
def test_constraint_is_evaluated_like_python(text: str, params: dict[str, Any], holds: bool) -> None:
    (constraint,) = space(text).constraints
    assert constraint.holds(params) is holds


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("hidden_3 <= hidden_1", "Did you mean 'hidden_"),
        ("hidden_2 <=", "expression"),
        ("hidden_2 + hidden_1", "comparison"),
        ("__import__('os').system('true') == 0", "__import__('os')"),
        ("(lambda: 1)() == 1", "lambda"),
        ("hidden_1 ** 999999999 > 1", "**"),
        ("[hidden_1] == [1]", "'[hidden_1]'"),
        ("hidden_1.__class__ == 1", "'hidden_1.__class__'"),
        ("", "text"),
        ("(" * 400, "expression"),
    ],
)
def test_constraint_refuses_all_other_syntax_and_executes_nothing(text: str, part: str) -> None:
    with pytest.raises(SpaceError) as error:
        space("hidden_1 > 1", text)
    assert (error.value.key, error.value.value) == ("constraints[1]", text)
    assert part in str(error.value)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in ("gp", "cmaes", "nsga2", "optuna_tpe")])
def test_samplers_propose_only_what_constraints_allow(name: str) -> None:
    constrained = space("hidden_2 <= hidden_1", "optimizer.momentum > 0.5")
    sampler = build_sampler(name, constrained, 1)
    for trial_id in range(min(50, sampler.size or 50)):
        params = sampler.ask(trial_id)
        assert params == sampler.ask(trial_id)
        assert constrained.allows(params)
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=float(params["hidden_1"] - params["hidden_2"]))


def test_grid_leaves_out_points_that_violate_a_constraint() -> None:
    grid = GridSampler(space("hidden_2 <= hidden_1"), resolution=4)
    assert grid.size == 10 * (1 + 4)
    points = []
    for trial_id in range(grid.size):
        points.append(grid.ask(trial_id))
        grid.start(trial_id, points[-1])
    assert all(point["hidden_2"] <= point["hidden_1"] for point in points)
    with pytest.raises(SpaceError) as error:
        grid.ask(grid.size)
    assert (error.value.key, error.value.value) == ("resolution", 4)


def test_constraints_that_exclude_everything_are_named() -> None:
    with pytest.raises(SpaceError) as error:
        build_sampler("random", space("hidden_1 > 4"), 0).ask(0)
    assert (error.value.key, error.value.value) == ("constraints", ["hidden_1 > 4"])


def test_constraints_round_trip_through_json() -> None:
    once = space("hidden_2 <= hidden_1")
    assert Space.from_json(once.to_json()) == once


def test_enqueued_configurations_run_first_and_are_learned_from() -> None:
    enqueue = [
        {"hidden_1": 4, "hidden_2": 1, "optimizer": "adam"},
        {"hidden_1": 1, "hidden_2": 1, "optimizer": "adam"},
    ]
    sampler = build_sampler("tpe", space(), 0, enqueue=enqueue)
    plain = build_sampler("tpe", space(), 0)
    assert [sampler.ask(0), sampler.ask(1)] == enqueue
    for trial_id, params in enumerate(enqueue):
        sampler.start(trial_id, params)
    assert sampler.ask(2) == plain.ask(2)


@pytest.mark.parametrize(
    ("enqueue", "key"),
    [
        ([{"hidden_1": 9, "hidden_2": 1, "optimizer": "adam"}], "enqueue[0].hidden_1"),
        ([{"hidden_1": 1, "hidden_2": 2, "optimizer": "adam"}], "enqueue[0]"),
        ({"hidden_1": 1}, "enqueue"),
    ],
)
def test_enqueued_configuration_that_is_invalid_is_named(enqueue: Any, key: str) -> None:
    with pytest.raises(SpaceError) as error:
        build_sampler("random", space("hidden_2 <= hidden_1"), 0, enqueue=enqueue)
    assert error.value.key == key


def test_defaults_are_checked_and_round_trip_through_json() -> None:
    record = {"a": {**INT, "default": 2}, "c": {**CONFIG["optimizer"], "default": "sgd"}}  # type: ignore[dict-item]
    once = build_space(record)
    assert [d.parameter.default for d in once.dimensions()] == [2, 1, None]
    assert Space.from_json(once.to_json()) == once
    for key, record, value in (
        ("a", {**INT, "default": 9}, 9),
        ("c", {**CONFIG["optimizer"], "default": "rmsprop"}, "rmsprop"),  # type: ignore[dict-item]
    ):
        with pytest.raises(SpaceError) as error:
            build_space({key: record})
        assert (error.value.key, error.value.value) == (f"space.{key}.default", value)
