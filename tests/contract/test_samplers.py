"""What every sampler keeps to."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.search.registry import build_sampler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.evolution import DifferentialEvolutionSampler, ParticleSwarmSampler
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.optuna_samplers import (
    CmaEsSampler,
    GaussianProcessSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
)
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.sobol import SobolSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.samplers.wrappers import ConstrainedSampler, EnqueuedSampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is an extra")

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "layers": {"type": "int", "low": 1, "high": 3},
        "dropout": {"type": "quniform", "low": 0, "high": 0.5, "q": 0.1},
        "noise": {"type": "lognormal", "mu": 0, "sigma": 1},
        "batch": {"type": "choice", "options": [32, 64], "weights": [0.25, 0.75]},
        "epochs": 3,
        "optimizer": {
            "type": "choice",
            "options": [
                "adam",
                None,
                {
                    "name": "sgd",
                    "momentum": {"type": "uniform", "low": 0, "high": 0.99},
                    "decay": {
                        "type": "choice",
                        "options": [0, {"rate": {"type": "normal", "mu": 0, "sigma": 1}}],
                    },
                },
            ],
        },
    }
)


def loss_of(params: Params, trial_id: int) -> float:
    return math.inf if trial_id % 7 == 3 else abs(math.log(params["lr"] / 0.003)) + params["layers"]


def size_of(params: Params, trial_id: int) -> float:
    """A second objective, which pulls the other way."""
    return math.inf if trial_id % 11 == 5 else -params["layers"] - math.log(params["lr"])


def allowed(configurations: list[Params]) -> list[Params]:
    return [params for params in configurations if params["layers"] != 2 or params["batch"] == 64]


def is_plain_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(type(k) is str and is_plain_json(v) for k, v in value.items())
    if type(value) is list:
        return all(map(is_plain_json, value))
    return value is None or type(value) in (bool, int, float, str)


class SamplerContract:
    """Every sampler passes these. A subclass says how to build one, and which further losses a trial has."""

    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        raise NotImplementedError

    def others(self, params: Params, trial_id: int) -> tuple[float, ...]:
        return ()

    def played(self, num_trials: int = 30, seed: int = 1) -> tuple[Sampler, list[tuple[str, int, Any]]]:
        """A sampler after some trials, two in flight at a time and some promoted, and the record of it."""
        sampler, record = self.build(seed), []
        proposals: dict[int, Params] = {}
        for trial_id in range(num_trials):
            params = proposals[trial_id] = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            record.append(("start", trial_id, params))
            reported = trial_id - 2
            if reported >= 0:
                levels = (1, 3) if reported % 3 == 0 else (1,)
                for resource in levels:
                    loss = loss_of(proposals[reported], reported)
                    others = self.others(proposals[reported], reported)
                    sampler.tell(reported, resource=resource, loss=loss, others=others)
                    record.append(("tell", reported, (resource, loss, others)))
        return sampler, record

    def test_what_it_proposes_fits_the_space_and_is_plain_json(self) -> None:
        _, record = self.played()
        proposals = [what for event, _, what in record if event == "start"]
        for params in proposals:
            assert SPACE.validate(params) == params
            assert is_plain_json(params)
            assert json.loads(json.dumps(params)) == params

    def test_asking_twice_gives_the_same_answer(self) -> None:
        sampler, _ = self.played()
        assert sampler.ask(30) == sampler.ask(30)

    def test_asking_changes_nothing(self) -> None:
        sampler, _ = self.played()
        once = sampler.ask(31)
        for trial_id in range(30, 40):
            sampler.ask(trial_id)
        assert sampler.ask(31) == once

    def test_two_samplers_with_one_seed_propose_the_same(self) -> None:
        assert self.played()[1] == self.played()[1]

    def test_a_record_replayed_without_asking_gives_the_same_next_proposal(self) -> None:
        sampler, record = self.played()
        again = self.build()
        for event, trial_id, what in json.loads(json.dumps(record)):
            if event == "start":
                again.start(trial_id, what)
            else:
                resource, loss, others = what
                again.tell(trial_id, resource=resource, loss=loss, others=tuple(others))
        assert again.ask(30) == sampler.ask(30)

    def test_it_goes_on_when_every_trial_fails(self) -> None:
        sampler = self.build()
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            SPACE.validate(params)
            sampler.start(trial_id, params)
            others = tuple(math.inf for _ in self.others(params, trial_id))
            sampler.tell(trial_id, resource=1, loss=math.nan if trial_id % 2 else math.inf, others=others)
        SPACE.validate(sampler.ask(30))

    def test_it_goes_on_while_nothing_reports(self) -> None:
        sampler = self.build()
        proposals = []
        for trial_id in range(20):
            proposals.append(sampler.ask(trial_id))
            sampler.start(trial_id, proposals[-1])
        assert len({json.dumps(p) for p in proposals}) == 20

    def test_it_learns_of_parameters_that_it_has_not_proposed(self) -> None:
        sampler = self.build()
        rng = np.random.default_rng(5)
        for trial_id in range(30):
            params = SPACE.sample(rng)
            sampler.start(trial_id, params)
            others = self.others(params, trial_id)
            sampler.tell(trial_id, resource=1, loss=loss_of(params, trial_id), others=others)
        SPACE.validate(sampler.ask(30))

    def test_it_may_be_told_of_further_objectives(self) -> None:
        sampler = self.build()
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            others = (size_of(params, trial_id), 1.0)
            sampler.tell(trial_id, resource=1, loss=loss_of(params, trial_id), others=others)
        SPACE.validate(sampler.ask(30))

    def test_it_leaves_the_global_generator_alone(self) -> None:
        np.random.seed(0)
        before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        self.played(20)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]

    @pytest.mark.parametrize(
        "config",
        [
            {"a": 1},
            {"a": {"type": "choice", "options": ["only"]}},
            {"a": {"type": "choice", "options": [{"type": "choice", "options": [1, 2]}, {"b": {"c": [1]}}]}},
        ],
    )
    def test_it_handles_spaces_without_a_number(self, config: dict[str, Any]) -> None:
        space = Space.from_config(config)
        sampler = self.build(space=space)
        for trial_id in range(1 if space.grid_size(1) == 1 else 2):
            sampler.start(trial_id, space.validate(sampler.ask(trial_id)))
            sampler.tell(trial_id, resource=1, loss=1.0, others=(1.0,))


class TestRandomSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return RandomSampler(space, seed)

    def test_another_seed_proposes_something_else(self) -> None:
        assert self.build(1).ask(0) != self.build(2).ask(0) != self.build(2).ask(1)


class TestGridSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return GridSampler(space, seed, resolution=2)


class TestMultivariateTpeSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return MultivariateTpeSampler(space, seed)

    def test_another_seed_proposes_something_else(self) -> None:
        assert self.played(seed=1)[0].ask(30) != self.played(seed=2)[0].ask(30)


class TestTpeSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return TpeSampler(space, seed)

    def test_another_seed_proposes_something_else(self) -> None:
        assert self.played(seed=1)[0].ask(30) != self.played(seed=2)[0].ask(30)

    def test_it_handles_a_space_without_a_number_from_the_model_too(self) -> None:
        for config in ({"a": 1}, {"a": {"type": "choice", "options": ["only"]}}):
            space = Space.from_config(config)
            sampler = TpeSampler(space, 0, num_startup_trials=0)
            for trial_id in range(6):
                sampler.start(trial_id, space.validate(sampler.ask(trial_id)))
                sampler.tell(trial_id, resource=1, loss=1.0)


class TestTpeWithDefaultsAndConstraints(SamplerContract):
    """What surrounds a sampler keeps to the contract too."""

    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        if space is SPACE:
            space = SPACE.constrained(["lr < 0.05 or layers < 3"])
        return build_sampler("tpe", space, seed)


class TestEnqueuedAndConstrainedSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        if space is not SPACE:
            return EnqueuedSampler(ConstrainedSampler(RandomSampler(space, seed), space, seed), [])
        first = [SPACE.sample(np.random.default_rng(i)) for i in range(3)]
        return build_sampler(
            "de", SPACE.constrained(["layers != 2 or batch == 64"]), seed, enqueue=allowed(first)
        )


class TestSobolSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return SobolSampler(space, seed)


class TestDifferentialEvolutionSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return DifferentialEvolutionSampler(space, seed, population_size=8)


class TestParticleSwarmSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return ParticleSwarmSampler(space, seed, population_size=8)


@needs_optuna
class TestOptunaTpeSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return OptunaTpeSampler(space, seed)


@needs_optuna
class TestGaussianProcessSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return GaussianProcessSampler(space, seed, num_startup_trials=28)  # a second each, afterwards


@needs_optuna
class TestCmaEsSampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return CmaEsSampler(space, seed)


@needs_optuna
class TestNsga2Sampler(SamplerContract):
    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
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

    name: str
    num_trials = 100
    most_missed: float  # of the hypervolume that random search misses

    def build(self, seed: int = 1, space: Space = SPACE) -> Sampler:
        return build_sampler(self.name, space, seed, num_objectives=2)

    def others(self, params: Params, trial_id: int) -> tuple[float, ...]:
        return (size_of(params, trial_id),)

    def test_it_finds_a_better_front_than_random_search(self) -> None:
        seeds = range(5)
        here = [missed(self.build(seed, FRONT_SPACE), self.num_trials) for seed in seeds]
        random = [missed(RandomSampler(FRONT_SPACE, seed), self.num_trials) for seed in seeds]
        assert statistics.median(here) < self.most_missed * statistics.median(random)

    def test_it_goes_on_where_every_trial_breaks_a_limit(self) -> None:
        objective = Objective(
            metric="loss",
            mode=Mode.MIN,
            also=(("size", Mode.MIN),),
            limits=(Limit(metric="size", at_most=-100.0),),
        )
        sampler = self.build()
        for trial_id in range(30):
            params = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            metrics = {"loss": loss_of(params, 0), "size": size_of(params, 0)}
            loss, others = objective.loss(metrics), objective.others(metrics)
            sampler.tell(trial_id, resource=1, loss=loss, others=others)
        SPACE.validate(sampler.ask(30))


class TestTpeOfTwoObjectives(SeveralObjectivesContract):
    name = "tpe"
    most_missed = 0.4

    def test_what_is_good_is_good_in_one_objective_or_the_other(self) -> None:
        sampler = MultivariateTpeSampler(FRONT_SPACE, 0, gamma=0.25)
        for trial_id in range(40):  # the first ten are on the front: low in one, high in the other
            sampler.start(trial_id, FRONT_SPACE.sample(np.random.default_rng(trial_id)))
            worse = trial_id // 10 * 10
            losses = (trial_id % 10 + worse, 10 - trial_id % 10 + worse)
            sampler.tell(trial_id, resource=1, loss=losses[0], others=losses[1:])
        good, rest = sampler.split(1)
        assert good == list(range(10))
        assert rest == list(range(10, 40))


@needs_optuna
class TestNsga2OfTwoObjectives(SeveralObjectivesContract):
    name = "nsga2"
    num_trials = 200  # ten generations
    most_missed = 0.7


@needs_optuna
class TestOptunaTpeOfTwoObjectives(SeveralObjectivesContract):
    name = "optuna_tpe"
    most_missed = 0.6
