"""Samplers that evolve a population: differential evolution and particle swarm.

Trial t belongs to member t mod population_size, whoever proposed it. The population is therefore a function
of the calls to `start` and `tell`, no trial waits for the end of a generation, and a member whose trial is in
flight has simply not moved yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

import numpy as np

from spark_hpo.objective import Score
from spark_hpo.search.pareto import Losses
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.settings import require_integer, require_number
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_MIN_PARENTS = 4


@dataclass(eq=False)
class _PopulationSampler(Sampler, ABC):
    """The members of a population, their trials and scores."""

    handles_limits = True
    accepts_foreign = True

    space: Space
    seed: int
    _: KW_ONLY
    population_size: int = 20  # number of members, >= 4

    def __post_init__(self) -> None:
        require_integer("population_size", self.population_size, _MIN_PARENTS)
        self._axes = Axes(self.space)
        self._rows: dict[int, Array] = {}  # by trial
        self._last: dict[int, int] = {}  # latest trial of a member
        self._previous: dict[int, int] = {}  # the member's trial before this one, by trial
        self._levels: dict[int, dict[int, tuple[Score, int]]] = {}  # by resource, member: the best trial

    def ask(self, trial_id: int) -> Params:
        rng = np.random.default_rng((self.seed, trial_id))
        levels = sorted((r for r, best in self._levels.items() if best), reverse=True)
        parents = self._parents(levels)
        if len(parents) < max(_MIN_PARENTS, self.population_size // 2) or not len(self._axes):
            return self.space.sample(rng)
        unit = self._propose(trial_id % self.population_size, parents, levels, rng)
        return self._axes.params(self._axes.from_unit(unit))

    def start(self, trial_id: int, params: Params) -> None:
        member = trial_id % self.population_size
        self._rows[trial_id] = self._axes.row_of_any(params)
        if member in self._last:
            self._previous[trial_id] = self._last[member]
        self._last[member] = trial_id

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        member = trial_id % self.population_size
        score = Score.of(loss, violation)
        if score.is_finite:
            best = self._levels.setdefault(resource, {})
            # Of equal scores the later trial is kept, so that the population can drift across a plateau.
            if member not in best or score <= best[member][0]:
                best[member] = (score, trial_id)
            return
        for best in self._levels.values():
            if best.get(member, (score, -1))[1] == trial_id:
                del best[member]

    @abstractmethod
    def _propose(
        self, member: int, parents: list[int], levels: list[int], rng: np.random.Generator
    ) -> Array: ...

    def _parents(self, levels: list[int]) -> list[int]:
        """Return the best trials of the highest level, topped up from lower levels; the best one first."""
        parents: list[int] = []
        for resource in levels:
            for _, trial_id in sorted(self._levels[resource].values()):
                if trial_id not in parents and len(parents) < self.population_size:
                    parents.append(trial_id)
        return parents

    def _target(self, member: int, levels: list[int]) -> int | None:
        """Return the member's best trial at the highest level that it has reached."""
        for resource in levels:
            if member in self._levels[resource]:
                return self._levels[resource][member][1]
        return None

    def _unit(self, trial_id: int, rng: np.random.Generator) -> Array:
        return self._axes.unit(self._rows[trial_id], rng)


@dataclass(eq=False, kw_only=True)
class DifferentialEvolutionSampler(_PopulationSampler):
    """Differential evolution with one subpopulation per rung, as in DEHB.

    Storn and Price 1997; Awad et al. 2021 (DEHB), arXiv:2105.09821. A mutant a + F (b - c) of three parents
    is crossed with the best trial of the current member (rand/1/bin). The child replaces that trial if it is
    at least as good at the same resource. Parents come from the highest resource with results, topped up
    from lower ones, so results of long trainings guide the start of short ones. The options of a choice
    divide the unit interval in proportion to their weights.

    More robust than a model under noise, with many categories or with more than twenty parameters; otherwise
    slower than TPE.
    """

    mutation: float = 0.5  # F, > 0 and <= 2
    crossover: float = 0.5  # probability that a parameter comes from the mutant, 0..1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("mutation", self.mutation, above=0, high=2)
        require_number("crossover", self.crossover, low=0, high=1)

    def _propose(self, member: int, parents: list[int], levels: list[int], rng: np.random.Generator) -> Array:
        a, b, c = (self._unit(parents[i], rng) for i in rng.choice(len(parents), 3, replace=False))
        mutant = a + self.mutation * (b - c)
        outside = (mutant < 0) | (mutant > 1)
        mutant[outside] = rng.random(int(outside.sum()))
        target = self._target(member, levels)
        if target is None:
            return np.asarray(mutant)
        crossed = rng.random(len(mutant)) < self.crossover
        crossed[rng.integers(len(mutant))] = True
        return np.where(crossed, mutant, self._unit(target, rng))


