"""Samplers whose space changes while they learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.search.registry import build_sampler
from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.steered import SteeredSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.ranges import nearest, widest, with_ranges
from spark_hpo.trial import FailureKind

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1, "default": 1e-3},
        "y": {"type": "uniform", "low": 0.0, "high": 1.0},
        "optimizer": {
            "type": "choice",
            "options": [
                "adam",
                {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 0.99}},
                {"name": "lion", "beta": {"type": "uniform", "low": 0.5, "high": 0.9}},
            ],
        },
        "units": {"type": "int", "low": 8, "high": 64},
    }
)


def steered(name: str) -> SteeredSampler:
    def make(space: Space) -> Any:
        return build_sampler(name, space, 1)

    return SteeredSampler(make(SPACE), SPACE, make)


def taught(sampler: SteeredSampler, trials: int = 40) -> int:
    """Tell the sampler that y = 0.8 is good. Returns the number of the next trial."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        params = SPACE.sample(rng)
        sampler.start(trial, params)
        sampler.tell(trial, resource=1, loss=(params["y"] - 0.8) ** 2)
    return trials


@pytest.mark.parametrize("name", ["multivariate_tpe", "de", "optuna_tpe", "hyperopt_tpe"])
@pytest.mark.parametrize("bounds", [[0.2, 0.3], [1e-7, 1e-6], [1e-5, 1.0]])
def test_sampler_knows_after_a_change_what_it_knew_before(name: str, bounds: list[float]) -> None:
    if name.startswith("optuna"):
        pytest.importorskip("optuna")
    sampler = steered(name)
    begin = taught(sampler)
    before = {trial: sampler.ask(trial)["y"] for trial in range(begin, begin + 12)}
    sampler.change_ranges({"lr": bounds})
    after = [sampler.ask(trial) for trial in before]
    assert all(bounds[0] <= params["lr"] <= bounds[1] for params in after)
    errors = [
        float(np.median([abs(y - 0.8) for y in ys])) for ys in (before.values(), [p["y"] for p in after])
    ]
    assert max(errors) < 0.2  # 0.32 without knowledge


def test_sampler_knows_after_a_change_which_trials_were_lost() -> None:
    def share_above(kind: FailureKind) -> float:
        def make(space: Space) -> Any:
            return build_sampler("tpe", space, 1, learns_from_failures=True)

        sampler, rng = SteeredSampler(make(SPACE), SPACE, make), np.random.default_rng(0)
        for trial in range(40):
            params = SPACE.sample(rng)
            fails = params["y"] > 0.5
            sampler.start(trial, params)
            sampler.note(trial, Outcome(units=1, seconds=1.0, failure=kind if fails else None))
            sampler.tell(trial, resource=1, loss=math.inf if fails else 1.0 - params["y"])
        sampler.change_ranges({"lr": [1e-3, 1e-1]})
        return float(np.mean([sampler.ask(40 + i)["y"] > 0.5 for i in range(24)]))

    assert share_above(FailureKind.MEMORY) < 0.15
    assert share_above(FailureKind.INFRASTRUCTURE) > 0.3


def test_trial_with_a_removed_option_is_told_again_when_the_option_returns() -> None:
    sampler = steered("hyperopt_tpe")
    taught(sampler)
    sampler.change_ranges({"optimizer": ["sgd"]})
    assert {sampler.ask(trial)["optimizer"]["name"] for trial in range(40, 50)} == {"sgd"}
    few = len(sampler.sampler._points)  # type: ignore[attr-defined]
    sampler.change_ranges({"optimizer": ["adam", "sgd", "lion"]})
    assert few < len(sampler.sampler._points) == 40  # type: ignore[attr-defined]


def test_added_configurations_come_first_and_after_enqueued_ones() -> None:
    enqueued, added = SPACE.sample(np.random.default_rng(7)), SPACE.sample(np.random.default_rng(8))
    sampler = SteeredSampler(
        build_sampler("random", SPACE, 0, enqueue=[enqueued]), SPACE, lambda s: build_sampler("random", s, 0)
    )
    sampler.add(added)
    assert sampler.ask(0) == enqueued
    sampler.start(0, enqueued)
    assert sampler.ask(1) == added == sampler.ask(1)
    sampler.start(1, added)
    assert sampler.ask(2) != added


def test_ranges_of_nested_parameters_whole_numbers_and_options() -> None:
    space = with_ranges(
        SPACE, {"optimizer.momentum": [0.5, 0.6], "units": [16, 128], "optimizer": ["sgd", "adam"]}
    )
    drawn = [space.sample(np.random.default_rng(i)) for i in range(60)]
    momenta = [p["optimizer"]["momentum"] for p in drawn if p["optimizer"] != "adam"]
    assert momenta
    assert all(0.5 <= m <= 0.6 for m in momenta)
    assert max(p["units"] for p in drawn) > 64
    assert with_ranges(SPACE, {"lr": [1e-4, 1e-2]}).dimensions()[0].parameter.default == 1e-3
    assert with_ranges(SPACE, {"lr": [1e-2, 1e-1]}).dimensions()[0].parameter.default is None


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"rate": [0, 1]}, "Valid names: lr, optimizer, optimizer.beta"),
        ({"lr": [1e-2]}, "two numbers"),
        ({"lr": [0, 1]}, "lr.low must be above 0"),
        ({"units": [8.5, 9.5]}, "units.q must have two multiples"),
        ({"optimizer": ["adamw"]}, "Its options are 'adam', 'sgd', 'lion'"),
        ({"optimizer": []}, "at least one option"),
    ],
)
def test_ranges_that_do_not_suit_are_refused(ranges: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message.replace("[", r"\[")):
        with_ranges(SPACE, ranges)


def test_widest_space_contains_all_changes_and_nearest_moves_numbers() -> None:
    space = widest(SPACE, [{"lr": [1e-3, 1.0]}, {"lr": [1e-6, 1e-5], "optimizer": ["adam"]}])
    lr = space.dimensions()[0].parameter
    assert (lr.low, lr.high) == (1e-6, 1.0)  # type: ignore[union-attr]
    narrow = with_ranges(SPACE, {"lr": [1e-3, 1e-2], "optimizer.momentum": [0.5, 0.6]})
    params = {"lr": 0.1, "y": 0.5, "optimizer": {"name": "sgd", "momentum": 0.9}, "units": 8}
    moved = nearest(narrow, params)
    assert moved == {"lr": 1e-2, "y": 0.5, "optimizer": {"name": "sgd", "momentum": 0.6}, "units": 8}
