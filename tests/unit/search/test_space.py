"""Spaces: parsing, sampling, grids and validation."""

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
    def test_sample_has_the_shape_of_the_space(self) -> None:
        for trial_id in range(20):
            params = SPACE.sample(np.random.default_rng((0, trial_id)))
            assert list(params) == list(CONFIG)
            assert params["seed"] == 7
            assert params["model"]["depth"] == 2
            assert params["optimizer"] == "adam" or params["optimizer"]["name"] == "sgd"

    def test_dimensions_have_paths_and_conditions(self) -> None:
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

    def test_from_config_reads_1e_minus_4_as_a_number(self) -> None:
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

    def test_from_config_converts_numpy_scalars(self) -> None:
        space = Space.from_config(
            {"p": {"type": "int", "low": np.int64(1), "high": np.float64(3)}, "c": np.float32(0.5)}
        )
        params = space.sample(np.random.default_rng(0))
        assert (type(params["p"]), type(params["c"])) == (int, float)

    def test_space_round_trips_through_sorted_json(self) -> None:
        again = Space.from_json(json.loads(json.dumps(SPACE.to_json(), sort_keys=True)))
        assert again == SPACE
        assert again.sample(np.random.default_rng(3)) == SPACE.sample(np.random.default_rng(3))

    def test_sample_is_a_copy(self) -> None:
        space = Space.from_config({"layers": [1, {"a": 2}]})
        space.sample(np.random.default_rng(0))["layers"].append(3)
        assert space.sample(np.random.default_rng(0)) == {"layers": [1, {"a": 2}]}

    def test_importing_space_does_not_import_hyperopt(self) -> None:
        code = "import sys, spark_hpo.search.space; sys.exit('hyperopt' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


U = {"type": "uniform", "low": 0, "high": 1}
UNKNOWN = "an error without a value"
# What is written, and the key and the value of the error.
ERRORS: list[tuple[Any, str, Any]] = [
    ({}, "space", {}),
    (["x"], "space", ["x"]),
    ({"p": {**U, "type": "unifrom"}}, "space.p.type", "unifrom"),
    ({"p": {**U, "type": 3}}, "space.p.type", 3),
    ({"p": {**U, "hihg": 1}}, "space.p.hihg", UNKNOWN),
    ({"p": {"type": "uniform", "low": 0}}, "space.p.high", UNKNOWN),
    ({"p": {**U, "low": "zero"}}, "space.p.low", "zero"),
    ({"p": {**U, "low": None}}, "space.p.low", None),
    ({"p": {**U, "high": True}}, "space.p.high", True),
    ({"p": {**U, "low": 2}}, "space.p.low", 2),
    ({"p": {**U, "low": 1}}, "space.p.low", 1),
    ({"p": {**U, "high": float("inf")}}, "space.p.high", float("inf")),
    ({"p": {**U, "type": "loguniform"}}, "space.p.low", 0),
    ({"p": {"type": "logint", "low": -1, "high": 3}}, "space.p.low", -1),
    ({"p": {"type": "int", "low": 0.5, "high": 3}}, "space.p.low", 0.5),
    ({"p": {**U, "type": "quniform", "q": 0}}, "space.p.q", 0),
    ({"p": {**U, "type": "quniform", "q": -1}}, "space.p.q", -1),
    ({"p": {**U, "type": "quniform", "q": 2}}, "space.p.q", 2),
    ({"p": {**U, "type": "quniform", "q": 0.5, "integer": True}}, "space.p.integer", True),
    ({"p": {**U, "type": "quniform", "q": 0.5, "integer": 1}}, "space.p.integer", 1),
    ({"p": {"type": "normal", "mu": 0, "sigma": 0}}, "space.p.sigma", 0),
    ({"p": {"type": "lognormal", "mu": 0, "sigma": -1}}, "space.p.sigma", -1),
    ({"p": {"type": "normal", "mean": 0, "sigma": 1}}, "space.p.mean", UNKNOWN),
    ({"p": {"type": "choice", "options": []}}, "space.p.options", ()),
    ({"p": {"type": "choice", "options": "ab"}}, "space.p.options", "ab"),
    ({"p": {"type": "choice", "options": [1, {2}]}}, "space.p.options[1]", {2}),
    ({"p": {"type": "choice", "options": [float("-inf")]}}, "space.p.options[0]", float("-inf")),
    ({"p": {"type": "choice", "options": [1, 2, 1.0]}}, "space.p.options[2]", UNKNOWN),
    ({"p": {"type": "choice", "options": [1, 2], "weights": [1]}}, "space.p.weights", (1,)),
    ({"p": {"type": "choice", "options": [1, 2], "weights": [1, 1]}}, "space.p.weights", (1, 1)),
    ({"p": {"type": "choice", "options": [1, 2], "default": 3}}, "space.p.default", 3),
    ({"p": {"type": "choice", "options": [1, {"m": {**U, "low": 3}}]}}, "space.p.options[1].m.low", 3),
    ({"p": {"q": {**U, "low": 3}}}, "space.p.q.low", 3),
    ({"p": [U]}, "space.p[0]", UNKNOWN),
    ({"p": [1, {"q": len}]}, "space.p[1].q", len),
    ({1: U}, "space", UNKNOWN),
    ({"p": len}, "space.p", len),
]