@dataclass(eq=False, kw_only=True)
class ParticleSwarmSampler(_PopulationSampler):
    """Particle swarm: each member moves on, attracted by its own best position and by the global best.

    Kennedy and Eberhart 1995; the defaults are the constriction coefficients of Clerc and Kennedy 2002. The
    velocity of a member is its last step. Positions are clipped to the unit interval.
    """

    inertia: float = 0.7298  # weight of the last step, 0..1
    attraction: float = 1.4962  # weight of either best position, > 0 and <= 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("inertia", self.inertia, low=0, high=1)
        require_number("attraction", self.attraction, above=0, high=4)

    def _propose(self, member: int, parents: list[int], levels: list[int], rng: np.random.Generator) -> Array:
        last = self._last.get(member)
        if last is None:
            return rng.random(len(self._axes))
        here, best = self._unit(last, rng), self._unit(parents[0], rng)
        target, previous = self._target(member, levels), self._previous.get(last)
        own = best if target is None else self._unit(target, rng)
        velocity = np.zeros(len(here)) if previous is None else here - self._unit(previous, rng)
        pull = rng.random(len(here)) * (own - here) + rng.random(len(here)) * (best - here)
        return np.asarray(np.clip(here + self.inertia * velocity + self.attraction * pull, 0.0, 1.0))


@dataclass(eq=False, kw_only=True)
class GeneticSampler(_PopulationSampler):
    """A genetic algorithm: selection by tournaments, uniform crossover, mutation.

    Holland 1975; Goldberg and Deb 1991 for the tournaments. A child takes each parameter from one of two
    parents, and some parameters are changed: a number by a normal step, an option by a draw. A child belongs
    to a member of the population, and replaces its best trial if it is at least as good at the same
    resource, so the best configuration is never lost. Parents come from the highest resource with results,
    topped up from lower ones.
    """

    tournament_size: int = 3  # trials of which the best becomes a parent, >= 1
    mutation_probability: float | None = None  # of each parameter, 0..1; None: one parameter in a child
    mutation_step: float = 0.1  # standard deviation, as a share of the range, > 0 and <= 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("tournament_size", self.tournament_size, 1)
        if self.mutation_probability is not None:
            require_number("mutation_probability", self.mutation_probability, low=0, high=1)
        require_number("mutation_step", self.mutation_step, above=0, high=1)

    def _propose(self, member: int, parents: list[int], levels: list[int], rng: np.random.Generator) -> Array:
        # Parents are ranked, so the lowest of some random ranks wins the tournament.
        first, second = (
            self._unit(parents[int(rng.integers(len(parents), size=self.tournament_size).min())], rng)
            for _ in range(2)
        )
        child = np.where(rng.random(len(first)) < 0.5, first, second)
        probability = self.mutation_probability
        mutated = rng.random(len(child)) < (1 / len(child) if probability is None else probability)
        moved = child + rng.normal(scale=self.mutation_step, size=len(child))
        is_option = np.array([axis.options > 0 for axis in self._axes.axes])
        moved = np.where(is_option, rng.random(len(child)), np.abs(moved))  # reflected at the edges
        moved = np.where(moved > 1, np.maximum(2 - moved, 0), moved)
        return np.where(mutated, moved, child)
