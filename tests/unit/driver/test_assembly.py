"""From a study file to what decides: several objectives, and which methods go with them."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.driver.build_search import build_search
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Mode
from spark_hpo.search.methods import METHODS_VERSION
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler
from spark_hpo.search.samplers.steered import SteeredSampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.schedulers.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.schedulers.guided_asha import GuidedAshaScheduler
from spark_hpo.search.schedulers.pioneer_asha import PioneerAshaScheduler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.search.schedulers.synchronous import FullScheduler, HyperbandScheduler
from spark_hpo.search.space import Space
from spark_hpo.study import Search
from spark_hpo.study_dir.definition import Definition

RECORD: dict[str, Any] = {
    "name": "small",
    "study_dir": "studies/small",
    "task": "tabular",
    "objective": {"metric": "accuracy", "mode": "max"},
    "space": {"x": {"type": "uniform", "low": 0, "high": 1}},
    "search": {"max_resource": 9},
    "budget": {"trials": 10},
}
ALSO = {"latency_ms": "min", "recall": "max"}


def config(also: dict[str, str] = ALSO, **search: Any) -> StudyConfig:
    objective = {**RECORD["objective"], "also": also}
    search = {**RECORD["search"], **search}
    return build_config({**RECORD, "objective": objective, "search": search}, place="tune.yaml")


def search_of(config: StudyConfig) -> Search:
    return build_search(config, Space.from_config(config.space))


def scheduler_of(search: Search) -> Scheduler:
    assert isinstance(search.scheduler, StagedScheduler)
    return search.scheduler.make(search.max_trials)


def test_objective_has_the_metrics_of_the_study_file_in_order() -> None:
    objective = config().objective.build()
    assert objective.metrics == ("accuracy", "latency_ms", "recall")
    assert objective.extra_objectives == (("latency_ms", Mode.MIN), ("recall", Mode.MAX))


@pytest.mark.parametrize("search", [{}, {"sampler": "random"}, {"method": "default"}])
def test_default_method_for_several_objectives_trains_every_trial_fully(search: dict[str, Any]) -> None:
    built = search_of(config(**search))
    assert isinstance(scheduler_of(built), FullScheduler)
    assert built.warning is None
    assert isinstance(scheduler_of(search_of(config({}, **search))), PioneerAshaScheduler)


@pytest.mark.parametrize("search", [{"scheduler": "hyperband"}, {"method": "bohb"}])
def test_scheduler_with_rungs_for_several_objectives_gets_a_warning(search: dict[str, Any]) -> None:
    built = search_of(config(**search))
    assert isinstance(scheduler_of(built), HyperbandScheduler)
    assert built.warning is not None
    assert "'hyperband' ranks the trials of a rung by accuracy only" in built.warning
    assert "latency_ms or recall" in built.warning
    assert search_of(config({}, **search)).warning is None


@pytest.mark.parametrize(
    ("search", "key", "value"),
    [
        ({"min_resource": 3}, "search.min_resource", 3),
        ({"reduction_factor": 3}, "search.reduction_factor", 3),
        ({"scheduler_settings": {"num_probes": 6}}, "search.scheduler_settings.num_probes", 6),
    ],
)
def test_rung_settings_without_rungs_are_refused(search: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        search_of(config(**search))
    assert (caught.value.key, caught.value.value) == (key, value)
    search_of(config(**search, scheduler="adaptive_asha"))
    search_of(config({}, **search))


@pytest.mark.parametrize(
    "sampler",
    [
        *("hyperopt_tpe", "de", "pso"),
        pytest.param("gp", marks=pytest.mark.skipif(find_spec("optuna") is None, reason="an extra")),
        pytest.param("cmaes", marks=pytest.mark.skipif(find_spec("cmaes") is None, reason="an extra")),
    ],
)
def test_sampler_for_one_objective_is_refused_with_those_for_several(sampler: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search_of(config(sampler=sampler))
    assert (caught.value.key, caught.value.value) == ("search.sampler", sampler)
    assert (
        "random, grid, tpe, multivariate_tpe, sobol, multifidelity_gp, nsga2, optuna_tpe" in caught.value.cure
    )
    search_of(config({}, sampler=sampler))


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe", "sobol"])
def test_other_samplers_accept_several_objectives(sampler: str) -> None:
    search_of(config(sampler=sampler))


def test_further_objectives_belong_to_the_definition_of_a_study() -> None:
    begun = Definition.create(config().model_dump(mode="json"))
    begun.check(config().model_dump(mode="json"))
    with pytest.raises(ConfigError) as caught:
        begun.check(config({"latency_ms": "max"}).model_dump(mode="json"))
    assert [error.key for error in caught.value.errors] == [
        "objective.also.latency_ms",
        "objective.also.recall",
    ]


def test_study_keeps_the_method_settings_that_it_began_with() -> None:
    study = config({})
    record = study.model_dump(mode="json")
    new = Definition.create(record, methods=METHODS_VERSION)
    old = Definition(study_id="a", created_at=0.0, config=record)  # earlier versions wrote no `methods`
    space = Space.from_config(study.space)
    third, second = replace(new, methods=3), replace(new, methods=2)
    schedulers = [
        scheduler_of(build_search(study, space, definition=definition))
        for definition in (None, new, third, second, old)
    ]
    assert [type(scheduler) for scheduler in schedulers] == [
        *[PioneerAshaScheduler] * 2,
        GuidedAshaScheduler,
        *[AdaptiveAshaScheduler] * 2,
    ]
    assert [getattr(scheduler, "has_leader", None) for scheduler in schedulers[3:]] == [True, False]
    assert old.redefined(record).methods == old.methods == 1
    with pytest.raises(ConfigError) as caught:
        build_search(study, space, definition=replace(new, methods=METHODS_VERSION + 1))
    assert (caught.value.key, caught.value.value) == ("search.method", "default")


def test_study_of_an_earlier_version_does_not_learn_from_memory() -> None:
    study = config({})
    new = Definition.create(study.model_dump(mode="json"), methods=METHODS_VERSION)
    space = Space.from_config(study.space)
    learns = []
    for definition in (None, new, replace(new, methods=4)):
        sampler = build_search(study, space, definition=definition).sampler
        assert isinstance(sampler, SteeredSampler)
        assert isinstance(sampler.sampler, MultifidelityGpSampler)
        learns.append(sampler.sampler.learns_from_memory)
    assert learns == [True, True, False]


def test_settings_of_the_user_override_those_of_the_method() -> None:
    scheduler = scheduler_of(search_of(config({}, scheduler_settings={"num_controls": 0})))
    assert isinstance(scheduler, PioneerAshaScheduler)
    assert scheduler.num_controls == 0


def test_study_file_with_settings_of_an_earlier_default_gets_that_default() -> None:
    scheduler = scheduler_of(search_of(config({}, scheduler_settings={"num_probes": 7})))
    assert isinstance(scheduler, AdaptiveAshaScheduler)
    assert (scheduler.num_probes, scheduler.has_leader) == (7, True)
    with pytest.raises(ConfigError, match="is not a setting of the scheduler 'pioneer_asha'"):
        search_of(config({}, scheduler_settings={"nun_probes": 7}))
