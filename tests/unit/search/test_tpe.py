"""hyperopt's TPE as a sampler."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.support.asked import best_of, proposals, tell

SPACE = Space.from_config(
    {
        "x": {"type": "uniform", "low": -5, "high": 5},
        "lr": {"type": "loguniform", "low": 1e-5, "high": 1},
        "kind": {
            "type": "choice",
            "options": ["flat", {"name": "curved", "m": {"type": "uniform", "low": 0, "high": 1}}],
        },
    }
)
LINE = Space.from_config({"x": {"type": "uniform", "low": 0, "high": 1}})


def bowl(params: Params) -> float:
    extra = 3.0 if params["kind"] == "flat" else 4 * (params["kind"]["m"] - 0.2) ** 2
    return float((params["x"] - 1) ** 2 + math.log10(params["lr"] / 0.01) ** 2 + extra)


def taught(points: Mapping[int, Sequence[tuple[float, float]]], **settings: int) -> TpeSampler:
    return tell(TpeSampler(LINE, 0, **settings), points)


@pytest.mark.medium
def test_it_beats_random_search() -> None:
    seeds = range(7)
    tpe = statistics.median(best_of(TpeSampler(SPACE, seed), bowl, 60) for seed in seeds)
    random = statistics.median(best_of(RandomSampler(SPACE, seed), bowl, 60) for seed in seeds)
    assert tpe < random / 2


def test_tpe_draws_at_random_until_enough_trials_have_reported() -> None:
    sampler, random = TpeSampler(SPACE, 3), RandomSampler(SPACE, 3)
    for trial_id in range(12):
        assert (sampler.ask(trial_id) == random.ask(trial_id)) == (trial_id < 10)
        sampler.start(trial_id, random.ask(trial_id))
        sampler.tell(trial_id, resource=1, loss=bowl(random.ask(trial_id)))


def test_hyperopt_tpe_uses_the_highest_level_with_enough_trials() -> None:
    grid = np.linspace(0.01, 0.99, 30)
    misleading = [(float(x), abs(x - 0.1)) for x in grid]  # at 1 epoch, 0.1 looks best
    true = [(float(x), abs(x - 0.8)) for x in grid[::3]]
    low_alone = taught({1: misleading})
    both = taught({1: misleading, 9: true})
    assert both.level == 9
    assert statistics.median(proposals(low_alone)) < 0.3
    assert statistics.median(proposals(both)) > 0.6


def test_level_with_too_few_trials_is_not_used() -> None:
    grid = [(i / 30, i / 30) for i in range(30)]
    enough = len(LINE.dimensions()) + 3
    assert taught({1: grid, 9: grid[: enough - 1]}).level == 1
    assert taught({1: grid, 9: grid[:enough]}).level == 9


def test_promoted_trial_counts_at_both_levels() -> None:
    sampler = taught({1: [(i / 30, i / 30) for i in range(30)]})
    for trial_id in range(4):
        sampler.tell(trial_id, resource=3, loss=0.1)
    assert sampler.level == 3
    good, rest = sampler.split(3)
    assert good | rest == {0, 1, 2, 3}


def test_hyperopt_tpe_avoids_trials_in_flight() -> None:
    history = {1: [(i / 40, abs(i / 40 - 0.5)) for i in range(40)]}

    def close_to_the_best(in_flight: int) -> int:
        sampler = taught(history)
        for i in range(in_flight):
            sampler.start(100 + i, {"x": 0.5 + 0.002 * i})
        return sum(abs(x - 0.5) < 0.05 for x in proposals(sampler, 60))

    assert 0 < close_to_the_best(8) < close_to_the_best(0)


def test_trials_in_flight_are_never_good() -> None:
    history = {1: [(i / 40, i / 40) for i in range(40)]}
    alone, crowded = taught(history), taught(history)
    for i in range(100):
        crowded.start(100 + i, {"x": 0.5})
    assert crowded.split(1)[0] == alone.split(1)[0]
    assert crowded.split(1)[1] == alone.split(1)[1] | set(range(100, 200))


def test_failed_trial_is_never_good() -> None:
    sampler = taught({1: [(i / 40, i / 40) for i in range(40)]})
    assert 0 in sampler.split(1)[0]
    sampler.tell(0, resource=3, loss=math.nan)
    good, rest = sampler.split(1)
    assert 0 in rest
    assert good == {1, 2}


def test_tpe_avoids_the_region_where_trials_fail() -> None:
    points = [(i / 40, math.inf if i < 20 else 1.0 + i % 3) for i in range(40)]
    assert statistics.median(proposals(taught({1: points}))) > 0.5


def test_equal_losses_are_split_by_trial_id() -> None:
    sampler = taught({1: [(i / 40, 1.0) for i in range(40)]})
    assert sampler.split(1)[0] == {0, 1}


@pytest.mark.medium
def test_hyperopt_tpe_bounds_its_history(capsys: pytest.CaptureFixture[str]) -> None:
    sampler = TpeSampler(SPACE, 0)
    rng = np.random.default_rng(0)
    for trial_id in range(10_000):
        params = SPACE.sample(rng)
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=bowl(params))
    good, rest = sampler.split(1)
    assert len(good) == 25
    assert len(good) + len(rest) == 200
    assert max(rest) == 9_999
    times = []
    for trial_id in range(10_000, 10_020):
        began = time.perf_counter()
        sampler.ask(trial_id)
        times.append(time.perf_counter() - began)
    with capsys.disabled():
        print(f" [a proposal at 10,000 trials: {statistics.median(times) * 1e3:.1f} ms]", end="")


def test_hyperopt_tpe_prints_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        best_of(TpeSampler(SPACE, 0), bowl, 15)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_parameters_of_another_space_are_refused() -> None:
    with pytest.raises(SpaceError) as error:
        TpeSampler(LINE, 0).start(0, {"x": 7})
    assert (error.value.key, error.value.value) == ("x", 7)
