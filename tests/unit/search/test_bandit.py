"""PB2: what it learns, and a comparison with random perturbation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.bandit import BanditExplorer
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.samplers.random import SobolSampler
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.space import Space

UNIT = {"type": "uniform", "low": 0, "high": 1}
SPACE = Space.from_config({"x": UNIT, "y": UNIT})


def slot(trial_id: int, step: int, parent: int | None = None) -> Slot:
    """From 3 * step to 3 * step + 3 epochs."""
    return Slot(
        trial_id=trial_id,
        bracket=0,
        rung=step,
        resource_from=3 * step,
        resource_to=3 * step + 3,
        parent=parent,
    )


def taught(
    gain: Callable[[dict[str, Any], int], float], *, steps: int = 4, members: int = 10
) -> BanditExplorer:
    """An explorer whose members, spread over the space, have trained side by side.

    Args:
        gain: how much the loss of these parameters falls in this step; NaN: it fails.
    """
    explorer = BanditExplorer(SPACE, 0)
    rng = np.random.default_rng(0)
    losses = [10.0] * members
    for step in range(steps):
        for trial_id in range(members):
            # Members come and go: each step sees other parameters.
            params = {"x": float(rng.random()), "y": float(rng.random())}
            explorer.start(slot(trial_id, step), params)
            losses[trial_id] -= gain(params, step)
            explorer.tell(slot(trial_id, step), losses[trial_id])
            losses[trial_id] = 10.0 if math.isnan(losses[trial_id]) else losses[trial_id]
    return explorer


def children(explorer: Explorer, step: int = 4, number: int = 9) -> list[Any]:
    return [explorer.explore(slot(50 + i, step, parent=i), {"x": 0.5, "y": 0.5}) for i in range(number)]


@pytest.mark.medium
def test_pb2_proposes_where_the_loss_falls_fastest() -> None:
    proposed = children(taught(lambda params, step: math.exp(-(((params["x"] - 0.7) / 0.2) ** 2))))
    assert statistics.median(abs(child["x"] - 0.7) for child in proposed) < 0.1


def test_pb2_follows_a_moving_optimum() -> None:
    """The best place moves: a model that does not forget would look for it in the middle."""

    def gain(params: dict[str, Any], step: int) -> float:
        return math.exp(-(((params["x"] - (0.1 + 0.1 * step)) / 0.15) ** 2))

    proposed = children(taught(gain, steps=8), step=8)
    assert statistics.median(child["x"] for child in proposed) > 0.65


def test_pb2_is_robust_to_one_divergence() -> None:
    def gain(params: dict[str, Any], step: int) -> float:
        fall = math.exp(-(((params["x"] - 0.7) / 0.2) ** 2)) * 10.0**-step
        return -1e9 if params["x"] < 0.1 and step == 1 else fall

    proposed = children(taught(gain))
    assert statistics.median(abs(child["x"] - 0.7) for child in proposed) < 0.15


def test_pb2_avoids_regions_of_failures() -> None:
    # Faster and faster towards the edge, and beyond it training breaks.
    proposed = children(taught(lambda params, step: params["x"] if params["x"] < 0.7 else math.nan))
    assert statistics.median(child["x"] for child in proposed) < 0.75
    assert statistics.median(child["x"] for child in proposed) > 0.35


def test_pb2_children_in_flight_differ() -> None:
    def spread(in_flight: bool) -> float:
        explorer = taught(lambda params, step: 0.0, steps=2, members=8)
        proposed = []
        for i in range(6):
            birth = slot(50 + i, 4, parent=0)
            proposed.append(explorer.explore(birth, {"x": 0.5, "y": 0.5}))
            if in_flight:
                explorer.start(birth, proposed[-1])
        places = np.array([[child["x"], child["y"]] for child in proposed])
        return float(np.linalg.norm(places - places.mean(axis=0), axis=1).mean())

    assert spread(in_flight=True) > 1.3 * spread(in_flight=False)


def test_pb2_perturbs_until_there_are_enough_segments() -> None:
    explorer = taught(lambda params, step: 1.0, steps=1)  # losses, and no improvement yet
    assert children(explorer) == children(PerturbationExplorer(SPACE, 0))


def test_pb2_keeps_the_latest_segments() -> None:
    explorer = BanditExplorer(SPACE, 0, num_startup_segments=4, max_segments=10)
    for step in range(40):
        explorer.start(slot(0, step), {"x": 0.5, "y": 0.5})
        explorer.tell(slot(0, step), 1.0 / (step + 1))
    assert len(explorer._known) == 10


@pytest.mark.parametrize(("key", "value"), [("num_startup_segments", 1), ("max_segments", 5)])
def test_bandit_setting_out_of_range_is_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError) as error:
        BanditExplorer(SPACE, 0, **{key: value})  # type: ignore[arg-type]
    assert (error.value.key, error.value.value) == (key, value)


def best_of_a_population(build: Callable[[Space, int], Explorer], seed: int) -> float:
    """The lowest loss that 45 trials reach, where the best place for both parameters moves while they train.

    Each epoch the loss falls by a fourth at the best place, and by next to nothing far from it.
    """
    scheduler = PopulationBasedScheduler(40, 4, population_size=8, max_trials=45)
    explorer, sampler = build(SPACE, seed), SobolSampler(SPACE, seed)
    rng = np.random.default_rng((99, seed))
    params: dict[int, Any] = {}
    losses: dict[int, float] = {}
    running: list[Slot] = []
    while True:
        while len(running) < 4 and (opened := scheduler.next_slot()):
            trial_id, parent = opened.trial_id, opened.parent
            if parent is not None:
                params[trial_id] = explorer.explore(opened, params[parent])
                losses[trial_id] = losses[parent]
            elif opened.is_new:
                params[trial_id], losses[trial_id] = sampler.ask(trial_id), 1.0
            explorer.start(opened, params[trial_id])
            running.append(opened)
        if not running:
            return min(losses.values())
        done = running.pop(int(rng.integers(len(running))))
        for epoch in range(done.resource_from, done.resource_to):
            best = 0.8 - 0.6 * epoch / 40
            off = sum((value - best) ** 2 for value in params[done.trial_id].values())
            losses[done.trial_id] *= 1 - 0.25 * math.exp(-off / (2 * 0.15**2))
        measured = losses[done.trial_id] * (1 + 0.02 * float(rng.standard_normal()))
        explorer.tell(done, measured)
        scheduler.report(done, measured)


@pytest.mark.medium
def test_pb2_beats_random_perturbation() -> None:
    learned = statistics.median(math.log10(best_of_a_population(BanditExplorer, seed)) for seed in range(7))
    stepped = statistics.median(
        math.log10(best_of_a_population(PerturbationExplorer, seed)) for seed in range(7)
    )
    assert learned < stepped - 0.3, "half of the loss"
