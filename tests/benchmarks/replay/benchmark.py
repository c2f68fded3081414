"""The seam of benchmarks: a problem whose every answer is known, and what a good answer is worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from spark_hpo.objective import Objective
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.benchmarks.replay.pool import Pool
from tests.support.simulated import Curve

NUM_REFERENCE = 5_000  # random configurations that set the scale of regret


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What random configurations reach when they are trained to the end: the scale of regret."""

    best: float  # lowest loss
    top: float  # loss of the best in a hundred
    median: float  # loss; a configuration that diverges counts as infinitely bad
    full_s: float  # mean time of a full training, of those that do not diverge

    def regret(self, loss: float) -> float:
        """0 for the best of them, 1 for the median one; below 0 for what is better than the best."""
        return (loss - self.best) / (self.median - self.best)


class Benchmark(Protocol):
    """A tuning problem. Its objective is a metric of its curves."""

    @property
    def task(self) -> str: ...

    @property
    def space(self) -> Space: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def max_resource(self) -> int: ...

    @property
    def pool(self) -> Pool | None:
        """The only configurations that there are; None: any of the space."""
        ...

    @property
    def reference(self) -> Reference: ...

    @property
    def unseen_reference(self) -> Reference:
        """The scale of regret for `Curve.unseen`; without it, `reference`."""
        ...

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of a trial: the same whenever it is asked for."""
        ...


class Scaled:
    """A benchmark whose scales of regret come from the curves of many configurations."""

    objective: Objective
    space: Space

    def curve(self, trial_id: int, params: Params) -> Curve:
        raise NotImplementedError

    @property
    def reference(self) -> Reference:
        return self._references[0]

    @property
    def unseen_reference(self) -> Reference:
        return self._references[1]

    @cached_property
    def _references(self) -> tuple[Reference, Reference]:
        return references_of(self.objective, self._reference_curves())

    def _reference_curves(self) -> list[Curve]:
        draws = [self.space.sample(np.random.default_rng(i)) for i in range(NUM_REFERENCE)]
        return [self.curve(i, params) for i, params in enumerate(draws)]


def references_of(objective: Objective, curves: list[Curve]) -> tuple[Reference, Reference]:
    """The scales that curves set, of the metric and of `Curve.unseen`. At least half must not diverge."""
    ended = [curve for curve in curves if curve.diverges_at is None]
    losses = [objective.loss({objective.metric: float(c.metrics[objective.metric][-1])}) for c in ended]
    unseen = [
        loss if c.unseen is None else float(c.unseen[-1]) for c, loss in zip(ended, losses, strict=True)
    ]
    full_s = float(np.mean([curve.elapsed_s[-1] for curve in ended]))
    return _scale(losses, len(curves), full_s), _scale(unseen, len(curves), full_s)


def _scale(losses: list[float], count: int, full_s: float) -> Reference:
    """Of so many configurations; those without a loss diverged."""
    padded = np.concatenate([losses, np.full(count - len(losses), np.inf)])
    return Reference(
        best=float(padded.min()),
        top=float(np.quantile(padded, 0.01, method="higher")),
        median=float(np.median(padded)),
        full_s=full_s,
    )
