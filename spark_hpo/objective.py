"""The objective of a study: metrics, directions and limits, as a score to minimise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Mode(StrEnum):
    """The direction in which a metric is better."""

    MIN = "min"
    MAX = "max"


class BestRule(StrEnum):
    """The model that a study takes for its best one."""

    TRAINED = "trained"  # of the trial that is best at the end of its training: its best checkpoint
    FINAL = "final"  # of the same trial: its last checkpoint
    ANY = "any"  # the best checkpoint of all trials, however short their training was


class Score(NamedTuple):
    """One result as the search compares it: the smaller, the better.

    Feasible results, which keep every limit, come first and are ordered by loss. Infeasible ones follow,
    ordered by how far they break the limits, so a search without a feasible result still knows where to go
    (Deb 2000, "An efficient constraint handling method for genetic algorithms").

    A trace: Score(0.0, 2.5e9) < Score(0.1, 0.3) < Score(0.2, 0.1) < NO_SCORE
    """

    violation: float  # 0: every limit is kept
    loss: float

    @classmethod
    def of(cls, loss: float, violation: float = 0.0) -> Score:
        """Return the score, or `NO_SCORE` unless both numbers are finite."""
        return cls(violation, loss) if math.isfinite(loss) and math.isfinite(violation) else NO_SCORE

    @property
    def is_finite(self) -> bool:
        """False for a failure, or where a metric is missing."""
        return math.isfinite(self.loss)


NO_SCORE = Score(math.inf, math.inf)
"""The score of a failure, worse than every other one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on another metric, such as the latency or the size of the model. Both ends are allowed."""

    metric: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return the excess as a share of the bound; 0 if the limit is kept, infinity if it is not known."""
        value = metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        excess, bound = max((self.at_least - value, self.at_least), (value - self.at_most, self.at_most))
        return max(excess, 0.0) / (abs(bound) if bound and math.isfinite(bound) else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a study chooses its best model."""

    rule: BestRule = BestRule.TRAINED
    target: float | None = None  # loss: a trial that reaches it needs no more training; None: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The metrics to optimise. Losses are always minimised; only this class flips signs.

    The first metric is the primary one: it ranks the trials of a rung and names the best. Penalties make its
    loss a weighted sum: weight x value of another metric is added to the loss, so a positive weight makes
    more of that metric worse, whatever the mode.

    A trace: metric "accuracy", max; extra_objectives (("latency_ms", min),); limits (size_mb at most 10)
        metrics {"accuracy": 0.9, "latency_ms": 7.0, "size_mb": 12.0}
        -> loss -0.9, extra losses (7.0,), violation 0.2, score (0.2, -0.9)
    """

    metric: str
    mode: Mode
    penalties: tuple[tuple[str, float], ...] = ()  # (metric, weight)
    limits: tuple[Limit, ...] = ()
    extra_objectives: tuple[tuple[str, Mode], ...] = ()  # the search then finds a Pareto front

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all objectives, the primary one first."""
        return (self.metric, *(name for name, _ in self.extra_objectives))

    def score(self, metrics: Mapping[str, float]) -> Score:
        """Return what the search compares. A missing or non-finite metric gives `NO_SCORE`."""
        return Score.of(self.loss(metrics), self.violation(metrics))

    def loss(self, metrics: Mapping[str, float]) -> float:
        """Return the loss, whatever the limits. A missing or non-finite metric is infinitely bad."""
        value = metrics.get(self.metric, math.nan)
        loss = -value if self.mode is Mode.MAX else value
        loss += sum(weight * metrics.get(name, math.nan) for name, weight in self.penalties)
        return loss if math.isfinite(loss) else math.inf

    def extra_losses(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return the losses of `extra_objectives`. A missing metric is infinitely bad."""
        values = [(metrics.get(name, math.nan), mode) for name, mode in self.extra_objectives]
        return tuple(
            math.inf if not math.isfinite(value) else -value if mode is Mode.MAX else value
            for value, mode in values
        )

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return the sum over all limits; infinity if the metric of one is missing."""
        return sum(limit.violation(metrics) for limit in self.limits)

    def is_feasible(self, metrics: Mapping[str, float]) -> bool:
        """Return whether every limit is kept. A limit on a missing metric is not."""
        return self.violation(metrics) == 0

    def missing(self, metrics: Mapping[str, float]) -> str | None:
        """Return the setting whose metric is missing: `objective.metric is 'auc'`; None: none is."""
        if self.metric not in metrics:
            return f"objective.metric is {self.metric!r}"
        return next(
            (f"objective.also names {name!r}" for name, _ in self.extra_objectives if name not in metrics),
            None,
        )

    def value(self, loss: float) -> float:
        """Return the metric in the user's direction, penalties included; NaN unless the loss is finite."""
        if not math.isfinite(loss):
            return math.nan
        return -loss if self.mode is Mode.MAX else loss