@pytest.mark.parametrize(("config", "key", "value"), ERRORS, ids=str)
def test_from_config_names_what_is_invalid(config: Any, key: str, value: Any) -> None:
    with pytest.raises(SpaceError) as error:
        Space.from_config(config)
    assert error.value.key == key
    assert value is UNKNOWN or error.value.value == value


def test_from_config_refuses_a_bound_that_is_nan() -> None:
    for kind in ("uniform", "int"):
        with pytest.raises(SpaceError) as error:
            one(type=kind, low=float("nan"), high=3)
        assert error.value.key == "space.p.low"


def test_from_config_suggests_the_nearest_name() -> None:
    for parameter, name in ({**U, "type": "unifrom"}, "uniform"), ({**U, "hihg": 1}, "high"):
        with pytest.raises(SpaceError) as error:
            one(**parameter)
        assert repr(name) in error.value.cure


class TestDrawing:
    def test_loguniform_is_uniform_over_magnitudes(self) -> None:
        values = draws(one(type="loguniform", low=1e-4, high=1.0))
        assert 0.45 < np.mean(np.array(values) < 1e-2) < 0.55
        assert min(values) >= 1e-4
        assert max(values) <= 1.0

    def test_int_draws_all_values_equally_often(self) -> None:
        values = draws(one(type="int", low=1, high=4))
        assert {type(v) for v in values} == {int}
        counts = [values.count(k) for k in (1, 2, 3, 4)]
        assert sum(counts) == 2000
        assert min(counts) > 430

    def test_quniform_draws_exact_multiples_within_the_bounds(self) -> None:
        assert sorted(set(draws(one(type="quniform", low=0.1, high=0.55, q=0.1)))) == [
            0.1,
            0.2,
            0.3,
            0.4,
            0.5,
        ]
        assert sorted(set(draws(one(type="quniform", low=1, high=10, q=4, integer=True)))) == [4, 8]

    def test_lognormal_takes_mu_and_sigma_of_the_logarithm(self) -> None:
        logs = np.log(draws(one(type="lognormal", mu=-2, sigma=0.5)))
        assert abs(logs.mean() + 2) < 0.05
        assert abs(logs.std() - 0.5) < 0.05

    def test_choice_draws_by_its_weights(self) -> None:
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
    def test_sample_is_accepted_and_round_trips_as_latent_value(
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
    def test_grid_has_both_ends_and_at_most_the_resolution(
        self, parameter: dict[str, Any], values: list[Any]
    ) -> None:
        assert [p["p"] for p in one(**parameter).grid(3)] == values

    def test_grid_of_a_normal_has_its_quantiles(self) -> None:
        low, middle, high = (p["p"] for p in one(type="normal", mu=1, sigma=2).grid(3))
        assert middle == pytest.approx(1)
        assert high - middle == pytest.approx(middle - low)

    def test_grid_size_adds_options_and_multiplies_parameters(self) -> None:
        points = list(SPACE.grid(2))
        assert len(points) == SPACE.grid_size(2) == 2 * (1 + 2) * 2
        assert len({json.dumps(p) for p in points}) == 12
        assert [p["model"]["width"] for p in points[:4]] == [8, 64, 8, 64]
        assert all(SPACE.validate(p) == p for p in points)


class TestValidating:
    def test_validate_returns_the_types_of_the_space(self) -> None:
        given = {"learning_rate": 0.1, "optimizer": "adam", "model": {"depth": 2, "width": 8}, "seed": 7}
        assert SPACE.validate(given) == given
        momentum = SPACE.validate({**given, "optimizer": {"name": "sgd", "momentum": 0}})["optimizer"][
            "momentum"
        ]
        assert type(momentum) is float

    @pytest.mark.parametrize(
        ("change", "key", "value"),
        [
            ({"learning_rate": 1.0}, "learning_rate", 1.0),
            ({"learning_rate": True}, "learning_rate", True),
            ({"learning_rate": "0.1"}, "learning_rate", "0.1"),
            ({"learningrate": 0.1}, "learningrate", UNKNOWN),
            ({"model": {"depth": 2}}, "model.width", UNKNOWN),
            ({"model": {"depth": 2, "width": 9.5}}, "model.width", 9.5),
            ({"model": {"depth": 3, "width": 9}}, "model.depth", 3),
            ({"model": 3}, "model", 3),
            ({"optimizer": "rmsprop"}, "optimizer", "rmsprop"),
            ({"optimizer": {"name": "sgd", "momentum": 2}}, "optimizer.momentum", 2),
            ({"seed": True}, "seed", True),
        ],
    )
    def test_validate_names_what_does_not_fit(self, change: dict[str, Any], key: str, value: Any) -> None:
        fits = {"learning_rate": 0.1, "optimizer": "adam", "model": {"depth": 2, "width": 8}, "seed": 7}
        with pytest.raises(SpaceError) as error:
            SPACE.validate({**fits, **change})
        assert error.value.key == key
        assert value is UNKNOWN or error.value.value == value

    def test_validate_names_a_missing_parameter(self) -> None:
        with pytest.raises(SpaceError) as error:
            SPACE.validate({})
        assert error.value.key == "learning_rate"

    def test_unflatten_inverts_flatten(self) -> None:
        for trial_id in range(30):
            params = SPACE.sample(np.random.default_rng(trial_id))
            assert SPACE.unflatten(SPACE.flatten(params)) == params
