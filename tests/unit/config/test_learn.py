"""Learned hyperparameters in study files: what fits, and the messages about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.driver.build import training_settings
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.plan import plan_study
from spark_hpo.errors import ConfigError
from spark_hpo.search.registry import build_space
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.steered import SteeredSampler
from spark_hpo.train.training_settings import LearnedParameter, Learning
from tests.support.tables import clusters_study

SEARCH: dict[str, Any] = {"max_resource": 3, "method": "hypergradient"}
DECAY = {"low": 1e-6, "high": 1, "by_layer": True}


def test_section_becomes_settings_of_the_training(tmp_path: Path) -> None:
    learn = {"weight_decay": DECAY, "label_smoothing": {"low": 0, "high": 0.3, "initial": 0.1}}
    search = {**SEARCH, "learn": learn, "hypergradient": {"every": 5}}
    settings = training_settings(clusters_study(tmp_path, search=search))
    assert settings.learning == Learning(
        parameters=(
            LearnedParameter(name="weight_decay", low=1e-6, high=1, by_layer=True),
            LearnedParameter(name="label_smoothing", low=0, high=0.3, initial=0.1),
        ),
        every=5,
    )


def test_study_without_it_learns_nothing(tmp_path: Path) -> None:
    assert training_settings(clusters_study(tmp_path)).learning is None


@pytest.mark.parametrize(
    ("key", "search", "changes"),
    [
        ("search.learn", {}, {}),
        ("search.learn", {"method": "asha", "learn": {"weight_decay": DECAY}}, {}),
        ("search.resource", {"resource": "folds", "learn": {"weight_decay": DECAY}}, {}),
        ("training.precision", {"learn": {"weight_decay": DECAY}}, {"training": {"precision": "fp16"}}),
        ("training.strategy", {"learn": {"weight_decay": DECAY}}, {"training": {"strategy": "fsdp"}}),
        ("training.micro_batch", {"learn": {"weight_decay": DECAY}}, {"training": {"micro_batch": 8}}),
        ("search.learn.noise.by_layer", {"learn": {"noise": DECAY}}, {}),
        ("search.learn.learning_rate.low", {"learn": {"learning_rate": {"low": 0, "high": 1}}}, {}),
        ("search.learn.weight_decay.low", {"learn": {"weight_decay": {"low": -1, "high": 1}}}, {}),
        ("search.learn.noise.low", {"learn": {"noise": {"low": 1, "high": 1}}}, {}),
        ("search.learn.noise.initial", {"learn": {"noise": {"low": 0, "high": 1, "initial": 2}}}, {}),
        (
            "search.hypergradient.warmup",
            {"learn": {"weight_decay": DECAY}, "hypergradient": {"warmup": -1}},
            {},
        ),
        ("search.hypergradient.rate", {"learn": {"weight_decay": DECAY}, "hypergradient": {"rate": 2}}, {}),
    ],
)
def test_setting_that_does_not_fit_is_named(
    tmp_path: Path, key: str, search: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"\b{key}\b"):
        clusters_study(tmp_path, search={**SEARCH, **search}, **changes)


def test_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    config = clusters_study(tmp_path, search={**SEARCH, "learn": {"label_smooting": {"low": 0, "high": 0.3}}})
    with pytest.raises(ConfigError, match=r"search\.learn\.label_smooting.*'label_smoothing'"):
        plan_study(config)


def test_training_function_is_refused(tmp_path: Path) -> None:
    config = clusters_study(tmp_path, search={**SEARCH, "learn": {"weight_decay": DECAY}})
    with pytest.raises(ConfigError, match=r"search\.learn needs a task class"):
        plan_study(config, task=lambda ctx: None)


@pytest.mark.parametrize(
    ("parts", "sampler", "stops_early"),
    [({}, MultivariateTpeSampler, True), ({"sampler": "random", "scheduler": "full"}, RandomSampler, False)],
)
def test_rest_is_searched_with_any_sampler_and_scheduler(
    tmp_path: Path, parts: dict[str, str], sampler: type, stops_early: bool
) -> None:
    config = clusters_study(tmp_path, search={**SEARCH, **parts, "learn": {"weight_decay": DECAY}})
    search = build_search(config, build_space(config.space))
    assert isinstance(search.sampler, SteeredSampler)
    assert isinstance(search.sampler.sampler, sampler)
    assert search.scheduler.stops_early is stops_early


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_nothing_has_to_be_left_to_search(tmp_path: Path, sampler: str) -> None:
    search = {**SEARCH, "sampler": sampler, "learn": {"weight_decay": DECAY}}
    config = clusters_study(tmp_path, space={"hidden_units": 64}, search=search)
    assert build_search(config, build_space(config.space)).sampler.ask(0) == {"hidden_units": 64}
