"""The built-in samplers against the contract."""

from __future__ import annotations

import math
import statistics
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.search.registry import build_sampler
from spark_hpo.search.sampler import Outcome, Sampler
from spark_hpo.search.samplers.evolution import (
    DifferentialEvolutionSampler,
    GeneticSampler,
    ParticleSwarmSampler,
)
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.optuna_samplers import (
    CmaEsSampler,
    GaussianProcessSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
)
from spark_hpo.search.samplers.random import RandomSampler, SobolSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.samplers.wrappers import ConstrainedSampler, EnqueuedSampler, WrappedSampler
from spark_hpo.search.space import Space
from spark_hpo.testing import SamplerContract
from spark_hpo.testing.samplers import SPACE
from spark_hpo.trial import FailureKind, Params

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is an extra")


def allowed(configurations: list[Params]) -> list[Params]:
    return [params for params in configurations if params["layers"] != 2 or params["batch"] == 64]


class WithMemory(WrappedSampler):
    """Tells a sampler what memory each trial has used, and that those that failed had too little."""

    def tell(self, trial_id: int, **result: Any) -> None:
        failure = None if math.isfinite(result["loss"]) else FailureKind.MEMORY
        used = 10**9 + trial_id % 5 * 10**8
        self.note(trial_id, Outcome(units=1, seconds=1.0, failure=failure, memory_bytes=used))
        super().tell(trial_id, **result)


class TestRandomSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return RandomSampler(space, seed)

    def test_another_seed_gives_other_proposals(self) -> None:
        assert self.build(SPACE, 1).ask(0) != self.build(SPACE, 2).ask(0) != self.build(SPACE, 2).ask(1)


class TestGridSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return GridSampler(space, seed, resolution=2)


class TestMultivariateTpeSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return MultivariateTpeSampler(space, seed)

    def test_another_seed_gives_other_proposals(self) -> None:
        assert self.run(seed=1)[0].ask(30) != self.run(seed=2)[0].ask(30)


