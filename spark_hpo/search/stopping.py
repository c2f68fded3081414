"""When a search has done enough: rules that watch its results. Pure, so that a replay stops where it did."""

from __future__ import annotations

import math
from bisect import insort
from typing import Protocol

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.settings import require_integer, require_number


class StoppingRule(Protocol):
    """Says when no further assignment is worth its cost. What runs then is finished.

    A trace: observe(trial 0, loss 0.5); reason() -> None; observe(trial 1, loss 0.1); reason() -> "target"
    """

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        """One assignment has reported: its resource, its loss (infinite for a failure), its slot's time, and
        by how much it breaks the study's limits."""
        ...

    def reason(self) -> str | None:
        """Why the search should end, in one word of the summary; None: it should go on."""
        ...


class TargetReached:
    """Ends when a trial is as good as it has to be.

    Args:
        loss: to be reached, at any resource; of a metric to be maximised, the negative.
    """

    def __init__(self, loss: float) -> None:
        require_number("target", loss)
        self.loss = loss
        self._is_reached = False

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        self._is_reached |= not violation and loss <= self.loss

    def reason(self) -> str | None:
        return "target" if self._is_reached else None


class NoImprovement:
    """Ends when so many trials have been trained to the end since the best of them.

    Trials that were stopped early are not counted: a scheduler that stops nine of ten would be taken for
    a search that has run dry.

    Args:
        max_resource: epochs of a trial that is trained to the end.
        num_trials: trained to the end, without one that is better by more than `min_improvement`.
        min_improvement: of the loss.
    """

    def __init__(self, max_resource: int, num_trials: int, min_improvement: float = 0.0) -> None:
        require_integer("no_improvement", num_trials, 1)
        require_number("min_improvement", min_improvement, low=0)
        self.max_resource = max_resource
        self.num_trials = num_trials
        self.min_improvement = min_improvement
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

    def reason(self) -> str | None:
        return "no_improvement" if self._since >= self.num_trials else None


class CostSpent:
    """Ends when slots have been busy for so much money. Idle slots are not counted.

    Args:
        limit: in the currency of the price.
        price_per_slot_hour: of one slot, that is, of all ranks of one trial together.
    """

    def __init__(self, limit: float, price_per_slot_hour: float) -> None:
        for name, value in (("cost", limit), ("price_per_slot_hour", price_per_slot_hour)):
            require_number(name, value, above=0)
        self.limit = limit
        self.price_per_slot_hour = price_per_slot_hour
        self.cost = 0.0

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        self.cost += seconds / 3600 * self.price_per_slot_hour

    def reason(self) -> str | None:
        return "cost" if self.cost >= self.limit else None


class RegretBound:
    """Ends when searching as long again is expected to gain less than `bound`.

    The best losses of trials trained to the end are taken for the tail of a distribution with exponential
    decay, whose scale is their mean distance from the worst of them (the estimator of Hill 1975, without
    the logarithm). The best of twice as many draws from such a tail is better by scale x ln 2 in the
    mean. This is what random draws from where the search is now would gain: a model that still learns
    gains more, a search that has closed in on one place gains less. A rule of thumb, not a guarantee.

    Args:
        max_resource: epochs of a trial that is trained to the end.
        bound: of the expected gain, in units of the loss, above 0.
        num_trials: that must have been trained to the end before it speaks, at least 10.
    """

    def __init__(self, max_resource: int, bound: float, num_trials: int = 20) -> None:
        require_integer("num_trials", num_trials, 10)
        require_number("regret_bound", bound, above=0)
        self.max_resource = max_resource
        self.bound = bound
        self.num_trials = num_trials
        self._losses: list[float] = []  # ascending

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        if resource >= self.max_resource and math.isfinite(loss) and not violation:
            insort(self._losses, loss)

    @property
    def expected_gain(self) -> float:
        """Of searching as long again; infinite while too little is known."""
        if len(self._losses) < self.num_trials:
            return math.inf
        tail = self._losses[: max(5, len(self._losses) // 10) + 1]
        scale = math.fsum(tail[-1] - loss for loss in tail[:-1]) / (len(tail) - 1)
        return scale * math.log(2)

    def reason(self) -> str | None:
        return "regret_bound" if self.expected_gain <= self.bound else None
