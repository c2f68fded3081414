"""The defaults of a space, as a first guess of where good configurations are."""

from __future__ import annotations

import math

import numpy as np

from spark_hpo.search.samplers.parzen import Bandwidth, ParzenEstimator
from spark_hpo.search.space.axis import Array, Axes, Axis

_BANDWIDTH = Bandwidth(scale=0.15, floor=0.15)
_SMOOTHING = 1.0  # good trials that are as near to the guess as all trials are, beside those that were seen
_MIN_RESULTS = 4  # fewer say nothing


class FirstGuess:
    """A kernel at the defaults, and how far results confirm them.

    A guess may be wrong. As in PriorBand (Mallik et al. 2023, arXiv:2306.12370), the best trials decide how
    much it counts: a guess near which there are fewer of the best trials than of all trials loses weight.
    """

    def __init__(self, axes: Axes, row: Array) -> None:
        """Create it, from the positions of the defaults; NaN where there is none."""
        self.row, self._axes = row, axes
        self._kernel = ParzenEstimator(axes, row[None], _BANDWIDTH, prior_weight=0.0)

    def draw(self, rng: np.random.Generator, *, exactly: bool = False) -> Array:
        """Draw a configuration around the guess, or with exactly the defaults. The others are random."""
        drawn: Array = self._kernel.sample(rng, 1)[0]
        if not exactly:
            return drawn
        units = rng.random(len(self._axes))

        def position(number: int, axis: Axis) -> float:
            default = float(self.row[number])
            return axis.from_unit(float(units[number])) if math.isnan(default) else default

        return self._axes.build_row(position)

    def trust(self, good: Array, known: Array) -> float:
        """Return how much the guess counts, 0..1.

        Args:
            good: the best trials, [trials, axes].
            known: all trials with results, among them the good ones, [trials, axes].
        """
        if len(known) < _MIN_RESULTS:
            return 1.0
        near = self._near(known).mean()
        near_good = (self._near(good).sum() + _SMOOTHING * near) / (len(good) + _SMOOTHING)
        return float(min(1.0, near_good / near)) if near > 0 else 1.0

    def _near(self, rows: Array) -> Array:
        """Return the probability that a configuration was drawn around the guess instead of at random."""
        return np.asarray(1 / (1 + np.exp(-self._kernel.log_density(rows))))
