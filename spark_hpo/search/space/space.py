"""The search space: what is tuned, where it lies, and which values it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spark_hpo.errors import SpaceError
from spark_hpo.search.space import tree
from spark_hpo.search.space.constraint import Constraint
from spark_hpo.search.space.parameter import Group, Parameter
from spark_hpo.search.space.space_config import parse_space
from spark_hpo.search.space.tree import Dimension, Key, Point
from spark_hpo.trial import Params

_MOST_DRAWS = 1000  # before it is said that constraints leave nothing

__all__ = ["Dimension", "Key", "Point", "Space"]


@dataclass(frozen=True, slots=True)
class Space:
    """A tree of parameters and constants. What it proposes is a mapping of JSON values of the same shape.

    A trace:
        space = Space.from_config({
            "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
            "optimizer": {"type": "choice", "options": [
                "adam", {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 0.99}}]},
        }, place="search.space")
        space.sample(rng) -> {"lr": 0.003, "optimizer": {"name": "sgd", "momentum": 0.9}}
        space.flatten(_)  -> {("lr",): 0.003, ("optimizer",): 1, ("optimizer", 1, "momentum"): 0.9}
        [d.key for d in space.dimensions()] -> [("lr",), ("optimizer",), ("optimizer", 1, "momentum")]

    A hyperopt space need not be a mapping. One that is not stands under a single name: `hp.uniform("x",
    0, 1)` proposes `{"x": 0.3}`, and `argument` gives its objective the 0.3 that it expects.
    """

    root: Group
    single: str | None = None  # the objective expects params[single]; None: the whole mapping
    tuples: bool = False  # the objective expects tuples for lists, as hyperopt's space_eval gives them
    constraints: tuple[Constraint, ...] = ()  # between parameters; a proposal that breaks one is not run

    @classmethod
    def from_config(
        cls, config: object, place: str = "search.space", *, constraints: Iterable[object] = ()
    ) -> Space:
        """Read a space as it is written in YAML: a type and natural units for each parameter.

        An entry that is not a mapping is a constant; a mapping without `type` is a group of entries.
        `1e-4`, which YAML 1.1 reads as text, is read as the number that it looks like.

        Raises:
            SpaceError: with place, value, rule and cure, on the first entry that makes no sense.
        """
        return cls(parse_space(config, place)).constrained(constraints, f"{place} constraints")

    def constrained(self, constraints: Iterable[object], place: str = "constraints") -> Space:
        """The space with these constraints; see `Constraint`.

        Raises:
            SpaceError: one cannot be read, or names no parameter.
        """
        names = {".".join(map(str, path)) for path in tree.paths(self.root, ())}
        parsed = (Constraint.parse(text, names, f"{place}[{i}]") for i, text in enumerate(constraints))
        return replace(self, constraints=(*self.constraints, *parsed))

    def dimensions(self) -> tuple[Dimension, ...]:
        """All free parameters, active together or not, outer ones first, in the order of writing."""
        return tuple(tree.dimensions(self.root, (), (), ()))

    def sample(self, rng: np.random.Generator) -> Params:
        """Draw a configuration. The same generator state gives the same configuration.

        Raises:
            SpaceError: of many draws, none meets the constraints.
        """
        for _ in range(_MOST_DRAWS):
            params = self._build(lambda _, parameter: parameter.sample(rng))
            if self.allows(params):
                return params
        raise SpaceError(
            f"none of {_MOST_DRAWS} draws meets {', '.join(repr(c.text) for c in self.constraints)}; "
            "loosen the constraints, or narrow the ranges to where they hold"
        )

    def allows(self, params: Params) -> bool:
        """Whether a configuration of this space meets all constraints."""
        return self.broken_constraint(params) is None

    def broken_constraint(self, params: Params) -> str | None:
        """The first constraint that a configuration breaks; None: it meets all."""
        return next((c.text for c in self.constraints if not c.holds(params)), None)

    def flatten(self, params: object, place: str = "params") -> Point:
        """The active parameters of a configuration.

        Where several options of a choice fit, the first one is taken.

        Raises:
            SpaceError: the configuration does not fit the space.
        """
        point: Point = {}
        tree.read(self.root, (), params, place, point)
        return point

    def unflatten(self, point: Mapping[Key, Any]) -> Params:
        """The configuration with these active parameters. Others in `point` are ignored."""
        return self._build(lambda key, _: point[key])

    def validate(self, params: object, place: str = "params") -> Params:
        """Check a configuration that somebody wrote, and return it in the space's own types.

        Raises:
            SpaceError: a name too many or too few, or a value out of its range.
        """
        return self.unflatten(self.flatten(params, place))

    def grid_size(self, resolution: int) -> int:
        """How many configurations the grid has: products over groups, sums over options."""
        return tree.grid_size(self.root, resolution)

    def grid_point(self, resolution: int, index: int) -> Params:
        """Configuration number `index`, 0..grid_size - 1. The parameter written last varies fastest."""
        assert 0 <= index < self.grid_size(resolution)
        point: dict[str, Any] = tree.grid_value(self.root, resolution, index)
        return point

    def grid(self, resolution: int) -> Iterator[Params]:
        """All configurations with at most `resolution` values a number, and every option of a choice."""
        return (self.grid_point(resolution, i) for i in range(self.grid_size(resolution)))

    def argument(self, params: Params) -> Any:
        """What the objective of a hyperopt space is called with; `params` itself for any other space."""
        value: Any = params if self.single is None else params[self.single]
        return tree.with_tuples(value) if self.tuples else value

    def to_json(self) -> dict[str, Any]:
        """The space as JSON. Reading it back gives an equal space, whatever sorts the keys."""
        record = {"root": tree.to_json(self.root), "single": self.single, "tuples": self.tuples}
        return {**record, "constraints": [constraint.text for constraint in self.constraints]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Space:
        root = tree.from_json(record["root"])
        assert isinstance(root, Group)
        constraints = tuple(Constraint(text) for text in record.get("constraints", ()))
        return cls(root, record["single"], record["tuples"], constraints)

    def _build(self, pick: Callable[[Key, Parameter], Any]) -> Params:
        params: dict[str, Any] = tree.build(self.root, (), pick)
        return params
