"""The tree-structured Parzen estimator of hyperopt, `tpe.suggest`, as a sampler."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from spark_hpo.search.pareto import Losses
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.history import History
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Dimension, Key, Point, Space
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Normal, Uniform
from spark_hpo.search.space.parameter import Sequence as Items
from spark_hpo.trial import Params

_MAX_HISTORY = 200  # trials that hyperopt is given; with 10,000 a proposal takes 250 ms
_MAX_GOOD = 25  # as in hyperopt
_GAMMA = 0.25  # as in hyperopt: gamma sqrt(n) of n trials are good


@dataclass(eq=False)
class TpeSampler(Sampler):
    """Models the densities of good and other trials, and proposes where their ratio is largest.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization": l(x) is the density of the good
    trials, g(x) that of the rest. The estimator uses losses only to split the trials into these two groups.
    This class makes the split, so hyperopt never sees an infinite loss:

    - **Level.** Losses are compared at one resource: the highest that `enough` trials have reported. As in
      BOHB (Falkner et al. 2018, arXiv:1807.01774), `enough` is the number of parameters + 3. Until a level
      has that many results, and for the first `num_startup_trials`, proposals are random.
    - **Good** are the lowest 0.25 sqrt(n) of n losses at that level, and never a failure.
    - **In flight** trials are treated as if they had the median loss (a constant liar). This puts them into
      the rest, which keeps the next proposal away from them and does not displace a good trial.
    - **Failed** trials are part of the rest at every level.
    - **Bounded.** The latest trials of the rest are kept, up to 200 trials in total. hyperopt gives almost no
      weight to older ones.
    """

    handles_limits = True

    space: Space
    seed: int
    _: KW_ONLY
    num_startup_trials: int = 10  # that have to report before the first proposal of the model
    num_candidates: int = 24  # draws from l(x); the best one is proposed

    def __post_init__(self) -> None:
        require_integer("num_startup_trials", self.num_startup_trials, 0)
        require_integer("num_candidates", self.num_candidates, 1)
        dimensions = self.space.dimensions()
        self.enough = len(dimensions) + 3
        self._estimator = _Estimator(self.space, dimensions)
        self._points: dict[int, Point] = {}  # by trial; numbers as latent values
        self._history = History()

    def ask(self, trial_id: int) -> Params:
        rng = np.random.default_rng((self.seed, trial_id))
        level = self.level
        if level is None:
            return self.space.sample(rng)
        good, rest = self.split(level)
        points = {trial: self._points[trial] for trial in sorted(good | rest)}
        return self.space.unflatten(self._estimator.propose(points, good, rng, self.num_candidates))

    def start(self, trial_id: int, params: Params) -> None:
        self._points[trial_id] = self._estimator.latents(self.space.flatten(params))
        self._history.start(trial_id)

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        assert trial_id in self._points, f"trial {trial_id} reported before it was started"
        self._history.tell(trial_id, resource, loss, violation=violation)

    @property
    def level(self) -> int | None:
        """The resource at which losses are compared; None while proposals are random."""
        if self._history.num_reported < self.num_startup_trials:
            return None
        return self._history.highest_level(self.enough)

    def split(self, level: int) -> tuple[set[int], set[int]]:
        """Return the good trials and the rest, without those that exceed the bound."""
        ranking = self._history.ranking(level)
        num_good = min(math.ceil(_GAMMA * math.sqrt(len(ranking))), _MAX_GOOD)
        good = {trial_id for _, trial_id in ranking[:num_good]}
        # Fewer than half of the trials are good, so a trial with the median loss never is.
        rest = {trial_id for _, trial_id in ranking[num_good:]}.union(
            self._history.failed, self._history.in_flight
        )
        return good, set(heapq.nlargest(_MAX_HISTORY - len(good), rest))


class _Estimator:
    """hyperopt's TPE on the latent values of a space. It gets good trials and the rest, not losses.

    Latent values are uniform or normal, so hyperopt's logarithmic and rounded distributions are not needed:
    the ratio of two densities is the same on both scales.
    """

    def __init__(self, space: Space, dimensions: tuple[Dimension, ...]) -> None:
        from hyperopt.base import Domain

        self._dimensions = {str(i): dimension for i, dimension in enumerate(dimensions)}
        self._labels = {dimension.key: label for label, dimension in self._dimensions.items()}
        self._domain = Domain(None, self._expression(space.root, ()), pass_expr_memo_ctrl=False)

    def latents(self, point: Point) -> Point:
        """Return the point with latent values for numbers, and option indices for choices."""
        parameters = {d.key: d.parameter for d in self._dimensions.values()}
        latents: Point = {}
        for key, value in point.items():
            parameter = parameters[key]
            latents[key] = value if isinstance(parameter, Choice) else parameter.latent(value)
        return latents

    def propose(
        self, points: dict[int, Point], good: set[int], rng: np.random.Generator, num_candidates: int
    ) -> Point:
        """Return the best of `num_candidates` draws. `points` are in the order of trials."""
        from hyperopt import tpe, trials_from_docs

        trials = trials_from_docs(
            [self._document(i, points[t], t in good) for i, t in enumerate(points)], validate=False
        )
        # hyperopt rounds gamma sqrt(n) up. Subtracting a half makes this robust to floating-point errors.
        gamma = (len(good) - 0.5) / math.sqrt(len(points))
        with np.errstate(all="ignore"):  # a density may underflow, and its log is then -inf
            (proposal,) = tpe.suggest(
                [len(points)],
                self._domain,
                trials,
                seed=int(rng.integers(2**31)),
                n_startup_jobs=0,
                n_EI_candidates=num_candidates,
                gamma=gamma,
                verbose=False,
            )
        point: Point = {}
        for label, values in proposal["misc"]["vals"].items():
            dimension = self._dimensions[label]
            if values:  # empty where the parameter is not active
                parameter, (value,) = dimension.parameter, values
                point[dimension.key] = (
                    int(value) if isinstance(parameter, Choice) else parameter.value(float(value))
                )
        return point

    def _document(self, number: int, point: Point, is_good: bool) -> dict[str, Any]:
        """Return what `tpe.suggest` reads of a trial. The losses 0 and 1 encode good and rest."""
        values = {label: point[d.key] for label, d in self._dimensions.items() if d.key in point}
        result = {"status": "ok", "loss": 0.0 if is_good else 1.0}
        return document_of(number, values, tuple(self._dimensions), state=2, result=result)  # JOB_STATE_DONE

    def _expression(self, node: Node, key: Key) -> Any:
        """Return a hyperopt expression with the parameters below `node`; constants are left out."""
        from hyperopt import hp

        label = self._labels.get(key, "")
        match node:
            case Group(entries):
                return {name: self._expression(child, (*key, name)) for name, child in entries}
            case Items(items):
                return [self._expression(child, (*key, i)) for i, child in enumerate(items)]
            case Choice(options=options, weights=weights):
                below = [self._expression(option, (*key, i)) for i, option in enumerate(options)]
                if weights is None:
                    return hp.choice(label, below)
                return hp.pchoice(label, list(zip(weights, below, strict=True)))
            case Uniform():
                return hp.uniform(label, *node.latent_bounds())
            case Normal():
                return hp.normal(label, node.mu, node.sigma)
            case Constant():
                return None


def document_of(
    trial_id: int, params: Params, labels: Sequence[str], *, state: int, result: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trial as a document of hyperopt's `Trials.trials`."""
    return {
        "state": state,
        "tid": trial_id,
        "spec": None,
        "result": dict(result),
        "misc": {
            "tid": trial_id,
            "cmd": ("domain_attachment", "FMinIter_Domain"),
            "workdir": None,
            "idxs": {label: [trial_id] if label in params else [] for label in labels},
            "vals": {label: [params[label]] if label in params else [] for label in labels},
        },
        "exp_key": None,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
    }
