"""Gaussian process regression over configurations."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, lapack, solve_triangular
from scipy.special import expit
from threadpoolctl import ThreadpoolController

from spark_hpo.search.space.axis import Array, Axes

_JITTER = 1e-6  # keeps the covariance positive definite if points are equal
_MIN_VARIANCE = 1e-8
_MAX_STEPS = 25  # of a fit
_MAX_DEVIATIONS = 3.0  # of a fitted parameter from the mean of its prior
# Priors of the logarithms, as (mean, deviation). Positions are in 0..1, targets have deviation 1.
_LENGTH = (math.log(0.5), 0.8)
_SCALE = (0.0, 0.5)
_RESIDUAL = (math.log(0.05), 1.2)
_SHARED = (0.0, 1.5)  # log-odds of the share of the noise that neighbours have in common
_ROWS_AT_ONCE = 32  # of a covariance
_INACTIVE = 0.7  # distance of an inactive parameter from an active one


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Noisy observations of a function of configurations."""

    points: Array  # [observations, columns], see `embed`
    targets: Array  # with mean 0 and deviation 1 or so, [observations]
    noise: Array  # known variance of each target, beside the residual that is fitted, [observations]


def one_thread() -> AbstractContextManager[Any]:
    """Return a context in which linear algebra uses one thread of this process.

    The matrices of a `Process` are too small to share: where other processes use the cores, the threads of
    BLAS spend many times the computation waiting for each other. And the last digit of a result would depend
    on the number of cores.
    """
    limit: AbstractContextManager[Any] = _blas().limit(limits=1)
    return limit


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def embed(axes: Axes, rows: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return configurations as points whose distances are Euclidean, and the axis of each column.

    A choice has a column for each option, so any two options are as far apart as the ends of a range. A
    parameter that is active only under a condition has a column for this.
    """
    columns: list[Array] = []
    owners: list[int] = []
    for number, axis in enumerate(axes.axes):
        positions, inactive = rows[:, number], np.isnan(rows[:, number])
        if axis.options:
            columns += [math.sqrt(0.5) * (positions == option) for option in range(axis.options)]
        else:
            columns.append(np.where(inactive, 0.5, positions))
        if axes.conditions[number]:
            columns.append(_INACTIVE * inactive)
        owners += [number] * (len(columns) - len(owners))
    points = np.stack(columns, axis=1).astype(float) if columns else np.empty((len(rows), 0))
    return points, np.array(owners, dtype=np.int64)


def fit(observations: Observations, owners: npt.NDArray[np.int64]) -> Array:
    """Return the parameters with the highest posterior: logarithms of a length for each axis, of the scale
    (a variance), and of the residual, the variance that parameters do not explain; and the log-odds of the
    share of the noise that neighbours have in common.

    Args:
        observations: the cost is their number to the power of 3: 0.1 s for 250.
        owners: the axis of each column.
    """
    from scipy.optimize import minimize  # slow to import

    objective = _Posterior(observations, owners)
    reach = _MAX_DEVIATIONS * objective.deviation
    bounds = list(zip(objective.mean - reach, objective.mean + reach, strict=True))
    found = minimize(
        objective, objective.mean, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _MAX_STEPS}
    )
    parameters: Array = found.x
    return parameters


class _Posterior:
    """The negative log posterior of parameters, and its gradient."""

    def __init__(self, observations: Observations, owners: npt.NDArray[np.int64]) -> None:
        self._observations = observations
        count = int(owners.max()) + 1
        points = observations.points
        self._squared = np.stack(
            [_squared(points[:, owners == axis], points[:, owners == axis]) for axis in range(count)]
        )
        self._roots = np.sqrt(observations.noise)
        self._noises = np.outer(self._roots, self._roots)
        self.mean, self.deviation = np.array([*[_LENGTH] * count, _SCALE, _RESIDUAL, _SHARED]).T

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        inverse_squares = np.exp(-2 * parameters[:-3])
        distance = np.sqrt(5 * np.tensordot(inverse_squares, self._squared, 1))
        decay = np.exp(-distance)
        scale, residual, shared = np.exp(parameters[-3]), np.exp(parameters[-2]), expit(parameters[-1])
        matern = (1 + distance + distance**2 / 3) * decay
        scales = scale + shared * self._noises
        noise = self._observations.noise
        factor = _factor(scales * matern, residual + (1 - shared) * noise)
        targets = self._observations.targets
        weights = cho_solve((factor, True), targets, check_finite=False)
        inverse = np.tril(lapack.dpotri(factor, lower=1)[0])
        inverse += np.tril(inverse, -1).T
        # d loss / d p = sum(slope * dK/dp); all matrices are symmetric.
        slope = (inverse - np.outer(weights, weights)) / 2
        gradient = np.empty_like(parameters)
        by_squared = (slope * scales * (5 / 3 * (1 + distance) * decay)).ravel()
        gradient[:-3] = self._squared.reshape(len(self._squared), -1) @ by_squared * inverse_squares
        by_matern = slope * matern
        gradient[-3] = by_matern.sum() * scale
        gradient[-2] = np.trace(slope) * residual
        gradient[-1] = ((by_matern * self._noises).sum() - np.diag(slope) @ noise) * shared * (1 - shared)
        off = (parameters - self.mean) / self.deviation
        loss = targets @ weights / 2 + np.log(np.diag(factor)).sum() + off @ off / 2
        return float(loss), gradient + off / self.deviation


@dataclass(frozen=True, eq=False)
class Process:
    """Exact Gaussian process regression with a Matérn 5/2 kernel and one length for each axis.

    A share of the noise is a function of the point, too, with the same kernel: what an observation is off by,
    its neighbours are off by as well. So a region does not become certain by many noisy observations.

    Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", algorithm 2.1. The cost of a
    prediction is the number of observations squared, for each point.
    """

    lengths: Array  # by column
    scale: float
    residual: float
    points: Array  # divided by the lengths
    factor: Array  # of the covariance of all points
    weights: Array  # 0 for pending points
    noiseless: Array  # expected targets without their noise, but with the residual

    @classmethod
    def of(cls, observations: Observations, owners: npt.NDArray[np.int64], parameters: Array) -> Process:
        """Condition on observations."""
        lengths = np.exp(parameters[:-3])[owners]
        scale, residual, shared = np.exp(parameters[-3]), np.exp(parameters[-2]), expit(parameters[-1])
        points, noise = observations.points / lengths, observations.noise
        matern = _matern(_squared(points, points))
        roots = np.sqrt(noise)
        common = shared * np.outer(roots, roots) * matern
        factor = _factor(scale * matern + common, residual + (1 - shared) * noise)
        weights = cho_solve((factor, True), observations.targets, check_finite=False)
        noiseless = observations.targets - common @ weights - (1 - shared) * noise * weights
        return cls(lengths, float(scale), float(residual), points, factor, weights, noiseless)

    def mean(self, points: Array) -> Array:
        """Return the expected function at points [points, columns]: [points]."""
        mean: Array = self._covariance(points / self.lengths) @ self.weights
        return mean

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and deviation of the function at points [points, columns], without residual."""
        covariance = self._covariance(points / self.lengths)
        explained = solve_triangular(self.factor, covariance.T, lower=True, check_finite=False)
        variance = self.scale - np.square(explained, out=explained).sum(axis=0)
        return covariance @ self.weights, np.sqrt(np.maximum(variance, _MIN_VARIANCE))

    def believing(self, pending: Array) -> Process:
        """Return the process once pending points [points, columns] have turned out as expected.

        They reduce the deviation and keep the mean ("kriging believer": Ginsbourger et al. 2010).
        """
        if not len(pending):
            return self
        points = pending / self.lengths
        row = solve_triangular(self.factor, self._covariance(points).T, lower=True, check_finite=False).T
        own = self.scale * _matern(_squared(points, points)) - row @ row.T
        old, new = len(self.points), len(points)
        factor = np.zeros((old + new, old + new))
        factor[:old, :old], factor[old:, :old] = self.factor, row
        factor[old:, old:] = _factor(own, self.residual)
        return replace(
            self,
            points=np.concatenate([self.points, points]),
            factor=factor,
            weights=np.concatenate([self.weights, np.zeros(new)]),
        )

    def _covariance(self, scaled: Array) -> Array:
        covariance = _matern(_squared(scaled, self.points))
        covariance *= self.scale
        return covariance


def _squared(a: Array, b: Array) -> Array:
    product = a @ b.T
    product *= 2
    squared: Array = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    squared -= product
    return np.maximum(squared, 0.0, out=squared)


def _matern(squared: Array) -> Array:
    """Replace squared distances [rows, columns] by the kernel, and return them.

    A few rows at a time: their temporary arrays fit into the processor's cache, those of all rows do not.
    """
    for first in range(0, len(squared), _ROWS_AT_ONCE):
        rows = squared[first : first + _ROWS_AT_ONCE]
        distance = np.sqrt(5 * rows)
        rows[:] = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return squared


def _factor(covariance: Array, noise: float | Array) -> Array:
    """Return the lower Cholesky factor of a covariance with noise."""
    noisy = covariance.copy()
    noisy[np.diag_indices_from(noisy)] += noise + _JITTER
    return np.asarray(cholesky(noisy, lower=True, check_finite=False))
