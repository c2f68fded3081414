"""Building samplers, schedulers and spaces by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hyperopt import hp

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.registry import SCHEDULERS, build_sampler, build_scheduler, build_space
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.schedulers.synchronous import FullScheduler, HyperbandScheduler
from spark_hpo.search.space import Space

CONFIG = {"x": {"type": "uniform", "low": 0, "high": 1}}
SPACE = Space.from_config(CONFIG)


def test_registry_builds_parts_by_name() -> None:
    assert isinstance(build_sampler("grid", SPACE, 0, resolution=3), GridSampler)
    assert isinstance(build_sampler("tpe", SPACE, 0, num_startup_trials=3), MultivariateTpeSampler)
    assert isinstance(build_sampler("hyperopt_tpe", SPACE, 0, num_startup_trials=3), TpeSampler)
    assert isinstance(build_scheduler("full", max_resource=3, max_trials=2), FullScheduler)
    assert isinstance(build_scheduler("hyperband", max_resource=3, rounding="ceiling"), HyperbandScheduler)


def test_build_space_accepts_a_mapping_an_hp_expression_and_a_space() -> None:
    assert build_space(CONFIG) == SPACE
    assert build_space(SPACE) is SPACE
    assert build_space({"x": hp.uniform("x", 0, 1)}).root == SPACE.root


UNSET = object()  # an error without a value
SAMPLER_ERRORS: list[tuple[str, dict[str, Any], str, Any, str]] = [
    ("tpee", {}, "sampler", "tpee", "'tpe'"),
    ("bayes", {}, "sampler", "bayes", "random, grid, tpe, "),
    ("random", {"resolution": 3}, "sampler_settings.resolution", UNSET, ""),
    ("tpe", {"num_startup_trial": 3}, "sampler_settings.num_startup_trial", UNSET, "'num_startup_trials'"),
    ("tpe", {"gamma": "a lot"}, "sampler_settings.gamma", "a lot", ""),
    ("tpe", {"gamma": 0}, "sampler_settings.gamma", 0, ""),
    ("grid", {"resolution": 0}, "sampler_settings.resolution", 0, ""),
    ("grid", {"resolution": True}, "sampler_settings.resolution", True, ""),
]


@pytest.mark.parametrize(("name", "settings", "key", "value", "cure"), SAMPLER_ERRORS)
def test_build_sampler_names_what_is_invalid(
    name: str, settings: dict[str, Any], key: str, value: Any, cure: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_sampler(name, SPACE, 0, **settings)
    assert error.value.key == key
    assert value is UNSET or error.value.value == value
    assert cure in error.value.cure


SCHEDULER_ERRORS: list[tuple[str, dict[str, Any], str, Any, str]] = [
    ("hyperbnd", {"max_resource": 9}, "scheduler", "hyperbnd", "'hyperband'"),
    ("hyperband", {}, "max_resource", UNSET, ""),
    ("full", {"max_resource": 9, "reduction_factor": 3}, "reduction_factor", UNSET, ""),
    ("hyperband", {"max_resource": 9, "reduction_factor": 1}, "reduction_factor", 1, ""),
    ("hyperband", {"max_resource": 9, "min_resource": 10}, "min_resource", 10, ""),
    ("hyperband", {"max_resource": 9.5}, "max_resource", 9.5, ""),
    (
        "hyperband",
        {"max_resource": 9, "rounding": "ceil"},
        "scheduler_settings.rounding",
        "ceil",
        "'ceiling'",
    ),
    ("hyperband", {"max_resource": 9, "max_trials": 0}, "max_trials", 0, ""),
    ("full", {"max_resource": 9, "max_trials": 0}, "max_trials", 0, ""),
    ("successive_halving", {"max_resource": 9}, "scheduler_settings.num_trials", UNSET, "budget.trials"),
    ("async_hyperband", {"max_resource": 9, "num_brackets": 4}, "scheduler_settings.num_brackets", 4, ""),
    ("median_stopping", {"max_resource": 9, "interval": 0}, "scheduler_settings.interval", 0, ""),
]


@pytest.mark.parametrize(("name", "settings", "key", "value", "cure"), SCHEDULER_ERRORS)
def test_build_scheduler_names_what_is_invalid(
    name: str, settings: dict[str, Any], key: str, value: Any, cure: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_scheduler(name, **settings)
    assert error.value.key == key
    assert value is UNSET or error.value.value == value
    assert cure in error.value.cure


def test_build_sampler_refuses_a_negative_seed() -> None:
    with pytest.raises(ConfigError) as error:
        build_sampler("random", SPACE, -1)
    assert (error.value.key, error.value.value) == ("seed", -1)


def test_grid_without_a_free_point_says_how_many_it_has() -> None:
    sampler = build_sampler("grid", SPACE, 0, resolution=1)
    sampler.start(0, sampler.ask(0))
    with pytest.raises(SpaceError) as error:
        sampler.ask(1)
    assert (error.value.key, error.value.value) == ("resolution", 1)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "successive_halving"])
def test_build_scheduler_needs_only_the_maximum_resource(name: str) -> None:
    assert build_scheduler(name, max_resource=27).max_resource == 27


@pytest.mark.medium
def test_registry_without_optuna_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['optuna'] = None\n"
        "from spark_hpo.errors import ConfigError\n"
        "from spark_hpo.search.registry import SAMPLERS, build_sampler\n"
        "from spark_hpo.search.space import Space\n"
        "space = Space.from_config({'x': {'type': 'uniform', 'low': 0, 'high': 1}})\n"
        "for name in SAMPLERS:\n"
        "    try:\n"
        "        build_sampler(name, space, 0)\n"
        "    except ConfigError as error:\n"
        "        print(name, error.key, 'spark_hpo[optuna]' in error.cure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == [
        f"{name} sampler True" for name in ("gp", "cmaes", "nsga2", "optuna_tpe")
    ]
