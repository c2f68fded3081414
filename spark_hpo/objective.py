"""The objective of a study: metrics, directions and limits, as a loss to minimise.

Inside the package every objective is a loss to minimise: `Objective` flips the sign, and nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """The direction in which a metric is better."""

    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on another metric: the latency, the size of the model. Both ends are allowed values."""

    metric: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much it is broken, in parts of the bound; 0: it is kept. Infinite where it is not known."""
        value = metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        excess, bound = max((self.at_least - value, self.at_least), (value - self.at_most, self.at_most))
        return max(excess, 0.0) / (abs(bound) if bound and math.isfinite(bound) else 1.0)


# A configuration that breaks a limit is worse than any that keeps them all, and the more so the more it
# breaks (Deb 2000): so a search that has found none that keeps them knows where to go.
_BEYOND_LIMITS = 1e9
# The same for each further objective, above the value of any metric: together with a loss that grows with
# the violation, it makes of Pareto dominance the constrained dominance of Deb et al. 2002.
_FAR_BEYOND_LIMITS = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The metrics to optimise, and the one place where their signs are flipped.

    The first metric is the primary one: it ranks the trials of a rung and names the best. With penalties
    its loss is a weighted sum: weight x value of another metric is added to the loss, so a positive weight
    makes more of that metric worse, whatever the mode.

    A trace: metric "accuracy", max; also (("latency_ms", min),)
        metrics {"accuracy": 0.9, "latency_ms": 7.0} -> loss -0.9, others (7.0,)
    """

    metric: str
    mode: Mode
    penalties: tuple[tuple[str, float], ...] = ()  # (metric, weight)
    limits: tuple[Limit, ...] = ()
    also: tuple[tuple[str, Mode], ...] = ()  # further objectives: what is sought then is a Pareto front

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all objectives, the primary one first."""
        return (self.metric, *(name for name, _ in self.also))

    def loss(self, metrics: Mapping[str, float]) -> float:
        """The loss to minimise. A missing or non-finite metric is infinitely bad, never an error."""
        value = metrics.get(self.metric, math.nan)
        loss = -value if self.mode is Mode.MAX else value
        loss += sum(weight * metrics.get(name, math.nan) for name, weight in self.penalties)
        violation = self._violation(metrics)
        if not (math.isfinite(loss) and math.isfinite(violation)):
            return math.inf
        return _BEYOND_LIMITS + violation if violation > 0 else loss

    def others(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The losses of the further objectives, in the order of `also`. What is missing is infinitely bad."""
        if self._violation(metrics) > 0:
            return (_FAR_BEYOND_LIMITS,) * len(self.also)
        values = [(metrics.get(name, math.nan), mode) for name, mode in self.also]
        return tuple(
            math.inf if not math.isfinite(value) else -value if mode is Mode.MAX else value
            for value, mode in values
        )

    def keeps_limits(self, metrics: Mapping[str, float]) -> bool:
        """Whether no limit is broken. One on a metric that is not known is."""
        return self._violation(metrics) == 0

    def missing(self, metrics: Mapping[str, float]) -> str | None:
        """The setting whose metric is not there, in words: `objective.metric is 'auc'`; None: all are."""
        if self.metric not in metrics:
            return f"objective.metric is {self.metric!r}"
        return next((f"objective.also names {name!r}" for name, _ in self.also if name not in metrics), None)

    def value(self, loss: float) -> float:
        """The metric again, in the user's own direction, penalties included; NaN beyond a limit."""
        if loss >= _BEYOND_LIMITS:
            return math.nan
        return -loss if self.mode is Mode.MAX else loss

    def _violation(self, metrics: Mapping[str, float]) -> float:
        return sum(limit.violation(metrics) for limit in self.limits)
