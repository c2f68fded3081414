"""Population based training, perturbation, and samplers that evolve a population."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.methods import METHODS, find_method
from spark_hpo.search.registry import EXPLORERS, SAMPLERS, SCHEDULERS
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.evolution import DifferentialEvolutionSampler, ParticleSwarmSampler
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.median_stopping import MedianStoppingScheduler
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.space import Space

UNIT = {"type": "uniform", "low": 0, "high": 1}
SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "channels": {"type": "choice", "options": [16, 32]},
        "layers": {"type": "int", "low": 1, "high": 5},
        "optimizer": {"type": "choice", "options": ["adam", {"name": "sgd", "momentum": UNIT}]},
    }
)


def test_worst_member_is_replaced_by_a_child_of_the_best() -> None:
    scheduler = PopulationBasedScheduler(9, 3, population_size=4, max_trials=20)
    slots = [scheduler.next_slot() for _ in range(4)]
    assert scheduler.next_slot() is None, "the population is complete"
    out = [
        scheduler.report(slot, loss) for slot, loss in zip(slots, (3.0, 1.0, 2.0, 4.0), strict=True) if slot
    ]
    assert out == [[], [], [], [3]]
    child = scheduler.next_slot()
    assert child is not None
    assert child.is_new
    assert (child.trial_id, child.parent, child.resource_from, child.resource_to) == (4, 1, 3, 6)
    onwards = scheduler.next_slot()
    assert onwards is not None
    assert (onwards.trial_id, onwards.parent, onwards.resource_from) == (0, None, 3)


def test_fastest_member_is_judged_by_its_previous_step() -> None:
    """At its own step it is alone each time: what the others show of the step before tells against it."""
    scheduler = PopulationBasedScheduler(30, 3, population_size=4, max_trials=20)
    running = [scheduler.next_slot() for _ in range(4)]
    order, out = [0, 1, 2, 3], []
    for step in range(2):
        for trial_id in order:
            slot = next(slot for slot in running if slot and slot.trial_id == trial_id and slot.rung == step)
            out += scheduler.report(slot, 4.0 if trial_id == 0 else 1.0 + 0.1 * trial_id)
            running.append(scheduler.next_slot())
    assert out == [0]
    child = next(slot for slot in running if slot and slot.parent is not None)
    assert (child.parent, child.resource_from) == (1, 3)


def test_failed_member_is_replaced_by_a_child_of_a_good_one() -> None:
    scheduler = PopulationBasedScheduler(9, 3, population_size=2)
    a, b = scheduler.next_slot(), scheduler.next_slot()
    assert a is not None
    assert b is not None
    scheduler.report(a, 1.0)
    assert scheduler.report(b, math.nan) == [1]
    child = scheduler.next_slot()
    assert child is not None
    assert child.parent == 0


def test_children_are_spread_over_the_best_members() -> None:
    scheduler = PopulationBasedScheduler(100, 10, population_size=8, quantile=0.25, max_trials=500)
    rng = np.random.default_rng(0)
    parents: list[int] = []
    while slot := scheduler.next_slot():
        if slot.parent is not None:
            parents.append(slot.parent)
        scheduler.report(slot, float(rng.random()))
    assert len(parents) > 20
    assert len(set(parents)) > len(parents) / 3


@pytest.mark.parametrize(("name", "value"), [("population_size", 1), ("quantile", 0.6), ("interval", 0)])
def test_setting_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        PopulationBasedScheduler(9, **{name: value})  # type: ignore[arg-type]
    assert (error.value.key, error.value.value) == (name, value)


def birth(trial_id: int) -> Slot:
    """The first slot of a child of trial 0."""
    return Slot(trial_id=trial_id, bracket=0, rung=1, resource_from=3, resource_to=6, parent=0)


def test_perturbation_changes_only_continuous_numbers_by_default() -> None:
    explorer = PerturbationExplorer(SPACE, 0)
    parent = {"lr": 0.01, "channels": 32, "layers": 3, "optimizer": {"name": "sgd", "momentum": 0.5}}
    children = [explorer.explore(birth(i), parent) for i in range(200)]
    assert all(SPACE.validate(child) == child for child in children)
    assert all(c["channels"] == 32 and c["layers"] == 3 and c["optimizer"]["name"] == "sgd" for c in children)
    assert all(child["lr"] != 0.01 for child in children)
    steps = [abs(math.log10(child["lr"] / 0.01)) for child in children]
    perturbed = sum(math.isclose(step, 0.3, abs_tol=1e-9) for step in steps)  # a tenth of three decades
    assert 0.65 < perturbed / 200 < 0.85
    assert explorer.explore(birth(7), parent) == children[7]


def test_perturbation_changes_only_the_given_parameters() -> None:
    explorer = PerturbationExplorer(SPACE, 0, parameters=["channels", "optimizer.momentum"])
    parent = {"lr": 0.01, "channels": 32, "layers": 3, "optimizer": {"name": "sgd", "momentum": 0.99}}
    children = [explorer.explore(birth(i), parent) for i in range(60)]
    assert {child["lr"] for child in children} == {0.01}
    assert {child["channels"] for child in children} == {16, 32}
    assert all(child["optimizer"]["momentum"] != 0.99 for child in children)
    with pytest.raises(ConfigError, match=r"'optimizer\.momentum'") as error:
        PerturbationExplorer(SPACE, 0, parameters=["momentum"])
    assert error.value.key == "parameters"


def test_median_stopping_stops_trials_below_the_median() -> None:
    scheduler = MedianStoppingScheduler(9, 3, num_startup_trials=3, max_trials=20)
    for loss in (1.0, 2.0, 3.0):
        for _ in range(3):  # one slot: each goes on to the end
            slot = scheduler.next_slot()
            assert slot is not None
            assert scheduler.report(slot, loss) == []
    bad = scheduler.next_slot()
    assert bad is not None
    assert scheduler.report(bad, 2.5) == [3], "the median is 2"
    good = scheduler.next_slot()
    assert good is not None
    assert scheduler.report(good, 1.5) == []


@pytest.mark.parametrize("sampler", [DifferentialEvolutionSampler, ParticleSwarmSampler])
def test_population_based_training_beats_random_search(
    sampler: type[DifferentialEvolutionSampler] | type[ParticleSwarmSampler],
) -> None:
    space = Space.from_config({f"x{i}": UNIT for i in range(5)})

    def best(one: Sampler) -> float:
        losses = []
        for trial_id in range(200):
            params = one.ask(trial_id)
            one.start(trial_id, params)
            losses.append(sum((x - 0.3) ** 2 for x in params.values()))
            one.tell(trial_id, resource=1, loss=losses[-1])
        return min(losses)

    evolved = statistics.median(best(sampler(space, seed)) for seed in range(5))
    assert evolved < statistics.median(best(RandomSampler(space, seed)) for seed in range(5)) / 3


def test_methods_name_existing_parts() -> None:
    for method in METHODS.values():
        assert method.sampler in SAMPLERS
        assert method.scheduler in SCHEDULERS
        assert method.explorer in EXPLORERS
    with pytest.raises(ConfigError, match="'bohb'") as error:
        find_method("bhob")
    assert (error.value.key, error.value.value) == ("method", "bhob")


def test_methods_keep_their_settings_of_earlier_versions() -> None:
    assert find_method("default", 1).scheduler_settings == {}
    assert find_method("default", 2).sampler_settings == {"enough": 10, "learns_from_paused": True}
    assert find_method("default", 4).sampler_settings == {}
    assert find_method("default") == METHODS["default"] != find_method("default", 2)
    assert find_method("bohb", 1) == METHODS["bohb"]
