"""Predicts how long configurations train, from the times of earlier trials."""

from __future__ import annotations

import numpy as np

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.space.axis import Array, Axes

_MIN_TRIALS = 5  # with a known time, before anything is predicted
_MAX_TRIALS = 300  # the latest
_RIDGE = 0.3  # as if the slope of each feature had been seen to be 0 in a third of a trial


class Costs:
    """Adds up the resource and the time of trials.

    A trace, with enough trials: note(0, 3 units in 6 s); note(0, 6 units in 12 s); log_times() -> {0: log 2}
    """

    def __init__(self) -> None:
        self._spent: dict[int, tuple[int, float]] = {}  # by trial

    def note(self, trial_id: int, outcome: Outcome) -> None:
        """Take an assignment. One that has failed says nothing: it may have ended early, or waited."""
        if outcome.failure is None and outcome.units > 0 and outcome.seconds > 0:
            units, seconds = self._spent.get(trial_id, (0, 0.0))
            self._spent[trial_id] = units + outcome.units, seconds + outcome.seconds

    def log_times(self) -> dict[int, float]:
        """Return the log of the seconds per unit of the resource, by trial; empty with too few trials."""
        if len(self._spent) < _MIN_TRIALS:
            return {}
        latest = list(self._spent.items())[-_MAX_TRIALS:]
        return {trial_id: float(np.log(seconds / units)) for trial_id, (units, seconds) in latest}


class CostModel:
    """A ridge regression of the log of a cost on the parameters.

    Times multiply: twice the layers, half the batch, and so on. On the scales of `Axes`, where a logarithmic
    parameter is linear, a product of powers is a linear function. Squares catch what is not one.
    """

    def __init__(self, axes: Axes, rows: Array, logs: Array) -> None:
        """Fit it.

        Args:
            axes: of the space.
            rows: positions of trials, [trials, axes].
            logs: log of the cost of each, [trials].
        """
        self._axes = axes
        features = self._features(rows)
        self._mean = float(logs.mean())
        self._centre = features.mean(axis=0)
        centred = features - self._centre
        gram = centred.T @ centred + _RIDGE * np.eye(features.shape[1])
        self._slopes = np.linalg.solve(gram, centred.T @ (logs - self._mean))

    def predict(self, rows: Array) -> Array:
        """Return the log of the cost at configurations, [rows]."""
        return np.asarray(self._mean + (self._features(rows) - self._centre) @ self._slopes)

    def _features(self, rows: Array) -> Array:
        columns = []
        for i, axis in enumerate(self._axes.axes):
            if axis.options:
                columns += [(rows[:, i] == option).astype(float) for option in range(axis.options)]
            else:
                centred = np.nan_to_num(2 * rows[:, i] - 1)  # -1..1; 0 where it is inactive
                columns += [centred, centred**2]
        return np.column_stack(columns)
