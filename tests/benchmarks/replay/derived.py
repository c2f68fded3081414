"""Benchmarks that are made of another one: with failures, other times, or a first guess of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from spark_hpo.objective import Objective
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import Benchmark, Scaled
from tests.benchmarks.replay.functions import Hartmann
from tests.benchmarks.replay.pool import Pool
from tests.support.simulated import Curve

_NUM_DRAWS = 1_000  # configurations that set the scale of regret


@dataclass(frozen=True, kw_only=True)
class Derived(Scaled):
    """Another benchmark. Its scales of regret are those of its own curves, without those that diverge."""

    of: Benchmark

    @property
    def task(self) -> str:
        return self.of.task

    @property
    def space(self) -> Space:  # type: ignore[override]
        return self.of.space

    @property
    def objective(self) -> Objective:  # type: ignore[override]
        return self.of.objective

    @property
    def max_resource(self) -> int:
        return self.of.max_resource

    @property
    def pool(self) -> Pool | None:
        return self.of.pool

    def curve(self, trial_id: int, params: Params) -> Curve:
        return self.of.curve(trial_id, params)

    def _reference_curves(self) -> list[Curve]:
        if self.pool is not None:
            draws = list(self.pool.configurations)
        else:
            draws = [self.space.sample(np.random.default_rng(i)) for i in range(_NUM_DRAWS)]
        curves = [self.curve(i, params) for i, params in enumerate(draws)]
        return [curve for curve in curves if curve.diverges_at is None]

    def loss(self, params: Params) -> float:
        """The loss of a configuration at the end of its training."""
        values = self.of.curve(0, params).metrics[self.objective.metric]
        return self.objective.loss({self.objective.metric: float(values[-1])})


@dataclass(frozen=True, kw_only=True)
class Costly(Derived):
    """A benchmark whose epochs take a time that depends on the configuration."""

    seconds: Callable[[Params], float]  # of an epoch
    kind: str

    @property
    def task(self) -> str:
        return f"{self.of.task}_{self.kind}"

    def curve(self, trial_id: int, params: Params) -> Curve:
        curve = self.of.curve(trial_id, params)
        return replace(curve, elapsed_s=curve.elapsed_s * self.seconds(params))


def costly_functions() -> list[Benchmark]:
    """Hartmann functions whose epochs take from 1 to 10 s: the best ones take 2, 3 or 7 s, or it is open."""
    return [
        Costly(of=Hartmann(dimensions=dimensions, bias=0.5, noise=0.1), seconds=seconds, kind=kind)
        for dimensions in (3, 6)
        for kind, seconds in (
            ("cheap", lambda params: 10.0 ** params["x0"]),
            ("dear", lambda params: 10.0 ** (1 - params["x0"])),
            ("two", lambda params: 10.0 ** ((params["x1"] + params["x2"]) / 2)),
        )
    ]
