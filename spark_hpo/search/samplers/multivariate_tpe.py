"""The multivariate tree-structured Parzen estimator for trials at several resources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.search.agreement import rank_agreement
from spark_hpo.search.pareto import Losses, best_points
from spark_hpo.search.sampler import Outcome, Sampler
from spark_hpo.search.samplers.costs import CostModel, Costs
from spark_hpo.search.samplers.feasibility import Blame, Feasibility, log_improvement
from spark_hpo.search.samplers.first_guess import FirstGuess
from spark_hpo.search.samplers.history import History
from spark_hpo.search.samplers.memory import MemoryFailures
from spark_hpo.search.samplers.parzen import Bandwidth, ParzenEstimator
from spark_hpo.search.samplers.transfer import Knowledge
from spark_hpo.search.settings import require_integer, require_number
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_MAX_GOOD = 25  # more would blur the density of the best trials
_MAX_REST = 400  # keeps a proposal at a few milliseconds
_BANDWIDTH = Bandwidth(scale=0.2, floor=0.01, magic=1.0)
_DEFAULT_WEIGHT = 2.0  # of the kernel at the defaults of the space; a trial has 1
_DEFAULT_SHARE = 0.5  # of the start-up trials, drawn around the defaults
_CONFIRMING = 0.2  # share of the trials that are the best, to judge the defaults
_DRAWS = 20
ACQUISITIONS = ("ei", "ei_per_second")
"""The expected improvement; and divided by the predicted time (Snoek et al. 2012, arXiv:1206.2944)."""
_MIN_AGREEMENT = 0.3  # rank correlation with the next level; below, a level is noise
_MIN_PAIRS = 8  # trials at both levels, to judge the agreement


@dataclass(eq=False)
class MultivariateTpeSampler(Sampler):
    """Models the densities of good and other configurations, all parameters jointly.

    The tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
    Optimization"), with joint kernels as in BOHB (Falkner et al. 2018, arXiv:1807.01774): l(x) is the
    density of the good trials, g(x) that of the rest, and of many draws from l the one with the largest
    l(x)/g(x) is proposed. Unlike a model of one parameter at a time, it represents interactions, such as a
    high learning rate that is good only with a large batch. The settings follow the study of Watanabe 2023,
    arXiv:2304.11127. `ParzenEstimator` describes the densities.

    - **Level.** Losses are compared at one resource: the highest that `enough` trials have reported. BOHB
      requires the number of parameters + 1, which is too few to rank if there are few parameters. Until
      there is such a level, proposals are drawn from the space.
    - **Noise.** If 8 or more trials were promoted from that level and their ranking hardly agrees with the
      ranking at the next level (`rank_agreement`), the next level is used if it has half of `enough`
      results, and otherwise none.
    - **Good** are the best `gamma` of n trials at that level, at most 25, and never a failed trial.
    - **Several objectives.** The good trials are those of the first Pareto fronts, and the least crowded ones
      of the last front, as in MOTPE (Ozaki et al. 2020, "Multiobjective Tree-Structured Parzen Estimator for
      Computationally Expensive Optimization Problems"; 2022, J. Artif. Intell. Res. 73), which uses the
      hypervolume instead of crowding. Noise is judged by the first objective.
    - **Limits.** Feasible trials rank before infeasible ones, which are ordered by their violations. With
      several objectives, dominance is constrained (`Penalty`).
    - **In flight** trials are part of the rest (a constant liar), which keeps the next proposal away from
      them.
    - **Failed** trials are part of the rest at every level. If `learns_from_failures`, they are not: the
      probability of success (`Feasibility`) multiplies the improvement instead. A start-up trial is one of
      20 draws that are the most likely to succeed. Trials that were lost with their executor are ignored.
    - **Memory.** If `learns_from_memory` too, and a trial has run out of memory, the memory of all trials
      tells which other configurations need more than there is (`MemoryFailures`).
    - **Paused** trials below the level are part of the rest if `learns_from_paused`: they were not
      promoted, so they show where not to search. The level itself then needs fewer results.
    - **Bounded.** The latest 400 trials of the rest are kept.
    - **Explores.** A `random_fraction` of proposals is drawn from the space, as in BOHB, so that every region
      is eventually tried, whatever the model predicts.
    - **Defaults** of the space are a kernel of weight 2 in l(x), and half of the start-up trials are drawn
      around them. Results soon outweigh this initial guess. If `doubts_defaults`, the first trial has exactly
      the defaults, the others are drawn from the space, and the kernel counts only as far as the best
      trials confirm it (`FirstGuess`).
    - **Valid.** Candidates that violate a constraint of the space, or were tried before, are skipped.
    """

    supports_multiple_objectives = True
    handles_constraints = True
    handles_limits = True
    accepts_foreign = True

    space: Space
    seed: int
    _: KW_ONLY
    num_startup_trials: int = 10  # that have to report before the first proposal of the model
    num_candidates: int = 128  # draws from l(x); the best one is proposed
    enough: int = 20  # results that a level needs before it is used
    gamma: float = 0.15  # share of trials that are good, > 0 and <= 0.5
    random_fraction: float = 0.1  # share of proposals that ignore the model, 0..1
    learns_from_paused: bool = False  # trials without a result at the level are part of the rest
    learns_from_failures: bool = False  # the probability of success multiplies the improvement
    learns_from_memory: bool = False  # predicts which configurations run out of memory
    doubts_defaults: bool = False  # defaults count as far as results confirm them
    acquisition: str = "ei"  # one of ACQUISITIONS

    def __post_init__(self) -> None:
        require_integer("num_startup_trials", self.num_startup_trials, 0)
        require_integer("num_candidates", self.num_candidates, 1)
        require_integer("enough", self.enough, 2)
        require_number("gamma", self.gamma, above=0, high=0.5)
        require_number("random_fraction", self.random_fraction, low=0, high=1)
        self._axes = Axes(self.space)
        default = self._axes.default_row()
        self._guess = None if default is None else FirstGuess(self._axes, default)
        self._knowledge = Knowledge.none(len(self._axes))
        self._history = History()
        if self.acquisition not in ACQUISITIONS:
            raise ConfigError(
                "is not a valid acquisition function",
                key="acquisition",
                value=self.acquisition,
                cure=suggestion(str(self.acquisition), ACQUISITIONS),
            )
        self._blame, self._costs = Blame(), Costs()
        self._rows = np.empty((64, len(self._axes)))  # grows by doubling
        self._number: dict[int, int] = {}  # of a trial's row in _rows
        self._tried: set[bytes] = set()

    def learn_from(self, knowledge: Knowledge) -> None:
        assert not self._number, "the study has begun"
        self._knowledge = knowledge

    def ask(self, trial_id: int) -> Params:
        rng = np.random.default_rng((self.seed, trial_id))
        level = self.level
        if not len(self._axes) or (level is None and not len(self._knowledge.good)):
            return self._draw_feasible(rng)
        if rng.random() < self.random_fraction:
            return self._sample_feasible(rng)
        good, rest = self.split(level)
        better = self._estimator(good, self._knowledge.good, guess_weight=_DEFAULT_WEIGHT * self._trust())
        # The prior has the same share in both densities. Otherwise g, which has more kernels, would almost
        # vanish where there are no trials, and every empty region of the space would look promising.
        share = better.prior_share
        prior_weight = max(1.0, len(rest) * share / (1 - share))
        other = self._estimator(rest, self._knowledge.rest, prior_weight=prior_weight)
        candidates = better.sample(rng, self.num_candidates)
        score = better.log_density(candidates) - other.log_density(candidates)
        if weights := self._weights():  # otherwise, the order is the same
            score = log_improvement(score, self.gamma) + sum(weight(candidates) for weight in weights)
        for i in np.argsort(-score, kind="stable"):
            if candidates[i].tobytes() not in self._tried:
                params = self._axes.params(candidates[i])
                if self.space.allows(params):
                    return params
        return self._untried(rng)

    def start(self, trial_id: int, params: Params) -> None:
        row = self._axes.row_of_any(params)
        number = self._number[trial_id] = len(self._number)
        if number == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[number] = row
        self._tried.add(row.tobytes())
        self._history.start(trial_id)

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        assert trial_id in self._number, f"trial {trial_id} reported before it was started"
        self._history.tell(trial_id, resource, loss, others, violation)
        self._blame.tell(trial_id, has_failed=not math.isfinite(loss))

    def note(self, trial_id: int, outcome: Outcome) -> None:
        self._blame.note(trial_id, outcome)
        self._costs.note(trial_id, outcome)

    @property
    def level(self) -> int | None:
        """The resource at which losses are compared; None while proposals are random."""
        if self._history.num_reported < self.num_startup_trials:
            return None
        above: int | None = None
        for resource in reversed(self._history.levels):
            if len(self._history.ranking(resource)) >= self.enough:
                if above is None or not self._is_noise(resource, above):
                    return resource
                return above if 2 * len(self._history.ranking(above)) >= self.enough else None
            above = resource
        return None

    def split(self, level: int | None) -> tuple[list[int], list[int]]:
        """Return the good trials and the rest, without those that exceed the bounds."""
        ranking = [] if level is None else self._history.ranking(level)
        num_good = min(math.ceil(self.gamma * len(ranking)), _MAX_GOOD)
        best = ranking[:num_good]
        if level is not None and self._history.num_objectives > 1:
            penalty = self._history.penalty(level)
            results = self._history.results(level).values()
            losses = [penalty.losses(*result) if penalty else result[0] for result in results]
            best = [ranking[i] for i in best_points(losses, num_good)]
        good = [trial_id for _, trial_id in best]
        rest = {trial_id for _, trial_id in ranking}.difference(good)
        if self.learns_from_paused and level is not None:
            rest |= self._history.paused_below(level)
        failed = self._history.failed
        if self.learns_from_failures:  # a trial that was given up is bad, but not a failure
            failed = [trial_id for trial_id in failed if 0 < self._blame.of(trial_id) < 1]
        return good, sorted([*rest, *failed, *self._history.in_flight])[-_MAX_REST:]

    def _is_noise(self, resource: int, above: int) -> bool:
        scores = [self._history.scores(trial_id) for _, trial_id in self._history.ranking(above)]
        pairs = [(both[resource], both[above]) for both in scores if resource in both]
        if len(pairs) < _MIN_PAIRS:
            return False
        agreement = rank_agreement(pairs, [score for score, _ in self._history.ranking(resource)])
        return agreement is not None and agreement < _MIN_AGREEMENT

    def _untried(self, rng: np.random.Generator) -> Params:
        """Draw an untried configuration from the space; after twenty draws, any configuration."""
        for _ in range(_DRAWS):
            params = self.space.sample(rng)
            if self._axes.row(params).tobytes() not in self._tried:
                break
        return params

    def _feasibility(self) -> Feasibility | None:
        """Return the probability of success; None if no trial has failed."""
        known = self._blame.known() if self.learns_from_failures else {}
        if not known:
            return None
        rows, blame = self._rows_of(known), np.array(list(known.values()))
        memory = self._costs.memory() if self.learns_from_memory and self._costs.num_unfit else None
        if memory is None or known.keys().isdisjoint(memory.unfit):
            return Feasibility(self._axes, rows, blame)
        failures = MemoryFailures(self._axes, memory, list(known), rows, blame)
        return Feasibility(self._axes, rows, blame, failures)

    def _cost_model(self) -> CostModel | None:
        """Return the model of times; None if they do not matter, or are not known."""
        times = self._costs.log_times() if self.acquisition == "ei_per_second" else {}
        return CostModel(self._axes, self._rows_of(times), np.array(list(times.values()))) if times else None

    def _weights(self) -> list[Callable[[Array], Array]]:
        """Return the logarithms of what the improvement is multiplied by, as functions of positions."""
        feasibility, costs = self._feasibility(), self._cost_model()
        weights: list[Callable[[Array], Array]] = [] if feasibility is None else [feasibility.log_weight]
        return weights if costs is None else [*weights, lambda rows: -costs.predict(rows)]

    def _draw_feasible(self, rng: np.random.Generator) -> Params:
        """Draw a start-up trial: of several draws, one of those that are most likely to succeed."""
        feasibility = self._feasibility()
        if feasibility is None:
            return self._draw(rng)
        draws = [self._draw(rng) for _ in range(_DRAWS)]
        return draws[feasibility.first_likely(self._positions(draws))]

    def _sample_feasible(self, rng: np.random.Generator) -> Params:
        """Draw a configuration from the space: each with a probability that falls with that of a failure."""
        feasibility = self._feasibility()
        if feasibility is None:
            return self.space.sample(rng)
        draws = [self.space.sample(rng) for _ in range(_DRAWS)]
        accepted = np.log(rng.random(_DRAWS)) < feasibility.log_weight(self._positions(draws))
        return draws[int(np.argmax(accepted))]

    def _rows_of(self, trials: Iterable[int]) -> Array:
        return self._rows[[self._number[trial_id] for trial_id in trials]]

    def _positions(self, draws: Sequence[Params]) -> Array:
        return np.array([self._axes.row(params) for params in draws])

    def _draw(self, rng: np.random.Generator) -> Params:
        """Draw a start-up trial from the space, or around its defaults; if they are doubted, once exactly."""
        if self._guess is not None:
            exactly = self.doubts_defaults
            is_drawn = not self._number if exactly else rng.random() < _DEFAULT_SHARE
            if is_drawn:
                params = self._axes.params(self._guess.draw(rng, exactly=exactly))
                if self.space.allows(params):
                    return params
        return self.space.sample(rng)

    def _trust(self) -> float:
        """Return how much the defaults count, 0..1."""
        levels = self._history.levels
        if self._guess is None or not self.doubts_defaults or not levels:
            return 1.0
        ranking = self._history.ranking(levels[0] if self.level is None else self.level)
        known = [trial_id for _, trial_id in ranking]
        good = known[: math.ceil(_CONFIRMING * len(known))]
        return self._guess.trust(self._rows_of(good), self._rows_of([*known, *self._history.failed]))

    def _estimator(
        self, trials: list[int], earlier: Array, *, guess_weight: float = 0.0, prior_weight: float = 1.0
    ) -> ParzenEstimator:
        rows = self._rows_of(trials)
        weights = np.concatenate([np.ones(len(rows)), np.full(len(earlier), self._knowledge.discount)])
        rows = np.concatenate([rows, earlier])
        if self._guess is not None and guess_weight:
            rows = np.concatenate([rows, self._guess.row[None]])
            weights = np.append(weights, guess_weight)
        return ParzenEstimator(self._axes, rows, _BANDWIDTH, prior_weight=prior_weight, weights=weights)