class TestTpeThatLearnsFromFailures(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return MultivariateTpeSampler(space, seed, learns_from_failures=True)


class TestTpeThatLearnsFromMemory(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return WithMemory(
            MultivariateTpeSampler(space, seed, learns_from_failures=True, learns_from_memory=True)
        )


class TestMultifidelityGpThatLearnsFromMemory(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return WithMemory(MultifidelityGpSampler(space, seed, learns_from_memory=True))


class TestMultifidelityGpSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return MultifidelityGpSampler(space, seed)


class TestTpeSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return TpeSampler(space, seed)

    def test_another_seed_gives_other_proposals(self) -> None:
        assert self.run(seed=1)[0].ask(30) != self.run(seed=2)[0].ask(30)

    def test_model_handles_a_space_without_numbers(self) -> None:
        for config in ({"a": 1}, {"a": {"type": "choice", "options": ["only"]}}):
            space = Space.from_config(config)
            sampler = TpeSampler(space, 0, num_startup_trials=0)
            for trial_id in range(6):
                sampler.start(trial_id, space.validate(sampler.ask(trial_id)))
                sampler.tell(trial_id, resource=1, loss=1.0)


class TestTpeWithDefaultsAndConstraints(SamplerContract):
    """What surrounds a sampler keeps to the contract too."""

    def build(self, space: Space, seed: int) -> Sampler:
        if space is SPACE:
            space = SPACE.constrained(["lr < 0.05 or layers < 3"])
        return build_sampler("tpe", space, seed)


class TestEnqueuedAndConstrainedSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        if space is not SPACE:
            return EnqueuedSampler(ConstrainedSampler(RandomSampler(space, seed), space, seed), [])
        first = [SPACE.sample(np.random.default_rng(i)) for i in range(3)]
        return build_sampler(
            "de", SPACE.constrained(["layers != 2 or batch == 64"]), seed, enqueue=allowed(first)
        )


class TestSobolSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return SobolSampler(space, seed)


class TestDifferentialEvolutionSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return DifferentialEvolutionSampler(space, seed, population_size=8)


class TestParticleSwarmSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return ParticleSwarmSampler(space, seed, population_size=8)


class TestGeneticSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return GeneticSampler(space, seed, population_size=8)


@needs_optuna
class TestOptunaTpeSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return OptunaTpeSampler(space, seed)


@needs_optuna
class TestGaussianProcessSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return GaussianProcessSampler(space, seed, num_startup_trials=28)  # a second each, afterwards


@needs_optuna
class TestThompsonSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return GaussianProcessSampler(space, seed, num_startup_trials=8, acquisition="thompson")


@needs_optuna
class TestCmaEsSampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return CmaEsSampler(space, seed)


@needs_optuna
class TestNsga2Sampler(SamplerContract):
    def build(self, space: Space, seed: int) -> Sampler:
        return Nsga2Sampler(space, seed, population_size=5)


# Several objectives ---------------------------------------------------------------------------------------

FRONT_SPACE = Space.from_config({f"x{i}": {"type": "uniform", "low": 0, "high": 1} for i in range(5)})
REFERENCE = (1.1, 7.0)


def zdt1(params: Params) -> tuple[float, float]:
    """Two objectives (Zitzler, Deb and Thiele 2000). On the front all parameters but the first are 0."""
    first, *rest = params.values()
    distance = 1 + 9 * sum(rest) / len(rest)
    return first, distance * (1 - math.sqrt(first / distance))


def missed(sampler: Sampler, num_trials: int) -> float:
    """The hypervolume between the front of ZDT1 and the points that a search has found."""
    points = []
    for trial_id in range(num_trials):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        points.append(zdt1(params))
        sampler.tell(trial_id, resource=1, loss=points[-1][0], others=points[-1][1:])
    found, (right, height) = 0.0, REFERENCE
    for x, y in sorted(points):
        if x < right and y < height:
            found += (right - x) * (height - y)
            height = y
    return right * REFERENCE[1] - 1 / 3 - found  # the front itself leaves a third


class SeveralObjectivesContract(SamplerContract):
    """What learns from several objectives passes these too."""

    num_objectives = 2
    name: str
    num_trials = 100
    most_missed: float  # of the hypervolume that random search misses

    def build(self, space: Space, seed: int) -> Sampler:
        return build_sampler(self.name, space, seed, num_objectives=2)

    @pytest.mark.medium
    def test_front_is_better_than_that_of_random_search(self) -> None:
        seeds = range(3)
        here = [missed(self.build(FRONT_SPACE, seed), self.num_trials) for seed in seeds]
        random = [missed(RandomSampler(FRONT_SPACE, seed), self.num_trials) for seed in seeds]
        assert statistics.median(here) < self.most_missed * statistics.median(random)

    def test_study_in_which_every_trial_violates_a_limit(self) -> None:
        objective = Objective(
            metric="loss",
            mode=Mode.MIN,
            extra_objectives=(("size", Mode.MIN),),
            limits=(Limit(metric="size", at_most=-100.0),),
        )
        sampler = self.build(SPACE, 1)
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            metrics = dict(zip(("loss", "size"), self.losses(params, 0), strict=True))
            loss, others = objective.loss(metrics), objective.extra_losses(metrics)
            violation = objective.violation(metrics)
            sampler.tell(trial_id, resource=1, loss=loss, others=others, violation=violation)
        SPACE.validate(sampler.ask(30))


class TestTpeOfTwoObjectives(SeveralObjectivesContract):
    name = "tpe"
    most_missed = 0.4

    def test_tpe_splits_by_pareto_fronts(self) -> None:
        sampler = MultivariateTpeSampler(FRONT_SPACE, 0, gamma=0.25)
        for trial_id in range(40):  # the first ten are on the front: low in one, high in the other
            sampler.start(trial_id, FRONT_SPACE.sample(np.random.default_rng(trial_id)))
            worse = trial_id // 10 * 10
            losses = (trial_id % 10 + worse, 10 - trial_id % 10 + worse)
            sampler.tell(trial_id, resource=1, loss=losses[0], others=losses[1:])
        good, rest = sampler.split(1)
        assert good == list(range(10))
        assert rest == list(range(10, 40))


class TestMultifidelityGpOfTwoObjectives(SeveralObjectivesContract):
    name = "multifidelity_gp"
    most_missed = 0.4


@needs_optuna
class TestNsga2OfTwoObjectives(SeveralObjectivesContract):
    name = "nsga2"
    num_trials = 200  # ten generations
    most_missed = 0.7


@needs_optuna
class TestOptunaTpeOfTwoObjectives(SeveralObjectivesContract):
    name = "optuna_tpe"
    most_missed = 0.6
