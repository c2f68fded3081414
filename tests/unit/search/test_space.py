"""The space: what it reads, refuses, draws and enumerates."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.errors import SpaceError
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Normal, Uniform

CONFIG: dict[str, Any] = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    "optimizer": {
        "type": "choice",
        "options": ["adam", {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 0.99}}],
    },
    "model": {"width": {"type": "logint", "low": 8, "high": 64}, "depth": 2},
    "seed": 7,
}
SPACE = Space.from_config(CONFIG)


def one(**parameter: Any) -> Space:
    return Space.from_config({"p": parameter})


def draws(space: Space, num: int = 2000) -> list[Any]:
    rng = np.random.default_rng(0)
    return [space.sample(rng)["p"] for _ in range(num)]


class TestReading:
    def test_a_configuration_has_the_shape_of_the_space(self) -> None:
        for trial_id in range(20):
            params = SPACE.sample(np.random.default_rng((0, trial_id)))
            assert list(params) == list(CONFIG)
            assert params["seed"] == 7
            assert params["model"]["depth"] == 2
            assert params["optimizer"] == "adam" or params["optimizer"]["name"] == "sgd"

    def test_dimensions_say_where_they_stand_and_when_they_are_active(self) -> None:
        dimensions = {d.key: d for d in SPACE.dimensions()}
        assert list(dimensions) == [
            ("learning_rate",),
            ("optimizer",),
            ("optimizer", 1, "momentum"),
            ("model", "width"),
        ]
        momentum = dimensions["optimizer", 1, "momentum"]
        assert momentum.path == ("optimizer", "momentum")
        assert momentum.conditions == ((("optimizer",), 1),)
        assert momentum.is_active({("optimizer",): 1})
        assert not momentum.is_active({("optimizer",): 0})

    def test_yaml_reads_1e_minus_4_as_text_and_the_space_reads_it_as_a_number(self) -> None:
        config = yaml.safe_load(
            """
            p: {type: loguniform, low: 1e-4, high: 1E-1}
            decay: {type: choice, options: [0, 1e-5]}
            eps: 1e-8
            """
        )
        assert config["p"]["low"] == "1e-4"
        space = Space.from_config(config)
        assert space.root.entries[0][1] == Uniform(low=1e-4, high=1e-1, log=True)
        params = space.sample(np.random.default_rng(0))
        assert params["eps"] == 1e-8
        assert params["decay"] in (0, 1e-5)

    def test_numbers_of_numpy_become_plain(self) -> None:
        space = Space.from_config(
            {"p": {"type": "int", "low": np.int64(1), "high": np.float64(3)}, "c": np.float32(0.5)}
        )
        params = space.sample(np.random.default_rng(0))
        assert (type(params["p"]), type(params["c"])) == (int, float)

    def test_json_brings_it_back_whatever_sorts_the_keys(self) -> None:
        again = Space.from_json(json.loads(json.dumps(SPACE.to_json(), sort_keys=True)))
        assert again == SPACE
        assert again.sample(np.random.default_rng(3)) == SPACE.sample(np.random.default_rng(3))

    def test_a_proposal_can_be_changed_without_changing_the_space(self) -> None:
        space = Space.from_config({"layers": [1, {"a": 2}]})
        space.sample(np.random.default_rng(0))["layers"].append(3)
        assert space.sample(np.random.default_rng(0)) == {"layers": [1, {"a": 2}]}

    def test_importing_it_imports_no_hyperopt(self) -> None:
        code = "import sys, spark_hpo.search.space; sys.exit('hyperopt' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


U = {"type": "uniform", "low": 0, "high": 1}
ERRORS: list[tuple[Any, str]] = [
    ({}, "search.space is {}; it must be a mapping"),
    (["x"], "search.space is ['x']; it must be a mapping"),
    ({"p": {**U, "type": "unifrom"}}, "search.space.p.type is 'unifrom'. Did you mean 'uniform'?"),
    ({"p": {**U, "type": 3}}, "search.space.p.type is 3. Valid names: uniform, loguniform"),
    (
        {"p": {**U, "hihg": 1}},
        "search.space.p has the key 'hihg', which uniform does not take. Did you mean 'high'?",
    ),
    ({"p": {"type": "uniform", "low": 0}}, "search.space.p has no 'high'; uniform needs low, high"),
    ({"p": {**U, "low": "zero"}}, "search.space.p.low is 'zero'; it must be a number"),
    ({"p": {**U, "low": None}}, "search.space.p.low is None; it must be a number"),
    ({"p": {**U, "high": True}}, "search.space.p.high is True; it must be a number"),
    ({"p": {**U, "low": 2}}, "search.space.p.low is 2; it must be below high, which is 1"),
    ({"p": {**U, "low": 1}}, "search.space.p.low is 1; it must be below high, which is 1"),
    ({"p": {**U, "high": float("inf")}}, "search.space.p.high is inf; it must be a finite number"),
    ({"p": {**U, "low": float("nan")}}, "search.space.p.low is nan; it must be a finite number"),
    (
        {"p": {**U, "type": "loguniform"}},
        "search.space.p.low is 0; it must be above 0, for its logarithm is taken",
    ),
    ({"p": {"type": "logint", "low": -1, "high": 3}}, "search.space.p.low is -1; it must be above 0"),
    ({"p": {"type": "int", "low": 0.5, "high": 3}}, "search.space.p.low is 0.5; it must be a whole number"),
    (
        {"p": {"type": "int", "low": float("nan"), "high": 3}},
        "search.space.p.low is nan; it must be a finite",
    ),
    ({"p": {**U, "type": "quniform", "q": 0}}, "search.space.p.q is 0; it must be above 0"),
    ({"p": {**U, "type": "quniform", "q": -1}}, "search.space.p.q is -1; it must be above 0"),
    ({"p": {**U, "type": "quniform", "q": 2}}, "search.space.p.q is 2; fewer than two multiples of it"),
    (
        {"p": {**U, "type": "quniform", "q": 0.5, "integer": True}},
        "search.space.p.integer is True; it needs a q",
    ),
    (
        {"p": {**U, "type": "quniform", "q": 0.5, "integer": 1}},
        "search.space.p.integer is 1; it must be true or",
    ),
    (
        {"p": {"type": "normal", "mu": 0, "sigma": 0}},
        "search.space.p.sigma is 0; it must be a finite number above 0",
    ),
    ({"p": {"type": "lognormal", "mu": 0, "sigma": -1}}, "search.space.p.sigma is -1"),
    ({"p": {"type": "normal", "mean": 0, "sigma": 1}}, "search.space.p has the key 'mean', which normal"),
    (
        {"p": {"type": "choice", "options": []}},
        "search.space.p.options is (); it must have at least one option",
    ),
    ({"p": {"type": "choice", "options": "ab"}}, "search.space.p.options is 'ab'; it must be a list"),
    (
        {"p": {"type": "choice", "options": [1, {2}]}},
        "search.space.p.options[1] is {2} (set); a constant or an option",
    ),
    ({"p": {"type": "choice", "options": [float("nan")]}}, "search.space.p.options[0] is nan (float)"),
    (
        {"p": {"type": "choice", "options": [1, 2, 1.0]}},
        "search.space.p.options[2] is the same as options[0]",
    ),
    (
        {"p": {"type": "choice", "options": [1, 2], "weights": [1]}},
        "it must have one number for each of the 2",
    ),
    ({"p": {"type": "choice", "options": [1, 2], "weights": [1, 1]}}, "they must be at least 0 and sum to 1"),
    (
        {"p": {"type": "choice", "options": [1, {"m": {**U, "low": 3}}]}},
        "search.space.p.options[1].m.low is 3",
    ),
    ({"p": {"q": {**U, "low": 3}}}, "search.space.p.q.low is 3"),
    ({"p": [U]}, "search.space.p[0] is a parameter inside a list"),
    ({1: U}, "search.space has the key 1; keys must be text"),
    ({"p": len}, "builtin_function_or_method); a constant or an option must be a JSON value"),
]


@pytest.mark.parametrize(("config", "message"), ERRORS, ids=[message[:60] for _, message in ERRORS])
def test_what_makes_no_sense_is_refused_with_place_value_and_rule(config: Any, message: str) -> None:
    with pytest.raises(SpaceError) as error:
        Space.from_config(config, place="search.space")
    assert message in str(error.value)


class TestDrawing:
    def test_loguniform_spreads_evenly_over_magnitudes(self) -> None:
        values = draws(one(type="loguniform", low=1e-4, high=1.0))
        assert 0.45 < np.mean(np.array(values) < 1e-2) < 0.55
        assert min(values) >= 1e-4
        assert max(values) <= 1.0

    def test_an_int_takes_every_value_alike(self) -> None:
        values = draws(one(type="int", low=1, high=4))
        assert {type(v) for v in values} == {int}
        counts = [values.count(k) for k in (1, 2, 3, 4)]
        assert sum(counts) == 2000
        assert min(counts) > 430

    def test_a_quniform_takes_the_multiples_within_the_bounds_as_they_are_written(self) -> None:
        assert sorted(set(draws(one(type="quniform", low=0.1, high=0.55, q=0.1)))) == [
            0.1,
            0.2,
            0.3,
            0.4,
            0.5,
        ]
        assert sorted(set(draws(one(type="quniform", low=1, high=10, q=4, integer=True)))) == [4, 8]

    def test_mu_and_sigma_of_a_lognormal_are_those_of_the_logarithm(self) -> None:
        logs = np.log(draws(one(type="lognormal", mu=-2, sigma=0.5)))
        assert abs(logs.mean() + 2) < 0.05
        assert abs(logs.std() - 0.5) < 0.05

    def test_weights_are_probabilities(self) -> None:
        values = draws(one(type="choice", options=["a", "b"], weights=[0.9, 0.1]))
        assert 0.87 < values.count("a") / 2000 < 0.93

    @given(
        st.sampled_from(
            [
                Uniform(low=-3.0, high=7.5),
                Uniform(low=1e-7, high=1e3, log=True),
                Uniform(low=0.3, high=7.0, q=0.7),
                Uniform(low=1, high=1000, q=1, integer=True, log=True),
                Uniform(low=3, high=5000, q=2.5, log=True),
                Normal(mu=3, sigma=2),
                Normal(mu=0, sigma=3, log=True),
                Normal(mu=0, sigma=2, q=0.25),
                Normal(mu=0, sigma=2, q=1, log=True, integer=True),
            ]
        ),
        st.integers(0, 10_000),
    )
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_what_is_drawn_is_accepted_and_survives_the_latent_value(
        self, parameter: Uniform | Normal, seed: int
    ) -> None:
        value = parameter.sample(np.random.default_rng(seed))
        assert parameter.accepts(value)
        assert type(value) is (int if parameter.integer else float)
        assert parameter.value(parameter.latent(value)) == pytest.approx(value, rel=1e-9)


class TestGrid:
    @pytest.mark.parametrize(
        ("parameter", "values"),
        [
            ({"type": "uniform", "low": 0, "high": 1}, [0.0, 0.5, 1.0]),
            ({"type": "loguniform", "low": 1e-4, "high": 1e-2}, [1e-4, 1e-3, 1e-2]),
            ({"type": "int", "low": 1, "high": 2}, [1, 2]),
            ({"type": "int", "low": 0, "high": 10}, [0, 5, 10]),
            ({"type": "logint", "low": 1, "high": 100}, [1, 10, 100]),
            ({"type": "quniform", "low": 0, "high": 0.2, "q": 0.1}, [0.0, 0.1, 0.2]),
            ({"type": "choice", "options": ["a", "b", "c", "d"]}, ["a", "b", "c", "d"]),
        ],
    )
    def test_each_parameter_has_both_ends_and_at_most_three_numbers(
        self, parameter: dict[str, Any], values: list[Any]
    ) -> None:
        assert [p["p"] for p in one(**parameter).grid(3)] == values

    def test_a_normal_is_cut_at_quantiles(self) -> None:
        low, middle, high = (p["p"] for p in one(type="normal", mu=1, sigma=2).grid(3))
        assert middle == pytest.approx(1)
        assert high - middle == pytest.approx(middle - low)

    def test_options_add_up_and_parameters_multiply(self) -> None:
        points = list(SPACE.grid(2))
        assert len(points) == SPACE.grid_size(2) == 2 * (1 + 2) * 2
        assert len({json.dumps(p) for p in points}) == 12
        assert [p["model"]["width"] for p in points[:4]] == [8, 64, 8, 64]
        assert all(SPACE.validate(p) == p for p in points)


class TestValidating:
    def test_a_configuration_that_fits_comes_back_in_the_types_of_the_space(self) -> None:
        given = {"learning_rate": 0.1, "optimizer": "adam", "model": {"depth": 2, "width": 8}, "seed": 7}
        assert SPACE.validate(given) == given
        momentum = SPACE.validate({**given, "optimizer": {"name": "sgd", "momentum": 0}})["optimizer"][
            "momentum"
        ]
        assert type(momentum) is float

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"learning_rate": 1.0}, "enqueued.learning_rate is 1.0; it must be a number from 0.0001 to 0.1"),
            ({"learning_rate": True}, "enqueued.learning_rate is True"),
            ({"learning_rate": "0.1"}, "enqueued.learning_rate is '0.1'"),
            (
                {"learningrate": 0.1},
                "enqueued has 'learningrate', which the space does not. Did you mean 'learning_rate'?",
            ),
            ({"model": {"depth": 2}}, "enqueued.model has no 'width'"),
            (
                {"model": {"depth": 2, "width": 9.5}},
                "enqueued.model.width is 9.5; it must be an integer from 8 to 64",
            ),
            ({"model": {"depth": 3, "width": 9}}, "enqueued.model.depth is 3; the space has the constant 2"),
            ({"model": 3}, "enqueued.model is 3; it must be a mapping with width, depth"),
            ({"optimizer": "rmsprop"}, "enqueued.optimizer is 'rmsprop'; it must be one of 'adam'"),
            (
                {"optimizer": {"name": "sgd", "momentum": 2}},
                "enqueued.optimizer.momentum is 2; it must be a number",
            ),
            ({"seed": True}, "enqueued.seed is True"),
        ],
    )
    def test_what_does_not_fit_is_named(self, change: dict[str, Any], message: str) -> None:
        fits = {"learning_rate": 0.1, "optimizer": "adam", "model": {"depth": 2, "width": 8}, "seed": 7}
        with pytest.raises(SpaceError) as error:
            SPACE.validate({**fits, **change}, place="enqueued")
        assert message in str(error.value)

    def test_a_name_that_is_missing_is_asked_for(self) -> None:
        with pytest.raises(SpaceError, match="params has no 'learning_rate'; the space asks for one"):
            SPACE.validate({})

    def test_flattening_and_back_changes_nothing(self) -> None:
        for trial_id in range(30):
            params = SPACE.sample(np.random.default_rng(trial_id))
            assert SPACE.unflatten(SPACE.flatten(params)) == params
