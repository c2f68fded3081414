"""Stopping rules: they end a search early. Pure, so that a replay stops at the same report."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from typing import Protocol

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.settings import require_integer, require_number


class StoppingRule(Protocol):
    """Watches reports and decides when to start no further assignment. Running ones are completed.

    A trace: observe(trial 0, loss 0.5); reason() -> None; observe(trial 1, loss 0.1); reason() -> "target"
    """

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        """Take a report.

        Args:
            resource: epochs that the trial has completed.
            loss: infinite for a failed trial.
            seconds: how long the assignment occupied its slot.
            violation: by how much the trial violates the study's limits; 0: not at all.
        """
        ...

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        """Return why the search should end, as a word for the summary; None: continue.

        Args:
            reserved_s: slot seconds that are still needed after the search.
        """
        ...


@dataclass(eq=False)
class TargetReached(StoppingRule):
    """Ends the search when a feasible trial reaches a loss."""

    loss: float  # to reach; the negative of a metric that is maximised
    least_resource: int = 0  # at which it counts

    def __post_init__(self) -> None:
        require_number("target", self.loss)
        self._is_reached = False

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        self._is_reached |= resource >= self.least_resource and not violation and loss <= self.loss

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        return "target" if self._is_reached else None


@dataclass(eq=False)
class NoImprovement(StoppingRule):
    """Ends the search after a number of fully trained trials without an improvement.

    Trials that were stopped early do not count, because most schedulers stop most trials.
    """

    max_resource: int  # epochs of a fully trained trial
    num_trials: int  # fully trained trials without an improvement
    min_improvement: float = 0.0  # by which a loss must be lower to count as an improvement

    def __post_init__(self) -> None:
        require_integer("no_improvement", self.num_trials, 1)
        require_number("min_improvement", self.min_improvement, low=0)
        self._best = NO_SCORE
        self._since = 0

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        if resource < self.max_resource or not math.isfinite(loss):
            return
        violation_before, loss_before = self._best
        if (violation, loss) < (violation_before, loss_before - self.min_improvement):
            self._best, self._since = Score(violation, loss), 0
        else:
            self._since += 1

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        return "no_improvement" if self._since >= self.num_trials else None


@dataclass(eq=False)
class CostSpent(StoppingRule):
    """Ends the search when busy slots have cost an amount of money. Idle slots do not count."""

    limit: float  # in the currency of the price
    price_per_slot_hour: float  # of one slot: of all ranks of a trial together

    def __post_init__(self) -> None:
        require_number("cost", self.limit, above=0)
        require_number("price_per_slot_hour", self.price_per_slot_hour, above=0)
        self.cost = 0.0

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        self.cost += seconds / 3600 * self.price_per_slot_hour

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        # The reserve may hold back half of the limit, so that a small one still allows a search.
        reserved = min(reserved_s / 3600 * self.price_per_slot_hour, self.limit / 2)
        return "cost" if self.cost and self.cost + reserved >= self.limit else None


@dataclass(eq=False)
class RegretBound(StoppingRule):
    """Ends the search when doubling it is expected to improve the loss by less than `bound`.

    The best losses of fully trained trials are modelled as an exponential tail. Its scale is their mean
    distance from the worst of them (the estimator of Hill 1975, without the logarithm). With twice as many
    draws from such a tail, the expected minimum improves by scale x ln 2. This is what random draws from the
    current distribution of proposals would gain; a sampler that still learns gains more, and one that has
    converged gains less. It is a heuristic, not a guarantee.
    """

    max_resource: int  # epochs of a fully trained trial
    bound: float  # of the expected gain, in units of the loss, > 0
    num_trials: int = 20  # fully trained trials before the rule can end the search, >= 10

    def __post_init__(self) -> None:
        require_integer("num_trials", self.num_trials, 10)
        require_number("regret_bound", self.bound, above=0)
        self._losses: list[float] = []  # ascending

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        if resource >= self.max_resource and math.isfinite(loss) and not violation:
            insort(self._losses, loss)

    @property
    def expected_gain(self) -> float:
        """Expected gain of doubling the search; infinite with too few trials."""
        if len(self._losses) < self.num_trials:
            return math.inf
        tail = self._losses[: max(5, len(self._losses) // 10) + 1]
        scale = math.fsum(tail[-1] - loss for loss in tail[:-1]) / (len(tail) - 1)
        return scale * math.log(2)

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        return "regret_bound" if self.expected_gain <= self.bound else None
