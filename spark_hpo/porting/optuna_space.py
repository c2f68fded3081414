"""A search space as distributions of Optuna, and configurations as its parameters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_hpo.search.space import Dimension, Point, Space
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Number, Uniform

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_SIGMAS = 4.0  # Optuna has no normal distribution: its bounds are this many standard deviations from the mean


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    dimension: Dimension
    distribution: BaseDistribution


class OptunaSpace:
    """Optuna's names, distributions and values for the configurations of a space.

    A parameter is called by its dotted name. Where two options of a choice have different parameters of one
    name, the numbers of the options are a part of it: `optimizer.1.momentum`. An option with parameters of
    its own has the value of its constant `name`, or `option 1` if it has none.

    Args:
        space: of the study.
        points: all configurations that are converted. The bounds of a normal number include them.
    """

    def __init__(self, space: Space, points: Collection[Point]) -> None:
        dimensions = space.dimensions()
        shared = _shared_names(dimensions)
        self._parameters = tuple(
            _Parameter(
                _name(dimension, shared),
                dimension,
                _distribution(dimension, [p[dimension.key] for p in points if dimension.key in p]),
            )
            for dimension in dimensions
        )

    def convert(self, point: Point) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return the values and the distributions of the active parameters, by name."""
        values: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for parameter in self._parameters:
            key, node = parameter.dimension.key, parameter.dimension.parameter
            if key in point:
                value = point[key]
                values[parameter.name] = _labels(node)[value] if isinstance(node, Choice) else value
                distributions[parameter.name] = parameter.distribution
        return values, distributions


def _shared_names(dimensions: Sequence[Dimension]) -> frozenset[str]:
    """Return the dotted names of several parameters that are not the same in all options."""
    parameters = {(_dotted(d.path), repr(d.parameter)) for d in dimensions}
    counts = Counter(name for name, _ in parameters)
    return frozenset(name for name, count in counts.items() if count > 1)


def _name(dimension: Dimension, shared: Collection[str]) -> str:
    name = _dotted(dimension.path)
    return _dotted(dimension.key) if name in shared else name


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def _distribution(dimension: Dimension, values: Sequence[float]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    parameter = dimension.parameter
    if isinstance(parameter, Choice):
        return CategoricalDistribution(_labels(parameter))
    low, high = _bounds(parameter, values)
    log = parameter.log and low > 0
    if parameter.integer:
        step = 1 if log else int(parameter.q or 1)  # Optuna's logarithmic integers have no other step
        return IntDistribution(int(low), int(high), log=log, step=step)
    # Nor have its logarithmic floating-point numbers any step.
    return FloatDistribution(low, high, log=log, step=None if log else parameter.q)


def _bounds(parameter: Number, values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, both of them multiples of q."""
    if isinstance(parameter, Uniform):
        ends = parameter.grid(2)
    else:
        reach = _SIGMAS * parameter.sigma
        ends = [parameter.value(parameter.mu + sign * reach) for sign in (-1, 1)]
    return float(min(*ends, *values)), float(max(*ends, *values))


def _labels(choice: Choice) -> tuple[Any, ...]:
    """Return a distinct value of Optuna's types for each option."""
    labels = [_label(number, option) for number, option in enumerate(choice.options)]
    if len(set(labels)) == len(labels):  # also of True and 1, which are equal
        return tuple(labels)
    texts = [json.dumps(label) for label in labels]
    if len(set(texts)) == len(texts):
        return tuple(texts)
    return tuple(f"option {number}" for number in range(len(labels)))


def _label(number: int, option: Node) -> bool | int | float | str | None:
    match option:
        case Constant(value) if value is None or isinstance(value, bool | int | float | str):
            return value
        case Constant(value):
            return json.dumps(value)
        case Group(entries):
            name: Mapping[str, Node] = dict(entries)
            match name.get("name"):
                case Constant(str(text)):
                    return text
    return f"option {number}"
