"""What a search had found when: the best trial trained to the end, and the model one would deploy."""

from __future__ import annotations

import math

from tests.benchmarks.replay.benchmark import Benchmark
from tests.support.simulated import Curve

_ROUNDING = 1e-9  # times of the same moment differ by it, as sums of epochs

History = tuple[tuple[float, float], ...]
"""(time as a share of the budget, regret) at each change, ascending in time."""


class Found:
    """Records the reports of one search.

    `trained`: the regret of the best configuration that was trained to the end by then. It only falls.
    `deployed`: the regret of the checkpoint, after any resource, with the best validation value by then,
    measured on data that the search does not see where the benchmark has such. It rises when a checkpoint is
    better on the validation rows alone.

    A trace, of a benchmark with two epochs: report(0.1, curve of 0.9 0.8, 1) -> deployed 0.9;
    report(0.3, the same, 2) -> deployed and trained 0.8
    """

    def __init__(self, benchmark: Benchmark, limit_s: float) -> None:
        self._benchmark = benchmark
        self._limit_s = limit_s
        self._lowest_trained = self._lowest = math.inf
        self._trained: list[tuple[float, float]] = []
        self._deployed: list[tuple[float, float]] = []

    @property
    def trained(self) -> History:
        return tuple(self._trained)

    @property
    def deployed(self) -> History:
        return tuple(self._deployed)

    def is_over(self, now_s: float) -> bool:
        """The budget is spent. A trial that ends in the same moment still counts."""
        return now_s > self._limit_s * (1 + _ROUNDING)

    def share(self, now_s: float) -> float:
        """The time as a share of the budget, 0..1."""
        return min(now_s / self._limit_s, 1.0)

    def report(self, now_s: float, curve: Curve, resource: int) -> float:
        """Take a report of a trial that has not failed. Returns its loss."""
        benchmark, objective = self._benchmark, self._benchmark.objective
        loss = objective.loss({objective.metric: float(curve.metrics[objective.metric][resource - 1])})
        if self.is_over(now_s):
            return loss
        when = self.share(now_s)
        if resource == benchmark.max_resource and loss < self._lowest_trained:
            self._lowest_trained = loss
            self._trained.append((when, benchmark.reference.regret(loss)))
        if loss < self._lowest:
            self._lowest = loss
            unseen = loss if curve.unseen is None else float(curve.unseen[resource - 1])
            self._deployed.append((when, benchmark.unseen_reference.regret(unseen)))
        return loss


def at(history: History, when: float) -> float:
    """The regret at that time; 1, the median configuration's, before anything was found."""
    return next((regret for time, regret in reversed(history) if time <= when), 1.0)
