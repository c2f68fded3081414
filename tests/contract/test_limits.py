"""Limits: what keeps them comes before what breaks them, in everything that compares results."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.search.explorers.bandit import BanditExplorer
from spark_hpo.search.pareto import Penalty, pareto_ranks
from spark_hpo.search.registry import SAMPLERS, SCHEDULERS, build_sampler, build_scheduler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.synchronous import FullScheduler
from spark_hpo.search.space import Space
from spark_hpo.search.stopping import NoImprovement, RegretBound, TargetReached
from tests.support.study_bench import StudyRunner

LARGE = 2.5e9  # squared errors of prices are as large, and larger than many a number that marks something
SPACE = Space.from_config({"x": {"type": "uniform", "low": 0.0, "high": 1.0}})
PLANE = Space.from_config({name: {"type": "uniform", "low": 0.0, "high": 1.0} for name in "xy"})

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is an extra")
LEARNING = [
    pytest.param(name, marks=needs_optuna if name in ("gp", "cmaes", "nsga2", "optuna_tpe") else ())
    for name in SAMPLERS
    if name not in ("random", "grid", "sobol", "multivariate_tpe")
]


def propose(sampler: Sampler, trials: int, limit: float, *, others: bool = False) -> list[float]:
    """Proposed values of x; its loss falls with x, and x may be at most `limit`."""
    proposed = []
    for trial_id in range(trials):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        x, y = params["x"], params["y"]
        sampler.tell(
            trial_id,
            resource=1,
            loss=LARGE * (2 - x + y),
            others=(y,) if others else (),
            violation=max(0.0, x - limit),
        )
        proposed.append(x)
    return proposed


@pytest.mark.parametrize("name", LEARNING)
def test_sampler_finds_the_best_values_within_the_limit(name: str) -> None:
    xs = propose(build_sampler(name, PLANE, 3), 120 if name != "gp" else 40, 0.4)
    late = xs[len(xs) * 2 // 3 :]
    assert np.mean([0.2 < x <= 0.4 for x in late]) > 0.3, "uniform draws: 0.2"


@pytest.mark.parametrize("name", LEARNING)
def test_sampler_is_led_to_the_limit_where_every_trial_breaks_it(name: str) -> None:
    xs = propose(build_sampler(name, PLANE, 3), 120 if name != "gp" else 40, -0.1)
    late = xs[len(xs) * 2 // 3 :]
    assert np.mean(late) < 0.35, "uniform draws: 0.5"


@pytest.mark.parametrize(
    "name", ["tpe", *(pytest.param(n, marks=needs_optuna) for n in ("nsga2", "optuna_tpe"))]
)
def test_sampler_of_two_objectives_searches_within_the_limit(name: str) -> None:
    xs = propose(build_sampler(name, PLANE, 3, num_objectives=2), 120, 0.4, others=True)
    assert np.mean([x <= 0.4 for x in xs[80:]]) > 0.55, "uniform draws: 0.4"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_prefers_feasible_trials_whatever_their_losses(name: str) -> None:
    """Odd trials break the limit with tiny losses; even ones keep it with large ones."""
    scheduler = build_scheduler(name, max_resource=9, max_trials=30)
    furthest: dict[int, int] = {}
    while not scheduler.is_done():
        slot = scheduler.next_slot()
        assert slot is not None
        furthest[slot.trial_id] = slot.resource_to
        broken = slot.trial_id % 2
        scheduler.report(slot, slot.trial_id + (0.0 if broken else LARGE), violation=0.1 * broken)
    if isinstance(scheduler, FullScheduler):
        return
    trained = [np.mean([furthest[i] == 9 for i in furthest if i % 2 == odd]) for odd in (0, 1)]
    assert trained[0] > trained[1]


@pytest.mark.parametrize("name", ["successive_halving", "asha"])
def test_scheduler_promotes_the_smaller_violation_where_none_is_feasible(name: str) -> None:
    scheduler = build_scheduler(name, max_resource=3, max_trials=3)
    slots = [scheduler.next_slot() for _ in range(3)]
    for slot, loss, violation in zip(slots, (0.1, 0.3, 0.2), (0.5, 0.2, 0.3), strict=True):
        assert slot is not None
        scheduler.report(slot, loss, violation=violation)
    promoted = scheduler.next_slot()
    assert promoted is not None
    assert promoted.trial_id == 1


def test_explorer_takes_a_step_towards_the_limit_for_an_improvement() -> None:
    explorer = BanditExplorer(SPACE, 0, num_startup_segments=4)

    def slot(trial_id: int, start: int) -> Slot:
        return Slot(trial_id=trial_id, bracket=0, rung=start, resource_from=start, resource_to=start + 1)

    for trial_id in range(40):
        x = (trial_id % 20) / 20
        for start, violation in enumerate((1.0, x)):  # a small x has reduced the violation most
            explorer.start(slot(trial_id, start), {"x": x})
            explorer.tell(slot(trial_id, start), 2 - x, violation=violation)
    child = Slot(trial_id=50, bracket=0, rung=2, resource_from=2, resource_to=3, parent=1)
    assert explorer.explore(child, {"x": 0.9})["x"] < 0.5


def test_penalty_makes_dominance_the_constrained_one() -> None:
    points = [((0.5, 4.0), 0.0), ((LARGE, 2.0), 0.0), ((0.1, 0.1), 0.01), ((0.0, 0.0), 0.02)]
    penalty = Penalty.among([losses for losses, violation in points if not violation])
    assert pareto_ranks([penalty.losses(*point) for point in points]).tolist() == [0, 0, 1, 2]


def test_penalty_without_feasible_points_orders_by_violation() -> None:
    penalty = Penalty.among([], num_objectives=2)
    losses = [penalty.losses((0.0, 0.0), violation) for violation in (0.1, 2.0, 1e9)]
    assert losses == sorted(losses)
    assert all(math.isfinite(loss) for each in losses for loss in each)


def test_target_is_not_reached_by_a_trial_that_breaks_a_limit() -> None:
    rule = TargetReached(0.5)
    rule.observe(resource=9, loss=0.1, seconds=1.0, violation=0.1)
    assert rule.reason() is None
    rule.observe(resource=9, loss=0.4, seconds=1.0)
    assert rule.reason() == "target"


def test_no_improvement_counts_a_first_feasible_trial_as_better() -> None:
    rule = NoImprovement(9, 2)
    for loss, violation in ((0.1, 0.5), (0.1, 0.5), (0.9, 0.0), (0.5, 0.1)):
        rule.observe(resource=9, loss=loss, seconds=1.0, violation=violation)
    assert rule.reason() is None
    rule.observe(resource=9, loss=1.0, seconds=1.0)
    assert rule.reason() == "no_improvement"


def test_regret_bound_ignores_infeasible_trials() -> None:
    rule = RegretBound(9, 0.5, num_trials=10)
    for i in range(30):
        rule.observe(resource=9, loss=0.1 * i, seconds=1.0, violation=1.0 if i < 21 else 0.0)
    assert rule.expected_gain == math.inf


@pytest.mark.parametrize("scheduler", ["full", "hyperband", "asha"])
def test_best_trial_keeps_the_limits_and_survives_a_restart(tmp_path: Path, scheduler: str) -> None:
    """The limit excludes the best losses, and feasible losses are above 1e9."""
    large = Objective(
        metric="loss",
        mode=Mode.MIN,
        penalties=(("cost", LARGE),),
        limits=(Limit(metric="cost", at_least=9.0),),
    )
    bench = StudyRunner(tmp_path, large)
    study = bench.study(sampler="tpe", scheduler=scheduler, trials=30)
    study.run()
    assert study.best is not None
    assert large.is_feasible(study.best.metrics)
    assert large.value(study.best.loss) > LARGE
    feasible = [t for t in study.trials.values() if t.metrics and large.is_feasible(t.metrics)]
    assert study.best.loss == min(t.loss for t in feasible)
    again = bench.study(sampler="tpe", scheduler=scheduler, trials=30)
    again.run()
    assert again.best is not None
    assert again.best.trial_id == study.best.trial_id


class UnawareScheduler:
    """A plugin that was written before there were limits: it takes a loss and nothing else."""

    max_resource = 9

    def __init__(self) -> None:
        self._scheduler = FullScheduler(9, max_trials=20)
        self.losses: list[float] = []

    def next_slot(self) -> Slot | None:
        return self._scheduler.next_slot()

    def report(self, slot: Slot, loss: float) -> list[int]:
        self.losses.append(loss)
        return self._scheduler.report(slot, loss)

    def close(self) -> list[int]:
        return self._scheduler.close()

    def is_done(self) -> bool:
        return self._scheduler.is_done()


def test_scheduler_that_ignores_limits_is_told_of_a_failure(tmp_path: Path) -> None:
    limited = Objective(metric="loss", mode=Mode.MIN, limits=(Limit(metric="cost", at_most=9.0),))
    scheduler = UnawareScheduler()
    study = StudyRunner(tmp_path, limited).study(scheduler=scheduler)  # type: ignore[arg-type]
    study.run()
    costs = [trial.metrics["cost"] for trial in study.trials.values()]
    assert sorted(map(math.isfinite, scheduler.losses)) == sorted(cost <= 9 for cost in costs)
    assert {math.isfinite(loss) for loss in scheduler.losses} == {True, False}
