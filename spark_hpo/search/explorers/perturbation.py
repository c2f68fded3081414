"""An explorer that perturbs the parameters of the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.settings import require_number
from spark_hpo.search.space import Point, Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.search.space.parameter import Choice
from spark_hpo.trial import Params

_TRIES = 20


@dataclass(eq=False)
class PerturbationExplorer(Explorer):
    """Moves the parameters of a parent by one step. Learns nothing.

    Jaderberg et al. 2017, arXiv:1711.09846. A number is moved up or down by `perturbation` of its range, on
    its logarithmic scale if it has one, or resampled from the space with `resample_probability`. A choice is
    resampled or kept.
    """

    space: Space
    seed: int
    _: KW_ONLY
    parameters: Sequence[str] | None = (
        None  # that may change, such as `optimizer.lr`; None: all continuous ones
    )
    perturbation: float = 0.1  # step, as a share of the range, > 0 and <= 0.5
    resample_probability: float = 0.25  # 0..1

    def __post_init__(self) -> None:
        require_number("perturbation", self.perturbation, above=0, high=0.5)
        require_number("resample_probability", self.resample_probability, low=0, high=1)
        self._axes = Axes(self.space)
        self._mutable = _mutable_axes(self._axes, self.parameters)
        self.changes = [
            ".".join(map(str, axis.dimension.path))
            for axis, is_mutable in zip(self._axes.axes, self._mutable, strict=True)
            if is_mutable
        ]

    def explore(self, slot: Slot, parent: Params) -> Params:
        rng = np.random.default_rng((self.seed, slot.trial_id))
        old = self.space.flatten(parent)
        for _ in range(_TRIES):
            child = self.space.unflatten(self._changed(old, rng))
            if self.space.allows(child):
                return child
        return parent

    def _changed(self, old: Point, rng: np.random.Generator) -> Point:
        new: Point = {}
        for axis, mutable in zip(self._axes.axes, self._mutable, strict=True):
            # Always drawn, so that parameters do not depend on each other's draws.
            resampled, step = axis.value(axis.from_unit(float(rng.random()))), float(rng.choice([-1.0, 1.0]))
            resamples = rng.random() < self.resample_probability
            key = axis.dimension.key
            if not axis.dimension.is_active(new):
                continue
            if key not in old or (mutable and resamples):
                new[key] = resampled
            elif not mutable or axis.options:
                new[key] = old[key]
            else:
                position, move = axis.position(old[key]), step * self.perturbation
                new[key] = axis.value(position + move if 0 <= position + move <= 1 else position - move)
        return new


def _mutable_axes(axes: Axes, parameters: Sequence[str] | None) -> list[bool]:
    """Return for each axis whether a child may differ from its parent."""
    names = [".".join(map(str, axis.dimension.path)) for axis in axes.axes]
    for name in parameters or ():
        if name not in names:
            raise ConfigError(
                f"names an unknown parameter, {name!r}", key="parameters", cure=suggestion(name, names)
            )
    if parameters is not None:
        return [name in parameters for name in names]
    return [not isinstance(axis.parameter, Choice) and axis.parameter.q is None for axis in axes.axes]
