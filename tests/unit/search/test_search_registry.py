"""Names and settings from a study file."""

from __future__ import annotations

from typing import Any

import pytest
from hyperopt import hp

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.registry import SCHEDULERS, build_sampler, build_scheduler, build_space
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.schedulers.full import FullScheduler
from spark_hpo.search.schedulers.hyperband import HyperbandScheduler
from spark_hpo.search.space import Space

CONFIG = {"x": {"type": "uniform", "low": 0, "high": 1}}
SPACE = Space.from_config(CONFIG)


def test_names_become_objects() -> None:
    assert isinstance(build_sampler("grid", SPACE, 0, resolution=3), GridSampler)
    assert isinstance(build_sampler("tpe", SPACE, 0, num_startup_trials=3), MultivariateTpeSampler)
    assert isinstance(build_sampler("hyperopt_tpe", SPACE, 0, num_startup_trials=3), TpeSampler)
    assert isinstance(build_scheduler("full", max_resource=3, max_trials=2), FullScheduler)
    assert isinstance(build_scheduler("hyperband", max_resource=3, rounding="ceiling"), HyperbandScheduler)


def test_a_space_may_be_a_mapping_an_hp_expression_or_a_space() -> None:
    assert build_space(CONFIG) == SPACE
    assert build_space(SPACE) is SPACE
    assert build_space({"x": hp.uniform("x", 0, 1)}).root == SPACE.root


SAMPLER_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("tpee", {}, "search.sampler is 'tpee'. Did you mean 'tpe'?"),
    ("bayes", {}, "Valid names: random, grid, tpe, "),
    ("random", {"resolution": 3}, "search.resolution is set, but sampler 'random' does not take it"),
    ("tpe", {"num_startup_trial": 3}, "Did you mean 'num_startup_trials'?"),
    ("grid", {"resolution": 0}, "search.resolution is 0; it must be an integer of at least 1"),
    ("grid", {"resolution": True}, "search.resolution is True"),
]


@pytest.mark.parametrize(("name", "settings", "message"), SAMPLER_ERRORS)
def test_a_sampler_that_makes_no_sense_is_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_sampler(name, SPACE, 0, **settings)
    assert message in str(error.value)


SCHEDULER_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("hyperbnd", {"max_resource": 9}, "search.scheduler is 'hyperbnd'. Did you mean 'hyperband'?"),
    ("hyperband", {}, "search.max_resource is missing; scheduler 'hyperband' needs it"),
    (
        "full",
        {"max_resource": 9, "reduction_factor": 3},
        "search.reduction_factor is set, but scheduler 'full'",
    ),
    (
        "hyperband",
        {"max_resource": 9, "reduction_factor": 1},
        "search.reduction_factor is 1; it must be an integer of at least 2",
    ),
    ("hyperband", {"max_resource": 9, "min_resource": 10}, "it must be at most max_resource, 9"),
    ("hyperband", {"max_resource": 9.5}, "search.max_resource is 9.5; it must be an integer"),
    ("hyperband", {"max_resource": 9, "rounding": "ceil"}, "Did you mean 'ceiling'?"),
    ("hyperband", {"max_resource": 9, "max_trials": 0}, "search.max_trials is 0"),
    ("full", {"max_resource": 9, "max_trials": 0}, "search.max_trials is 0"),
    ("successive_halving", {"max_resource": 9}, "search.num_trials is missing"),
]


@pytest.mark.parametrize(("name", "settings", "message"), SCHEDULER_ERRORS)
def test_a_scheduler_that_makes_no_sense_is_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_scheduler(name, **settings)
    assert message in str(error.value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.seed is -1; it must be an integer of at least 0"):
        build_sampler("random", SPACE, -1)


def test_a_space_error_names_its_own_place() -> None:
    sampler = build_sampler("grid", SPACE, 0, resolution=1)
    sampler.start(0, sampler.ask(0))
    with pytest.raises(SpaceError, match=r"the grid has 1 points.*bound the study to 1 trials"):
        sampler.ask(1)


@pytest.mark.parametrize("name", ["gp", "cmaes", "nsga2", "optuna_tpe"])
def test_a_sampler_of_optuna_says_what_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"this sampler needs \w+, which is not installed: pip install"):
        build_sampler(name, SPACE, 0)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "successive_halving"])
def test_every_scheduler_is_built_from_its_maximum_alone(name: str) -> None:
    assert build_scheduler(name, max_resource=27).max_resource == 27
