"""The sampler's choice of the trial that is promoted, and its replay."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.wrappers import EnqueuedSampler
from spark_hpo.search.space import Space
from spark_hpo.study.guide import Guide

SPACE = Space.from_config({"x": {"type": "uniform", "low": 0, "high": 1}})


class Expecting(RandomSampler):
    """Expects the most of the trial with the highest number."""

    calls = 0

    def expected(self, trial_ids: Sequence[int]) -> Sequence[float] | None:
        self.calls += 1
        return [-float(trial_id) for trial_id in trial_ids]


def test_trial_with_the_lowest_expectation_is_chosen_also_by_a_wrapped_sampler() -> None:
    sampler = EnqueuedSampler(Expecting(SPACE, 0), [{"x": 0.5}])
    assert Guide(sampler)([3, 1, 4, 0]) == 4


def test_sampler_without_opinion_leaves_it_to_the_losses() -> None:
    assert Guide(RandomSampler(SPACE, 0))([3, 1, 4]) == 3
    assert Guide(object())([3, 1, 4]) == 3  # type: ignore[arg-type]  # a plugin


def test_replay_chooses_what_was_chosen_and_asks_nobody() -> None:
    sampler = Expecting(SPACE, 0)
    guide = Guide(sampler)
    with guide.replaying(1):
        assert guide([3, 1, 4]) == 1
        assert guide([3, 4]) == 3
    assert sampler.calls == 0
    assert guide([3, 1, 4]) == 4


def test_copy_for_a_forecast_asks_nobody() -> None:
    sampler = Expecting(SPACE, 0)
    assert copy.deepcopy(Guide(sampler))([3, 1, 4]) == 3
    assert sampler.calls == 0
