"""The implicit gradient of a validation loss agrees with finite differences of fully trained models."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from spark_hpo.train.hypergradient import (
    Product,
    gradient,
    implicit_gradient,
    inverse_times,
    largest_curvature,
)

ROWS, FEATURES, CLASSES = 40, 4, 3


def one_rank(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors)


class Problem:
    """Softmax regression in float64: its training loss is strictly convex, so that it has one minimum.

    The hyperparameters: the logarithms of the weight decays of two layers of weights, label smoothing, the
    weight of an auxiliary loss, and the strength of a fixed disturbance of the inputs.
    """

    start = torch.tensor([-1.5, -1.0, 0.1, 0.5, 0.3], dtype=torch.float64)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        truth = normal(FEATURES, CLASSES)
        self.inputs, self.disturbance, outer = (normal(ROWS, FEATURES) for _ in range(3))
        self.classes, self.outer_classes = (
            (inputs @ truth + normal(ROWS, CLASSES)).argmax(dim=1) for inputs in (self.inputs, outer)
        )
        self.outer = outer

    def training_loss(self, weights: Sequence[Tensor], hyper: Tensor) -> Tensor:
        matrix, bias = weights
        decays, smoothing, auxiliary, strength = hyper[:2].exp(), hyper[2], hyper[3], hyper[4]
        outputs = (self.inputs + strength * self.disturbance) @ matrix + bias
        logs = outputs.log_softmax(dim=1)
        loss = (1 - smoothing) * nn.functional.nll_loss(logs, self.classes) - smoothing * logs.mean()
        loss = loss + auxiliary * (outputs.square().mean() - outputs[:, 0].mean())
        return loss + (decays[0] * matrix.square().sum() + decays[1] * bias.square().sum()) / 2

    def validation_loss(self, weights: Sequence[Tensor]) -> Tensor:
        matrix, bias = weights
        return nn.functional.cross_entropy(self.outer @ matrix + bias, self.outer_classes)

    def trained(self, hyper: Tensor) -> list[Tensor]:
        weights = [
            torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            for shape in ((FEATURES, CLASSES), (CLASSES,))
        ]
        optimizer = torch.optim.LBFGS(
            weights,
            max_iter=150,
            tolerance_grad=1e-11,
            tolerance_change=0,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.training_loss(weights, hyper)
            loss.backward()  # type: ignore[no-untyped-call] # missing in torch
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call] # missing in torch
        return weights


def test_implicit_gradient_agrees_with_finite_differences() -> None:
    problem, distance = Problem(), 1e-4
    hyper = problem.start.clone().requires_grad_()
    weights = problem.trained(problem.start)
    slopes = gradient(problem.validation_loss(weights), weights, one_rank)
    [found] = implicit_gradient(
        problem.training_loss(weights, hyper), slopes, weights, [hyper], terms=300, total=one_rank
    )
    for i in range(len(hyper)):
        ahead, behind = problem.start.clone(), problem.start.clone()
        ahead[i] += distance
        behind[i] -= distance
        losses = [float(problem.validation_loss(problem.trained(at)).detach()) for at in (ahead, behind)]
        expected = (losses[0] - losses[1]) / (2 * distance)
        assert float(found[i]) == pytest.approx(expected, rel=1e-3), i


def matrix_times(matrix: Tensor) -> Product:
    return lambda vector: [matrix @ vector[0]]


def test_inverse_times_approaches_the_inverse() -> None:
    matrix = torch.diag(torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64))
    vector = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    [found] = inverse_times(matrix_times(matrix), [vector], terms=200)
    assert torch.allclose(found, torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))


def test_inverse_times_stops_where_the_series_diverges() -> None:
    matrix = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    [found] = inverse_times(
        matrix_times(matrix), [torch.ones(2, dtype=torch.float64)], terms=10_000, step=0.5
    )
    assert found.abs().max() < 10


def test_inverse_times_of_a_flat_loss_is_zero() -> None:
    flat = torch.zeros(2, 2, dtype=torch.float64)
    [found] = inverse_times(matrix_times(flat), [torch.ones(2, dtype=torch.float64)], terms=5)
    assert found.tolist() == [0.0, 0.0]


def test_largest_curvature_finds_the_largest_eigenvalue() -> None:
    matrix = torch.diag(torch.tensor([-4.0, 0.1], dtype=torch.float64))
    found = largest_curvature(matrix_times(matrix), [torch.ones(2, dtype=torch.float64)])
    assert found == pytest.approx(4.0, rel=0.01)
