"""The axes on which a model of the losses works: every parameter of a space on a scale of its own.

A number lies on the unit interval, where the space draws it evenly: a uniform one at its place between
the latent bounds, a normal one at its quantile. So there is one prior for all numbers, and widths mean
the same on every axis. A choice has the number of its option. What is not active has no place: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from spark_hpo.errors import SpaceError
from spark_hpo.search.space import Dimension, Key, Point, Space, tree
from spark_hpo.search.space.parameter import Choice, Normal, Uniform
from spark_hpo.trial import Params

Array = npt.NDArray[np.float64]

_MAX_CELLS = 1000  # a number with more values than that is as good as continuous
_EDGE = 1e-12  # a normal number has no end: its quantiles 0 and 1 are infinite


class Axis:
    """One parameter's scale. `options` is 0 for a number; `edges` bounds the cells of a rounded one."""

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

    def place(self, value: Any) -> float:
        """Where a value lies: 0..1 for a number (a rounded one in the middle of its cell), or its option."""
        parameter = self.parameter
        if isinstance(parameter, Choice):
            return float(value)
        latent = parameter.latent(value)
        if isinstance(parameter, Uniform):
            low, high = parameter.latent_bounds()
            place = min(max((latent - low) / (high - low), 0.0), 1.0)
            return place if self.edges is None else float(self.centres(np.asarray([place]))[0])
        return float(ndtr((latent - parameter.mu) / parameter.sigma))

    def value(self, place: float) -> Any:
        """The value at a place; a rounded number's nearest one."""
        parameter = self.parameter
        if isinstance(parameter, Choice):
            return int(place)
        if isinstance(parameter, Uniform):
            low, high = parameter.latent_bounds()
            return parameter.value(low + place * (high - low))
        assert isinstance(parameter, Normal)
        quantile = min(max(place, _EDGE), 1 - _EDGE)
        return parameter.value(parameter.mu + parameter.sigma * float(ndtri(quantile)))

    def match(self, value: object) -> float | None:
        """The place of a value that may be of another space; None: it has none here."""
        parameter = self.parameter
        if not isinstance(parameter, Choice):
            return self.place(value) if parameter.accepts(value) else None
        point: Point = {}
        try:
            tree.read(parameter, (), value, point)
        except SpaceError:
            return None
        return float(point[()])

    def unit(self, place: float) -> float:
        """The place on the unit interval, of an option too: the middle of the option's share."""
        if not self.options:
            return place
        ends = np.cumsum(self.prior)
        return float(ends[int(place)] - self.prior[int(place)] / 2)

    def from_unit(self, unit: float) -> float:
        """The place that belongs to a number from 0 to 1; evenly spread numbers give the prior."""
        if not self.options:
            return unit
        ends = np.cumsum(self.prior)[:-1]
        return float(np.searchsorted(ends, unit, side="right"))

    def cells(self, places: Array) -> tuple[Array, Array]:
        """The cells of a rounded number in which places lie: lower and upper ends."""
        assert self.edges is not None
        index = np.clip(np.searchsorted(self.edges, places, side="right") - 1, 0, len(self.edges) - 2)
        return self.edges[index], self.edges[index + 1]

    def centres(self, places: Array) -> Array:
        """The middles of the cells of a rounded number in which places lie."""
        low, high = self.cells(places)
        middle: Array = (low + high) / 2
        return middle


class Axes:
    """All axes of a space: a configuration becomes a row of places, and a row a configuration."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.axes = tuple(Axis(dimension) for dimension in space.dimensions())
        self._number = {axis.dimension.key: i for i, axis in enumerate(self.axes)}
        # The choices that must have taken an option for an axis to be active, as (axis, option).
        self.conditions = tuple(
            tuple((self._number[choice], option) for choice, option in axis.dimension.conditions)
            for axis in self.axes
        )

    def __len__(self) -> int:
        return len(self.axes)

    def row(self, params: Params) -> Array:
        """The places of a configuration; NaN where a parameter is not active.

        Raises:
            SpaceError: the configuration does not fit the space.
        """
        point = self.space.flatten(params)
        row = np.full(len(self.axes), math.nan)
        for key, value in point.items():
            number = self._number[key]
            row[number] = self.axes[number].place(value)
        return row

    def default_row(self) -> Array | None:
        """The places of the defaults that the space has, NaN where it has none; None: it has none at all."""
        row = np.full(len(self.axes), math.nan)
        for i, axis in enumerate(self.axes):
            if axis.parameter.default is not None:
                row[i] = axis.place(axis.parameter.default)
        return None if np.isnan(row).all() else row

    def params(self, row: Array) -> Params:
        """The configuration at these places."""
        point: Mapping[Key, Any] = self._point(row)
        return self.space.unflatten(point)

    def unit(self, row: Array, rng: np.random.Generator) -> Array:
        """A row as a point of the unit cube; what is not active is drawn."""
        drawn = rng.random(len(row))
        for i, axis in enumerate(self.axes):
            if not math.isnan(row[i]):
                drawn[i] = axis.unit(float(row[i]))
        return drawn

    def from_unit(self, unit: Array) -> Array:
        """The row at a point of the unit cube."""
        row = np.full(len(self.axes), math.nan)
        for i, axis in enumerate(self.axes):
            if all(row[choice] == option for choice, option in self.conditions[i]):
                row[i] = axis.from_unit(float(unit[i]))
        return row

    def active(self, rows: Array, axis: int) -> npt.NDArray[np.bool_]:
        """Which rows have this axis, by the choices that they have taken."""
        active = np.ones(len(rows), dtype=bool)
        for choice, option in self.conditions[axis]:
            active &= rows[:, choice] == option
        return active

    def _point(self, row: Array) -> Point:
        return {
            axis.dimension.key: axis.value(float(place))
            for axis, place in zip(self.axes, row, strict=True)
            if not math.isnan(place)
        }


def _edges(parameter: Uniform) -> Array | None:
    """The ends of the cells of a rounded number on the unit interval; None where they are too many."""
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
