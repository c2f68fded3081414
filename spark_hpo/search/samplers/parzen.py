"""A density over configurations: a kernel at each known one, all parameters jointly, and the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from spark_hpo.search.space.axis import Array, Axes

_LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """How wide the kernels are, on the unit interval, by the number of kernels and of axes."""

    scale: float  # of Scott's rule: scale n^(-1 / (axes + 4))
    floor: float  # never narrower
    magic: float = math.inf  # nor than 1 / (1 + n)^magic: few kernels know little ("magic clip")

    def of(self, num_kernels: int, num_axes: int) -> float:
        scott = self.scale * float(max(num_kernels, 1) ** (-1 / (num_axes + 4)))
        clip = float((1 + num_kernels) ** -self.magic)
        return max(scott, clip, self.floor)


class ParzenEstimator:
    """A mixture of products: each kernel is a configuration, blurred on all of its axes at once.

    On a number the blur is a normal distribution, cut off at the ends of the unit interval and, where
    values are rounded, integrated over their cells; on a choice it is the option that was taken, with
    some weight on the others. One further kernel is the prior, the space itself. Where a configuration
    has no such parameter, because a choice has turned it off, its kernel has the prior there: so one
    density covers a conditional space, and a good value of one optimizer's momentum speaks for that
    optimizer.

    Args:
        axes: of the space.
        rows: a kernel for each of them, [kernels, axes]; NaN where not active.
        bandwidth: on all numbers.
        prior_weight: of the space itself; a kernel has the weight 1.
        weights: of the kernels; None: 1 each.
    """

    def __init__(
        self,
        axes: Axes,
        rows: Array,
        bandwidth: Bandwidth,
        *,
        prior_weight: float = 1.0,
        weights: Array | None = None,
    ) -> None:
        self._axes = axes
        self._rows = rows
        weights = np.ones(len(rows)) if weights is None else weights
        total = float(weights.sum()) + prior_weight
        self._weights = np.append(weights, prior_weight) / total
        numbers = sum(not axis.options for axis in axes.axes)
        self._width = bandwidth.of(len(rows), numbers)
        with np.errstate(divide="ignore"):  # a prior of weight 0
            self._log_weights = np.log(self._weights)

    @property
    def prior_share(self) -> float:
        """The share of the prior in the density."""
        return float(self._weights[-1])

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """Draw configurations, [num, axes]."""
        kernels = rng.choice(len(self._weights), size=num, p=self._weights)
        prior = np.full((1, len(self._axes)), math.nan)
        centres = np.concatenate([self._rows, prior])[kernels]
        drawn = np.full((num, len(self._axes)), math.nan)
        for i, axis in enumerate(self._axes.axes):  # outer ones first: what they take turns others on
            uniform = rng.random(num)
            centre = centres[:, i]
            known = ~np.isnan(centre)
            if axis.options:
                places = _pick(axis.prior, uniform)
                stays = known & (rng.random(num) >= self._doubt(axis.options))
                places = np.where(stays, centre, places)
            else:
                mu = np.where(known, centre, 0.5)
                low, high = ndtr(-mu / self._width), ndtr((1 - mu) / self._width)
                inner = mu + self._width * ndtri(low + uniform * (high - low))
                places = np.clip(np.where(known, inner, uniform), 0.0, 1.0)
                if axis.edges is not None:
                    places = axis.centres(places)
            active = self._axes.active(drawn, i)
            drawn[active, i] = places[active]
        return drawn

    def log_density(self, rows: Array) -> Array:
        """The logarithm of the density at configurations, relative to evenly spread numbers, [rows]."""
        total = np.zeros((len(rows), len(self._rows) + 1))
        for i, axis in enumerate(self._axes.axes):
            here = np.flatnonzero(~np.isnan(rows[:, i]))
            if not len(here):
                continue
            places, centres = rows[here, i], self._rows[:, i]
            known = ~np.isnan(centres)
            factor = np.zeros((len(here), len(self._rows) + 1))
            if axis.options:
                with np.errstate(divide="ignore"):  # an option of weight 0 is never drawn
                    prior = np.log(axis.prior)[places.astype(int)]
                doubt = self._doubt(axis.options)
                factor[:] = prior[:, None]
                mass = doubt * axis.prior[places.astype(int)][:, None]
                mass = mass + (1 - doubt) * (places[:, None] == centres[None, known])
                with np.errstate(divide="ignore"):
                    factor[:, np.flatnonzero(known)] = np.log(mass)
            else:
                factor[:, np.flatnonzero(known)] = self._log_kernel(i, places, centres[known])
            total[here] += factor
        total += self._log_weights
        highest = total.max(axis=1, keepdims=True)
        density: Array = highest[:, 0] + np.log(np.exp(total - highest).sum(axis=1))
        return density

    def _log_kernel(self, number: int, places: Array, centres: Array) -> Array:
        """Of each kernel at each place on the axis of a number, [places, kernels]."""
        axis, width = self._axes.axes[number], self._width
        inside = np.log(ndtr((1 - centres) / width) - ndtr(-centres / width))
        if axis.edges is None:
            z = (places[:, None] - centres) / width
            return np.asarray(-0.5 * z * z - _LOG_SQRT_TAU - math.log(width) - inside)
        low, high = axis.cells(places)
        # A normal distribution is symmetric: on the left side nothing is lost to rounding. What lies so far
        # out that its mass is 0 has the prior's density.
        a, b = (low[:, None] - centres) / width, (high[:, None] - centres) / width
        flip = a > 0
        mass = ndtr(np.where(flip, -a, b)) - ndtr(np.where(flip, -b, a))
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(mass / (high - low)[:, None]) - inside)

    def _doubt(self, options: int) -> float:
        """How much of a kernel's weight on a choice is the prior's: as if each option had been seen once."""
        return options / (options + max(len(self._rows), 1))


def _pick(probabilities: Array, uniform: Array) -> Array:
    """Options with these probabilities, by evenly spread numbers."""
    ends = np.cumsum(probabilities)
    ends[-1] = 1.0
    picked: Array = np.searchsorted(ends, uniform, side="right").astype(float)
    return np.minimum(picked, len(ends) - 1)
