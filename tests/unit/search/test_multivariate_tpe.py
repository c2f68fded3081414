"""The multivariate TPE."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.methods import METHODS
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.parzen import Bandwidth, ParzenEstimator
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.transfer import EarlierTrial, warm_start
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import Params
from tests.support.asked import best_of, proposals, tell

UNIT = {"type": "uniform", "low": 0, "high": 1}
LINE = Space.from_config({"x": UNIT})
PLANE = Space.from_config({"x": UNIT, "y": UNIT})
MIXED = Space.from_config(
    {
        "x": {"type": "uniform", "low": -5, "high": 5},
        "lr": {"type": "loguniform", "low": 1e-5, "high": 1},
        "layers": {"type": "int", "low": 1, "high": 6},
        "kind": {
            "type": "choice",
            "options": ["flat", {"name": "curved", "m": {"type": "normal", "mu": 0, "sigma": 1}}],
        },
    }
)


def bowl(params: Params) -> float:
    extra = 3.0 if params["kind"] == "flat" else (params["kind"]["m"] - 0.5) ** 2
    place = (params["x"] - 1) ** 2 + math.log10(params["lr"] / 0.01) ** 2
    return float(place + extra + 0.3 * abs(params["layers"] - 4))


def taught(points: Mapping[int, Sequence[tuple[float, float]]], **settings: Any) -> MultivariateTpeSampler:
    return tell(MultivariateTpeSampler(LINE, 0, **settings), points)


def test_it_beats_random_search() -> None:
    seeds = range(7)
    tpe = statistics.median(best_of(MultivariateTpeSampler(MIXED, seed), bowl, 80) for seed in seeds)
    random = statistics.median(best_of(RandomSampler(MIXED, seed), bowl, 80) for seed in seeds)
    assert tpe < random / 2


def test_tpe_models_interactions() -> None:
    def valley(params: Params) -> float:
        return float(100 * (params["x"] - params["y"]) ** 2)

    def proposal(seed: int) -> Params:
        sampler, rng = MultivariateTpeSampler(PLANE, seed, random_fraction=0.0), np.random.default_rng(seed)
        for trial_id in range(150):
            params = PLANE.sample(rng)
            sampler.start(trial_id, params)
            sampler.tell(trial_id, resource=1, loss=valley(params))
        return sampler.ask(1000)

    pairs = [proposal(seed) for seed in range(30)]  # each has trials of its own, and a favourite place
    x, y = [p["x"] for p in pairs], [p["y"] for p in pairs]
    assert np.corrcoef(x, y)[0, 1] > 0.5


def test_tpe_learns_from_the_highest_level_with_enough_results() -> None:
    grid = np.linspace(0.01, 0.99, 30)
    low = [(x, abs(x - 0.2)) for x in grid]
    high = [(x, abs(x - 0.8)) for x in grid[::2]]
    assert taught({1: low, 9: high}).level == 1
    sampler = taught({1: low, 9: [*high, *high]}, random_fraction=0.0)
    assert sampler.level == 9
    assert abs(statistics.median(proposals(sampler)) - 0.8) < 0.15


def test_tpe_skips_a_noisy_level() -> None:
    def told(agree: bool) -> MultivariateTpeSampler:
        sampler = MultivariateTpeSampler(LINE, 0)
        for trial_id in range(40):
            sampler.start(trial_id, {"x": trial_id / 40})
            sampler.tell(trial_id, resource=1, loss=float(trial_id))
        for trial_id in range(0, 40, 3):
            loss = trial_id if agree else (trial_id * 7919) % 41
            sampler.tell(trial_id, resource=3, loss=float(loss))
        return sampler

    assert told(agree=True).level == 1
    assert told(agree=False).level == 3, "the next one has more than half of enough"


def test_tpe_avoids_trials_that_paused_below_its_level() -> None:
    def split(learns_from_paused: bool) -> tuple[list[int], list[int]]:
        sampler = MultivariateTpeSampler(LINE, 0, enough=10, learns_from_paused=learns_from_paused)
        for trial_id in range(40):
            sampler.start(trial_id, {"x": trial_id / 40})
            sampler.tell(trial_id, resource=1, loss=float(trial_id))
        for trial_id in range(10):
            sampler.tell(trial_id, resource=3, loss=float(trial_id))
        assert sampler.level == 3
        return sampler.split(3)

    assert split(learns_from_paused=False) == ([0, 1], list(range(2, 10)))
    assert split(learns_from_paused=True) == ([0, 1], list(range(2, 40)))


def test_tpe_avoids_failures_and_trials_in_flight() -> None:
    grid = np.linspace(0.01, 0.99, 40)
    sampler = taught({1: [(x, abs(x - 0.5)) for x in grid]}, random_fraction=0.0)
    free = sum(abs(x - 0.5) < 0.05 for x in proposals(sampler))
    for trial_id in range(40, 60):
        sampler.start(trial_id, {"x": 0.5})
    in_flight = sum(abs(x - 0.5) < 0.05 for x in proposals(sampler))
    for trial_id in range(40, 60):
        sampler.tell(trial_id, resource=1, loss=math.inf)
    failed = sum(abs(x - 0.5) < 0.05 for x in proposals(sampler))
    assert in_flight < free
    assert failed < free


def test_tpe_repeats_no_configuration_while_others_are_left() -> None:
    space = Space.from_config({"n": {"type": "int", "low": 1, "high": 30}})
    sampler = MultivariateTpeSampler(space, 0, random_fraction=0.0, enough=5, num_startup_trials=5)
    seen: list[int] = []
    for trial_id in range(20):
        seen.append(sampler.ask(trial_id)["n"])
        sampler.start(trial_id, {"n": seen[-1]})
        sampler.tell(trial_id, resource=1, loss=float(abs(seen[-1] - 17)))
    modelled = seen[6:]
    assert len(set(modelled)) == len(modelled)
    assert 17 in seen


def test_tpe_starts_around_the_defaults() -> None:
    space = Space.from_config({"x": {**UNIT, "default": 0.7}})
    start = [MultivariateTpeSampler(space, 0).ask(i)["x"] for i in range(100)]
    plain = [MultivariateTpeSampler(LINE, 0).ask(i)["x"] for i in range(100)]
    near = [sum(abs(x - 0.7) < 0.2 for x in draws) for draws in (start, plain)]
    assert near[0] > near[1] + 15


def test_tpe_starts_from_earlier_studies_and_outweighs_them() -> None:
    earlier = [
        EarlierTrial(params={"x": x, "gone": 1}, resource=9, loss=abs(x - 0.3)) for x in np.linspace(0, 1, 40)
    ]
    knowledge = warm_start(LINE, [earlier])
    sampler = MultivariateTpeSampler(LINE, 0, random_fraction=0.0)
    sampler.learn_from(knowledge)
    assert abs(statistics.median(proposals(sampler)) - 0.3) < 0.1
    for trial_id, x in enumerate(np.linspace(0.01, 0.99, 150)):
        sampler.start(trial_id, {"x": float(x)})
        sampler.tell(trial_id, resource=9, loss=abs(float(x) - 0.8))
    assert abs(statistics.median(proposals(sampler)) - 0.8) < 0.1


def test_tpe_proposals_meet_the_constraints() -> None:
    space = Space.from_config({"x": UNIT, "y": UNIT}, constraints=["y <= x", "x + y < 1.5"])
    sampler = MultivariateTpeSampler(space, 0)
    for trial_id in range(60):
        params = sampler.ask(trial_id)
        assert params["y"] <= params["x"]
        assert params["x"] + params["y"] < 1.5
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=params["x"] - params["y"])


@pytest.mark.parametrize("name", ["gamma", "random_fraction"])
def test_tpe_share_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        MultivariateTpeSampler(LINE, 0, **{name: 1.5})  # type: ignore[arg-type]
    assert (error.value.key, error.value.value) == (name, 1.5)


@pytest.mark.medium
def test_proposal_after_10000_trials_takes_at_most_20_ms(capsys: pytest.CaptureFixture[str]) -> None:
    settings = METHODS["default"].sampler_settings
    sampler, rng = MultivariateTpeSampler(MIXED, 0, **settings), np.random.default_rng(0)
    for trial_id in range(10_000):
        params = MIXED.sample(rng)
        sampler.start(trial_id, params)
        for resource in (1, 3, 9) if trial_id % 9 == 0 else (1, 3) if trial_id % 3 == 0 else (1,):
            loss = math.inf if trial_id % 20 == 1 else bowl(params)
            sampler.tell(trial_id, resource=resource, loss=loss)
    for trial_id in range(10_000, 11_000):  # in flight
        sampler.start(trial_id, MIXED.sample(rng))
    seconds = []
    for trial_id in range(11_000, 11_040):
        began = time.process_time()
        sampler.ask(trial_id)
        seconds.append(time.process_time() - began)
    median = statistics.median(seconds)
    with capsys.disabled():
        print(f" [a proposal at 10,000 trials: {1000 * median:.1f} ms]", end="")
    assert median < 0.02


@pytest.mark.parametrize(
    "config",
    [
        {"x": UNIT},
        {"n": {"type": "int", "low": 1, "high": 7}},
        {"q": {"type": "qloguniform", "low": 1, "high": 64, "q": 1}},
        {"c": {"type": "choice", "options": ["a", "b", "c"], "weights": [0.2, 0.3, 0.5]}},
        {"z": {"type": "normal", "mu": 3, "sigma": 2}},
    ],
)
def test_parzen_density_matches_its_samples(config: dict[str, Any]) -> None:
    space = Space.from_config(config)
    axes, rng = Axes(space), np.random.default_rng(0)
    rows = np.stack([axes.row(space.sample(rng)) for _ in range(5)])
    estimator = ParzenEstimator(axes, rows, Bandwidth(scale=0.3, floor=0.1))
    drawn = estimator.sample(np.random.default_rng(1), 40_000)[:, 0]
    (axis,) = axes.axes
    if axis.options:
        places, widths = np.arange(axis.options, dtype=float), np.ones(axis.options)
    elif axis.edges is not None:
        places, widths = (axis.edges[1:] + axis.edges[:-1]) / 2, np.diff(axis.edges)
    else:
        ends = np.linspace(0, 1, 201)
        places, widths = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    mass = np.exp(estimator.log_density(places[:, None])) * widths
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    if axis.options or axis.edges is not None:
        shares = [np.isclose(drawn, place).mean() for place in places]
        assert shares == pytest.approx(mass.tolist(), abs=0.012)
    else:
        quarters = [
            ((drawn >= a) & (drawn < b)).mean() for a, b in itertools.pairwise([0, 0.25, 0.5, 0.75, 1.01])
        ]
        assert quarters == pytest.approx([float(part.sum()) for part in np.split(mass, 4)], abs=0.012)
