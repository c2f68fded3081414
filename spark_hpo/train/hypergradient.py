"""The gradient of a validation loss with respect to hyperparameters, by implicit differentiation.

Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590. Let w*(h) be the weights that minimise the training loss
T with hyperparameters h. The validation loss V depends on h only through the weights, and the implicit
function theorem gives

    dV/dh = - (d2T / dh dw) H^-1 dV/dw,    H = d2T / dw2, at w*

No matrix is formed. The inverse times a vector is the Neumann series, step * sum_j (I - step H)^j v, of which
the first terms are summed; each takes one product of H and a vector, about the cost of a training step.

The functions work on lists of tensors, one per weight. `total` sums such a list over the ranks, so that every
rank computes the gradient of the global losses, and the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Total = Callable[[Sequence[Tensor]], list[Tensor]]
"""Returns the sum of each tensor over all ranks."""

Product = Callable[[Sequence[Tensor]], list[Tensor]]
"""Multiplies a matrix and a vector."""

_POWER_ITERATIONS = 4
_SAFETY = 1.5  # power iterations approach the largest curvature from below


def gradient(
    loss: Tensor, inputs: Sequence[Tensor], total: Total, *, create_graph: bool = False
) -> list[Tensor]:
    """Return the gradient of a loss that is summed over the ranks; zeros for inputs that it does not use.

    Args:
        create_graph: the result can be differentiated again. It is then the gradient of this rank's loss
            alone, because sums over ranks have no derivative.
    """
    found = torch.autograd.grad(loss, inputs, create_graph=create_graph, materialize_grads=True)
    return list(found) if create_graph else total(found)


def products(slopes: Sequence[Tensor], weights: Sequence[Tensor], total: Total) -> Product:
    """Return the function that multiplies the Hessian of a loss, summed over the ranks, and a vector.

    Args:
        slopes: the gradient of this rank's loss, from `gradient(..., create_graph=True)`.
    """

    def multiply(vector: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(slopes, weights, vector, retain_graph=True, materialize_grads=True)
        return total(found)

    return multiply


def largest_curvature(multiply: Product, vector: Sequence[Tensor]) -> float:
    """Return an estimate of the largest eigenvalue of the Hessian, by absolute value; 0 for a zero vector."""
    estimate = 0.0
    for _ in range(_POWER_ITERATIONS):
        norm = _norm(vector)
        if norm == 0:
            break
        vector = multiply([part / norm for part in vector])
        estimate = max(estimate, _norm(vector))
    return estimate


def inverse_times(
    multiply: Product, vector: Sequence[Tensor], *, terms: int, step: float | None = None
) -> list[Tensor]:
    """Return an approximation of the inverse Hessian times a vector: `terms` terms of the Neumann series.

    In directions where the Hessian is nearly flat, the truncated series gives a smaller result than the
    inverse, as if the weights had been trained for `terms` steps only. The sum ends where the terms grow,
    because the series diverges if the Hessian has negative eigenvalues.

    Args:
        step: below 2 / the largest eigenvalue; None: from `largest_curvature`.
    """
    if step is None:
        curvature = largest_curvature(multiply, vector)
        if curvature == 0 or not math.isfinite(curvature):
            return [torch.zeros_like(part) for part in vector]
        step = 1 / (_SAFETY * curvature)
    term = [part.clone() for part in vector]
    result = [part.clone() for part in vector]
    norm = _norm(term)
    for _ in range(terms - 1):
        term = [part - step * change for part, change in zip(term, multiply(term), strict=True)]
        before, norm = norm, _norm(term)
        if not norm <= before:  # also if it is not a number
            break
        for part, addend in zip(result, term, strict=True):
            part += addend
    return [step * part for part in result]


def implicit_gradient(
    training_loss: Tensor,
    validation_slopes: Sequence[Tensor],
    weights: Sequence[Tensor],
    hyperparameters: Sequence[Tensor],
    *,
    terms: int,
    total: Total,
    step: float | None = None,
) -> list[Tensor]:
    """Return the gradient of the validation loss with respect to the hyperparameters.

    Args:
        training_loss: this rank's share; the shares of all ranks add up to the loss of a global batch.
        validation_slopes: the gradient of the validation loss with respect to the weights, of all ranks.
        hyperparameters: leaves that the training loss depends on.
        terms, step: of `inverse_times`.
    """
    slopes = gradient(training_loss, weights, total, create_graph=True)
    direction = inverse_times(products(slopes, weights, total), validation_slopes, terms=terms, step=step)
    found = torch.autograd.grad(slopes, hyperparameters, direction, materialize_grads=True)
    return [-part for part in total(found)]


def _norm(vector: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in vector))
