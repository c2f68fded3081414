"""Kernel density estimates over configurations, for all parameters jointly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from spark_hpo.search.space.axis import Array, Axes

_LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """The width of kernels on the unit interval, by the number of kernels and axes."""

    scale: float  # of Scott's rule: scale n^(-1 / (axes + 4))
    floor: float  # minimum width
    magic: float = math.inf  # minimum width is also 1 / (1 + n)^magic ("magic clip")

    def of(self, num_kernels: int, num_axes: int) -> float:
        scott = self.scale * float(max(num_kernels, 1) ** (-1 / (num_axes + 4)))
        clip = float((1 + num_kernels) ** -self.magic)
        return max(scott, clip, self.floor)


@dataclass(eq=False)
class ParzenEstimator:
    """A mixture of product kernels, one for each configuration, and one for the prior.

    On a number, a kernel is a normal distribution, truncated to the unit interval and, for rounded numbers,
    integrated over their cells. On a choice, it is the option that was taken, with some weight on the other
    options. Where a parameter of a configuration is inactive, its kernel is the prior. So one density covers
    a conditional space, and a good momentum of one optimizer counts in favour of that optimizer.
    """

    axes: Axes
    rows: Array  # one configuration per kernel, [kernels, axes]; NaN where inactive
    bandwidth: Bandwidth  # for all numbers
    prior_weight: float = 1.0  # a kernel has 1
    weights: Array | None = None  # of the kernels; None: 1 each

    def __post_init__(self) -> None:
        weights = np.ones(len(self.rows)) if self.weights is None else self.weights
        total = float(weights.sum()) + self.prior_weight
        self._weights = np.append(weights, self.prior_weight) / total
        numbers = sum(not axis.options for axis in self.axes.axes)
        self._width = self.bandwidth.of(len(self.rows), numbers)
        with np.errstate(divide="ignore"):  # the prior may have weight 0
            self._log_weights = np.log(self._weights)

    @property
    def prior_share(self) -> float:
        """Return the share of the prior in the density."""
        return float(self._weights[-1])

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """Draw configurations, [num, axes]."""
        kernels = rng.choice(len(self._weights), size=num, p=self._weights)
        prior = np.full((1, len(self.axes)), math.nan)
        centres = np.concatenate([self.rows, prior])[kernels]
        drawn = np.full((num, len(self.axes)), math.nan)
        for i, axis in enumerate(self.axes.axes):  # choices before the parameters that they activate
            uniform = rng.random(num)
            centre = centres[:, i]
            known = ~np.isnan(centre)
            if axis.options:
                positions = _pick(axis.prior, uniform)
                stays = known & (rng.random(num) >= self._smoothing(axis.options))
                positions = np.where(stays, centre, positions)
            else:
                mu = np.where(known, centre, 0.5)
                low, high = ndtr(-mu / self._width), ndtr((1 - mu) / self._width)
                inner = mu + self._width * ndtri(low + uniform * (high - low))
                positions = np.clip(np.where(known, inner, uniform), 0.0, 1.0)
                if axis.edges is not None:
                    positions = axis.centres(positions)
            active = self.axes.active(drawn, i)
            drawn[active, i] = positions[active]
        return drawn

    def log_density(self, rows: Array) -> Array:
        """Return the log density at configurations, relative to uniform numbers, [rows]."""
        total = np.zeros((len(rows), len(self.rows) + 1))
        for i, axis in enumerate(self.axes.axes):
            here = np.flatnonzero(~np.isnan(rows[:, i]))
            if not len(here):
                continue
            positions, centres = rows[here, i], self.rows[:, i]
            known = ~np.isnan(centres)
            factor = np.zeros((len(here), len(self.rows) + 1))
            if axis.options:
                with np.errstate(divide="ignore"):  # an option may have weight 0
                    prior = np.log(axis.prior)[positions.astype(int)]
                smoothing = self._smoothing(axis.options)
                factor[:] = prior[:, None]
                mass = smoothing * axis.prior[positions.astype(int)][:, None]
                mass = mass + (1 - smoothing) * (positions[:, None] == centres[None, known])
                with np.errstate(divide="ignore"):
                    factor[:, np.flatnonzero(known)] = np.log(mass)
            else:
                factor[:, np.flatnonzero(known)] = self._log_kernel(i, positions, centres[known])
            total[here] += factor
        total += self._log_weights
        highest = total.max(axis=1, keepdims=True)
        density: Array = highest[:, 0] + np.log(np.exp(total - highest).sum(axis=1))
        return density

    def _log_kernel(self, number: int, positions: Array, centres: Array) -> Array:
        """Return the log of each kernel on the axis of a number, [positions, kernels]."""
        axis, width = self.axes.axes[number], self._width
        inside = np.log(ndtr((1 - centres) / width) - ndtr(-centres / width))
        if axis.edges is None:
            z = (positions[:, None] - centres) / width
            return np.asarray(-0.5 * z * z - _LOG_SQRT_TAU - math.log(width) - inside)
        low, high = axis.cells(positions)
        # The left tail is used, by symmetry, because it has no cancellation. Where the mass underflows to 0,
        # only the prior contributes.
        a, b = (low[:, None] - centres) / width, (high[:, None] - centres) / width
        flip = a > 0
        mass = ndtr(np.where(flip, -a, b)) - ndtr(np.where(flip, -b, a))
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(mass / (high - low)[:, None]) - inside)

    def _smoothing(self, options: int) -> float:
        """Return the weight of the prior in a kernel on a choice, as if each option had been seen once."""
        return options / (options + max(len(self.rows), 1))


def _pick(probabilities: Array, uniform: Array) -> Array:
    """Map uniform numbers to options with these probabilities."""
    ends = np.cumsum(probabilities)
    ends[-1] = 1.0
    picked: Array = np.searchsorted(ends, uniform, side="right").astype(float)
    return np.minimum(picked, len(ends) - 1)
