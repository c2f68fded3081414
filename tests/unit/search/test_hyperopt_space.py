"""Conversion of hyperopt spaces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hyperopt import hp
from hyperopt.pyll import scope
from hyperopt.pyll.stochastic import sample

from spark_hpo.errors import SpaceError
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.hyperopt_space import from_hyperopt, is_hyperopt
from spark_hpo.search.space.parameter import Choice, Constant, Normal, Uniform

PARAMETERS: list[tuple[Any, Any]] = [
    (hp.uniform("x", -1, 2), Uniform(low=-1, high=2)),
    (hp.quniform("x", 0, 2, 0.5), Uniform(low=0, high=2, q=0.5)),
    (hp.loguniform("x", math.log(1e-4), math.log(0.1)), Uniform(low=1e-4, high=0.1, log=True)),
    (hp.qloguniform("x", 0, math.log(64), 2), Uniform(low=1, high=64, log=True, q=2)),
    (hp.normal("x", 1, 2), Normal(mu=1, sigma=2)),
    (hp.qnormal("x", 1, 2, 0.5), Normal(mu=1, sigma=2, q=0.5)),
    (hp.lognormal("x", 1, 2), Normal(mu=1, sigma=2, log=True)),
    (hp.qlognormal("x", 1, 2, 1), Normal(mu=1, sigma=2, q=1, log=True)),
    (hp.randint("x", 5), Uniform(low=0, high=4, q=1, integer=True)),
    (hp.randint("x", 2, 5), Uniform(low=2, high=4, q=1, integer=True)),
    (hp.randint("x", 1), Constant(0)),
    (hp.uniformint("x", 1, 8), Uniform(low=1, high=8, q=1, integer=True)),
    (scope.int(hp.quniform("x", 16, 128, 16)), Uniform(low=16, high=128, q=16, integer=True)),
    (hp.choice("x", ["a", None]), Choice(options=(Constant("a"), Constant(None)))),
    (
        hp.pchoice("x", [(0.2, "a"), (0.8, hp.uniform("u", 0, 1))]),
        Choice(options=(Constant("a"), Uniform(low=0, high=1)), weights=(0.2, 0.8)),
    ),
]


@pytest.mark.parametrize(("expression", "parameter"), PARAMETERS)
def test_from_hyperopt_converts_each_parameter(expression: Any, parameter: Any) -> None:
    assert from_hyperopt({"p": expression}).root.entries == (("p", parameter),)


SPACES: dict[str, Any] = {
    "one number": hp.uniform("x", -10, 10),
    "a choice at the top": hp.choice(
        "classifier",
        [
            {
                "type": "svm",
                "C": hp.lognormal("C", 0, 1),
                "kernel": hp.choice("k", ["rbf", {"d": hp.randint("d", 4)}]),
            },
            {"type": "tree", "leaves": scope.int(hp.qloguniform("leaves", 0, 3, 1))},
        ],
    ),
    "a tuple": (hp.uniform("a", 0, 1), [hp.uniformint("b", 1, 5), "text"], 3),
    "a dict": {
        "lr": hp.loguniform("lr", -5, 0),
        "sizes": [8, hp.choice("n", [1, 2])],
        "fixed": {"k": (1, 2)},
    },
    "a constant of numpy": {"x": hp.uniform("x", 0, 1), "c": np.float64(0.5)},
}


def shape(value: Any) -> Any:
    """The value without its numbers."""
    if isinstance(value, dict):
        return {name: shape(child) for name, child in value.items()}
    if isinstance(value, tuple | list):
        return type(value), [shape(child) for child in value]
    return int if isinstance(value, int | np.integer) else float if isinstance(value, float) else value


@pytest.mark.parametrize("expression", SPACES.values(), ids=SPACES.keys())
def test_argument_is_what_space_eval_returns(expression: Any) -> None:
    space = from_hyperopt(expression)
    ours = {repr(shape(space.argument(space.sample(np.random.default_rng(i))))) for i in range(60)}
    theirs = {repr(shape(sample(expression, np.random.default_rng(i)))) for i in range(60)}
    assert ours == theirs


def test_hyperopt_space_without_a_dict_is_named_by_its_label() -> None:
    space = from_hyperopt(hp.uniform("x", 0, 1))
    params = space.sample(np.random.default_rng(0))
    assert list(params) == ["x"]
    assert space.argument(params) == params["x"]


@pytest.mark.parametrize("expression", SPACES.values(), ids=SPACES.keys())
def test_hyperopt_space_round_trips_through_json(expression: Any) -> None:
    space = Space.from_json(from_hyperopt(expression).to_json())
    sampler = TpeSampler(space, 0, num_startup_trials=5)
    for trial_id in range(20):
        params = space.validate(sampler.ask(trial_id))
        space.argument(params)
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=float(trial_id % 5))
    assert sampler.level == 1


def test_hyperopt_parameter_may_occur_in_two_options() -> None:
    x = hp.uniform("x", 0, 1)
    space = from_hyperopt(hp.choice("c", [{"a": x}, {"b": x}]))
    assert len(space.dimensions()) == 3


X = hp.uniform("x", 0, 1)
# The expression, the key of the error, and a part of its message.
REFUSED: list[tuple[Any, str, str]] = [
    ({"a": X, "b": X}, "space.b", "'x'"),
    ({"a": X, "b": hp.uniform("x", 0, 1)}, "space.b", "'x'"),
    ({"a": X * 2}, "space.a", "'mul'"),
    ({"a": scope.int(X)}, "space.a", "hp.uniformint"),
    ({"a": hp.uniform("y", 0, hp.uniform("z", 0, 1))}, "space.a", "'y'"),
    ({"a": hp.loguniform("l", 1, 1000)}, "space.a.high", "math.log"),
    ({"a": hp.uniform("u", 0, 0)}, "space.a.low", "'u'"),
    ({"a": hp.choice("c", [1, {"u": hp.uniform("u", 0, 0)}])}, "space.a[1].u.low", "'u'"),
    ({1: X}, "space", "quotes"),
    ({"a": X, "b": object()}, "space.b", "JSON"),
    (scope.switch(hp.randint("t", 2), 1, 2), "space", "hp.choice"),
]


@pytest.mark.parametrize(("expression", "key", "part"), REFUSED, ids=[key for _, key, _ in REFUSED])
def test_from_hyperopt_names_what_a_space_does_not_support(expression: Any, key: str, part: str) -> None:
    with pytest.raises(SpaceError) as error:
        from_hyperopt(expression)
    assert error.value.key == key
    assert part in str(error.value)


def test_is_hyperopt_finds_expressions_at_any_depth() -> None:
    assert is_hyperopt(X)
    assert is_hyperopt({"a": [1, (X,)]})
    assert not is_hyperopt({"a": {"type": "uniform", "low": 0, "high": 1}})
