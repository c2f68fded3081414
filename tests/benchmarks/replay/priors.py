"""Problems with a first guess of the user: a good one, a bad one, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Group, Uniform
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import Benchmark, Reference
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.derived import Derived
from tests.benchmarks.replay.functions import Hartmann

GUESSES = ("none", "good", "bad")

_NUM_DRAWS = 100  # of which the best one is a good guess, and the worst one a bad guess


@dataclass(frozen=True, kw_only=True)
class Guessed(Derived):
    """A benchmark whose parameters have defaults."""

    guess: str  # one of GUESSES

    @cached_property
    def space(self) -> Space:  # type: ignore[override]
        return self.of.space if self.guess == "none" else with_defaults(self.of.space, self.default)

    @cached_property
    def default(self) -> Params:
        """The best or worst of some random configurations, trained to the end."""
        draws = [self.of.space.sample(np.random.default_rng((7, i))) for i in range(_NUM_DRAWS)]
        losses = [self.loss(params) for params in draws]
        return draws[int(np.argmin(losses) if self.guess == "good" else np.argmax(losses))]

    @property
    def reference(self) -> Reference:
        return self.of.reference

    @property
    def unseen_reference(self) -> Reference:
        return self.of.unseen_reference


def with_defaults(space: Space, defaults: Params) -> Space:
    """Return a flat space of numbers with defaults."""
    entries = tuple(
        (name, replace(node, default=defaults[name]) if isinstance(node, Uniform) else node)
        for name, node in space.root.entries
    )
    return replace(space, root=Group(entries))


def problems(curves: Path) -> list[Benchmark]:
    """MF-Hartmann with a small and a large bias, and a task of LCBench."""
    return [
        Hartmann(dimensions=3, bias=0.5, noise=0.1),
        Hartmann(dimensions=6, bias=0.5, noise=0.1),
        Hartmann(dimensions=6, bias=2.0, noise=0.4),
        open_benchmarks(curves / "lcbench")[0],
    ]
