"""Gaussian process regression for functions that change with time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = npt.NDArray[np.float64]

_JITTER = 1e-6  # keeps the covariance positive definite if points are equal
_MAX_STEPS = 40  # of the fit
# Priors of the logarithms, as (mean, deviation). Inputs and times are in 0..1, targets have deviation 1.
_VARIANCE = (0.0, 0.7)
_LENGTH = (math.log(0.4), 0.8)
_FORGETTING = (math.log(0.5), 1.0)
_NOISE = (math.log(0.1), 1.0)
_MAX_DEVIATIONS = 3.0  # of a fitted parameter from the mean of its prior


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Inputs and times of evaluations of a function."""

    inputs: Array  # [points, columns], each column 0..1
    times: Array  # [points], within an interval of length 1

    def __len__(self) -> int:
        return len(self.times)

    def extended(self, others: Points) -> Points:
        """Return these points, followed by others."""
        return Points(
            inputs=np.concatenate([self.inputs, others.inputs]),
            times=np.concatenate([self.times, others.times]),
        )


@dataclass(eq=False)
class TimeVaryingProcess:
    """Exact Gaussian process regression with maximum a posteriori parameters.

    Bogunovic et al. 2016, "Time-Varying Gaussian Process Bandit Optimization", arXiv:1601.06650:
        k((x, t), (x', t')) = variance * exp(-|x - x'|^2 / (2 length^2)) * (1 - omega)^(|t - t'| / 2)
    so older observations count less. Here omega is 1 - exp(-2 forgetting). Columns of a group share a length.
    The cost is n^3: a few milliseconds for a few hundred points.
    """

    points: Points  # of the observations
    targets: Array  # observed values, [points], with mean 0 and deviation 1
    groups: tuple[int, ...]  # 0, 1, ... for each column

    def __post_init__(self) -> None:
        from scipy.optimize import minimize  # slow to import

        self._groups = np.asarray(self.groups)
        self._num_lengths = int(self._groups.max(initial=-1)) + 1
        self._distances = self._distances_of(self.points, self.points)
        priors = np.array([_VARIANCE, *[_LENGTH] * self._num_lengths, _FORGETTING, _NOISE])
        self._mean, self._deviation = priors.T
        reach = _MAX_DEVIATIONS * self._deviation
        fitted = minimize(
            self.loss,
            self._mean,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(self._mean - reach, self._mean + reach, strict=True)),
            options={"maxiter": _MAX_STEPS},
        )
        self.parameters: Array = fitted.x  # logarithms of variance, lengths, forgetting and noise
        self._factor = self._factor_of(self._covariance(self._distances, self.parameters))
        self._weights = cho_solve((self._factor, True), self.targets)

    def predict(self, points: Points, pending: Points | None = None) -> tuple[Array, Array]:
        """Return mean and standard deviation of the function, without noise.

        Args:
            pending: points that are being evaluated. They reduce the deviation, and keep the mean.
        """
        covariance = self._covariance(self._distances_of(points, self.points), self.parameters)
        mean = covariance @ self._weights
        factor = self._factor
        if pending is not None and len(pending):
            known = self.points.extended(pending)
            factor = self._factor_of(self._covariance(self._distances_of(known, known), self.parameters))
            covariance = self._covariance(self._distances_of(points, known), self.parameters)
        explained = solve_triangular(factor, covariance.T, lower=True)
        variance = math.exp(self.parameters[0]) - (explained**2).sum(axis=0)
        return mean, np.sqrt(np.maximum(variance, _JITTER))

    def draw(self, points: Points, rng: np.random.Generator) -> Array:
        """Draw one function from the posterior, and return its values at some points."""
        covariance = self._covariance(self._distances_of(points, self.points), self.parameters)
        explained = solve_triangular(self._factor, covariance.T, lower=True)
        own = self._covariance(self._distances_of(points, points), self.parameters)
        left = own - explained.T @ explained + _JITTER * np.eye(len(points))
        values, vectors = np.linalg.eigh(left)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn: Array = covariance @ self._weights + root @ rng.standard_normal(len(points))
        return drawn

    def loss(self, parameters: Array) -> tuple[float, Array]:
        """Return the negative log posterior of the parameters, which the fit minimises, and its gradient."""
        covariance = self._covariance(self._distances, parameters)
        factor = cholesky(_with_noise(covariance, parameters), lower=True)
        weights = cho_solve((factor, True), self.targets)
        # d loss / d p = trace(slope @ dK/dp) / 2; both matrices are symmetric.
        slope = cho_solve((factor, True), np.eye(len(weights))) - np.outer(weights, weights)
        by_covariance = slope * covariance / 2
        gradient = np.empty_like(parameters)
        gradient[0] = by_covariance.sum()
        for i, distance in enumerate(self._distances[:-1], start=1):
            gradient[i] = (by_covariance * distance).sum() * math.exp(-2 * parameters[i])
        gradient[-2] = -(by_covariance * self._distances[-1]).sum() * math.exp(parameters[-2])
        gradient[-1] = np.trace(slope) / 2 * math.exp(parameters[-1])
        off = (parameters - self._mean) / self._deviation
        loss = self.targets @ weights / 2 + np.log(np.diag(factor)).sum() + off @ off / 2
        return float(loss), gradient + off / self._deviation

    def _distances_of(self, a: Points, b: Points) -> list[Array]:
        """Return squared distances for each group of columns, and distances in time as the last entry."""
        squared = [
            ((a.inputs[:, None, self._groups == i] - b.inputs[None, :, self._groups == i]) ** 2).sum(axis=-1)
            for i in range(self._num_lengths)
        ]
        return [*squared, np.abs(a.times[:, None] - b.times[None, :])]

    def _covariance(self, distances: list[Array], parameters: Array) -> Array:
        exponent = -math.exp(parameters[-2]) * distances[-1]
        for i, distance in enumerate(distances[:-1], start=1):
            exponent = exponent - distance * math.exp(-2 * parameters[i]) / 2
        covariance: Array = np.exp(parameters[0] + exponent)
        return covariance

    def _factor_of(self, covariance: Array) -> Any:
        return cholesky(_with_noise(covariance, self.parameters), lower=True)


def _with_noise(covariance: Array, parameters: Array) -> Array:
    noise: Array = covariance + (math.exp(parameters[-1]) + _JITTER) * np.eye(len(covariance))
    return noise
