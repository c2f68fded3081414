"""Axes: every parameter of a space on a scale on which samplers can model it.

The position of a number is on the unit interval, where the prior is uniform: the relative position between
the latent bounds of a uniform number, the quantile of a normal one. So all numbers have the same prior, and
widths are comparable between axes. The position of a choice is the index of its option. Inactive parameters
have the position NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from spark_hpo.errors import SpaceError
from spark_hpo.search.space import Dimension, Point, Space, tree
from spark_hpo.search.space.parameter import Choice, Normal, Uniform
from spark_hpo.trial import Params

Array = npt.NDArray[np.float64]

_MAX_CELLS = 1000  # a number with more values is treated as continuous
_EDGE = 1e-12  # the quantiles 0 and 1 of a normal number are infinite


class Axis:
    """The scale of a parameter. `options` is 0 for a number; `edges` bound the cells of a rounded one."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        self.parameter = dimension.parameter
        self.options = 0
        self.edges: Array | None = None
        self.prior = np.ones(1)  # of the options
        parameter = dimension.parameter
        if isinstance(parameter, Choice):
            self.options = len(parameter.options)
            weights = parameter.weights or (1 / self.options,) * self.options
            self.prior = np.asarray(weights, dtype=float)
        elif isinstance(parameter, Uniform) and parameter.q is not None:
            self.edges = _edges(parameter)

    def position(self, value: Any) -> float:
        """Return the position of a value: 0..1 for a number (the middle of its cell), or an option."""
        parameter = self.parameter
        if isinstance(parameter, Choice):
            return float(value)
        latent = parameter.latent(value)
        if isinstance(parameter, Uniform):
            low, high = parameter.latent_bounds()
            position = min(max((latent - low) / (high - low), 0.0), 1.0)
            return position if self.edges is None else float(self.centres(np.asarray([position]))[0])
        return float(ndtr((latent - parameter.mu) / parameter.sigma))

    def value(self, position: float) -> Any:
        """Return the value at a position; the nearest one of a rounded number."""
        parameter = self.parameter
        if isinstance(parameter, Choice):
            return int(position)
        if isinstance(parameter, Uniform):
            low, high = parameter.latent_bounds()
            return parameter.value(low + position * (high - low))
        assert isinstance(parameter, Normal)
        quantile = min(max(position, _EDGE), 1 - _EDGE)
        return parameter.value(parameter.mu + parameter.sigma * float(ndtri(quantile)))

    def match(self, value: object) -> float:
        """Return the position of a value from another space; NaN if it is not valid here."""
        parameter = self.parameter
        if not isinstance(parameter, Choice):
            return self.position(value) if parameter.accepts(value) else math.nan
        point: Point = {}
        try:
            tree.read(parameter, (), value, point)
        except SpaceError:
            return math.nan
        return float(point[()])

    def unit(self, position: float) -> float:
        """Return the position on the unit interval. An option is the middle of its share."""
        if not self.options:
            return position
        ends = np.cumsum(self.prior)
        return float(ends[int(position)] - self.prior[int(position)] / 2)

    def from_unit(self, unit: float) -> float:
        """Return the position for a number from 0 to 1. Uniform numbers give the prior."""
        if not self.options:
            return unit
        ends = np.cumsum(self.prior)[:-1]
        return float(np.searchsorted(ends, unit, side="right"))

    def cells(self, positions: Array) -> tuple[Array, Array]:
        """Return the lower and upper ends of the cells that contain these positions."""
        assert self.edges is not None
        index = np.clip(np.searchsorted(self.edges, positions, side="right") - 1, 0, len(self.edges) - 2)
        return self.edges[index], self.edges[index + 1]

    def centres(self, positions: Array) -> Array:
        """Return the middles of the cells that contain these positions."""
        low, high = self.cells(positions)
        middle: Array = (low + high) / 2
        return middle


class Axes:
    """All axes of a space. Converts configurations to rows of positions and back."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.axes = tuple(Axis(dimension) for dimension in space.dimensions())
        self._number = {axis.dimension.key: i for i, axis in enumerate(self.axes)}
        # The choices and options, as (axis, option), that make an axis active.
        self.conditions = tuple(
            tuple((self._number[choice], option) for choice, option in axis.dimension.conditions)
            for axis in self.axes
        )

    def __len__(self) -> int:
        return len(self.axes)

    def row(self, params: Params) -> Array:
        """Return the positions of a configuration; NaN for inactive parameters.

        Raises:
            SpaceError: the configuration does not fit the space.
        """
        point = self.space.flatten(params)
        row = np.full(len(self.axes), math.nan)
        for key, value in point.items():
            number = self._number[key]
            row[number] = self.axes[number].position(value)
        return row

    def known_row(self, params: Mapping[str, Any]) -> Array:
        """Return the positions of a configuration of another space, matched by name; NaN for unknown ones.

        A value counts if this space accepts it.
        """

        def position(_: int, axis: Axis) -> float:
            value: Any = params
            for part in axis.dimension.path:
                value = value.get(part) if isinstance(value, Mapping) else None
            return axis.match(value)

        return self.build_row(position)

    def row_of_any(self, params: Params) -> Array:
        """Return `row`, or `known_row` of a configuration that does not fit the space."""
        try:
            return self.row(params)
        except SpaceError:
            return self.known_row(params)

    def default_row(self) -> Array | None:
        """Return the positions of the space's defaults, NaN where there is none; None if it has none."""
        row = np.full(len(self.axes), math.nan)
        for i, axis in enumerate(self.axes):
            if axis.parameter.default is not None:
                row[i] = axis.position(axis.parameter.default)
        return None if np.isnan(row).all() else row

    def params(self, row: Array) -> Params:
        """Return the configuration at these positions."""
        return self.space.unflatten(
            {
                axis.dimension.key: axis.value(float(position))
                for axis, position in zip(self.axes, row, strict=True)
                if not math.isnan(position)
            }
        )

    def unit(self, row: Array, rng: np.random.Generator) -> Array:
        """Return a row as a point of the unit cube. Inactive parameters are drawn."""
        drawn = rng.random(len(row))
        for i, axis in enumerate(self.axes):
            if not math.isnan(row[i]):
                drawn[i] = axis.unit(float(row[i]))
        return drawn

    def from_unit(self, unit: Array) -> Array:
        """Return the row at a point of the unit cube."""
        return self.build_row(lambda number, axis: axis.from_unit(float(unit[number])))

    def build_row(self, position: Callable[[int, Axis], float]) -> Array:
        """Return a row with the positions that a function returns for active axes, by number and axis."""
        row = np.full(len(self.axes), math.nan)
        for i, axis in enumerate(self.axes):
            if all(row[choice] == option for choice, option in self.conditions[i]):
                row[i] = position(i, axis)
        return row

    def active(self, rows: Array, axis: int) -> npt.NDArray[np.bool_]:
        """Return in which rows an axis is active."""
        active = np.ones(len(rows), dtype=bool)
        for choice, option in self.conditions[axis]:
            active &= rows[:, choice] == option
        return active


def _edges(parameter: Uniform) -> Array | None:
    """Return the edges of the cells of a rounded number on the unit interval; None if there are too many."""
    assert parameter.q is not None
    low, high = parameter.latent_bounds()
    first = math.exp(low) if parameter.log else low
    last = math.exp(high) if parameter.log else high
    num_cells = round((last - first) / parameter.q)
    if num_cells > _MAX_CELLS:
        return None
    ends = first + parameter.q * np.arange(num_cells + 1)
    if parameter.log:
        ends = np.log(ends)
    edges: Array = np.clip((ends - low) / (high - low), 0.0, 1.0)
    return edges
