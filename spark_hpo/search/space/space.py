"""The search space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spark_hpo.errors import SpaceError, within
from spark_hpo.search.space import tree
from spark_hpo.search.space.constraint import Constraint
from spark_hpo.search.space.parameter import Group, Parameter
from spark_hpo.search.space.space_config import parse_space
from spark_hpo.search.space.tree import Dimension, Key, Point
from spark_hpo.trial import Params

_MAX_DRAWS = 1000  # until one meets the constraints

__all__ = ["Dimension", "Key", "Point", "Space"]


@dataclass(frozen=True, slots=True)
class Space:
    """A tree of parameters and constants. A configuration is a mapping of JSON values of the same shape.

    A trace:
        space = Space.from_config({
            "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
            "optimizer": {"type": "choice", "options": [
                "adam", {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 0.99}}]},
        })
        space.sample(rng) -> {"lr": 0.003, "optimizer": {"name": "sgd", "momentum": 0.9}}
        space.flatten(_)  -> {("lr",): 0.003, ("optimizer",): 1, ("optimizer", 1, "momentum"): 0.9}
        [d.key for d in space.dimensions()] -> [("lr",), ("optimizer",), ("optimizer", 1, "momentum")]

    A hyperopt space need not be a mapping. One that is not gets a single name: `hp.uniform("x", 0, 1)` has
    configurations like `{"x": 0.3}`, and `argument` returns the 0.3 that its objective expects.
    """

    root: Group
    single: str | None = None  # the objective expects params[single]; None: the mapping
    tuples: bool = False  # the objective expects tuples for lists, like hyperopt's space_eval
    constraints: tuple[Constraint, ...] = ()  # every proposal meets them

    @classmethod
    def from_config(cls, config: object, *, constraints: Iterable[object] = ()) -> Space:
        """Read a space as written in YAML: a mapping from names to parameters, in natural units.

        An entry that is not a mapping is a constant; a mapping without `type` is a group of entries.
        `1e-4`, which YAML 1.1 reads as text, is read as a number.

        Raises:
            SpaceError: an entry or a constraint is invalid.
        """
        with within("space"):
            root = parse_space(config)
        return cls(root).constrained(constraints)

    def constrained(self, constraints: Iterable[object]) -> Space:
        """Return the space with further constraints; see `Constraint`.

        Raises:
            SpaceError: a constraint cannot be parsed, or names an unknown parameter.
        """
        names = {".".join(map(str, path)) for path in tree.paths(self.root, ())}
        parsed = []
        for i, text in enumerate(constraints):
            with within(f"constraints[{i}]"):
                parsed.append(Constraint.parse(text, names))
        return replace(self, constraints=(*self.constraints, *parsed))

    def dimensions(self) -> tuple[Dimension, ...]:
        """Return all parameters in the order of writing, a choice before those inside its options."""
        return tuple(tree.dimensions(self.root, (), (), ()))

    def sample(self, rng: np.random.Generator) -> Params:
        """Draw a configuration. The same generator state gives the same configuration.

        Raises:
            SpaceError: none of 1000 draws meets the constraints.
        """
        for _ in range(_MAX_DRAWS):
            params = self._build(lambda _, parameter: parameter.sample(rng))
            if self.allows(params):
                return params
        raise SpaceError(
            f"exclude all of {_MAX_DRAWS} random configurations",
            key="constraints",
            value=[constraint.text for constraint in self.constraints],
            cure="Loosen the constraints, or narrow the ranges to where they hold",
        )

    def allows(self, params: Params) -> bool:
        """Return whether a configuration of this space meets all constraints."""
        return self.broken_constraint(params) is None

    def broken_constraint(self, params: Params) -> str | None:
        """Return the first constraint that a configuration violates; None if it meets all."""
        return next((c.text for c in self.constraints if not c.holds(params)), None)

    def flatten(self, params: object) -> Point:
        """Return the active parameters of a configuration.

        If several options of a choice fit, the first one is used.

        Raises:
            SpaceError: the configuration does not fit the space.
        """
        point: Point = {}
        tree.read(self.root, (), params, point)
        return point

    def unflatten(self, point: Mapping[Key, Any]) -> Params:
        """Return the configuration with these active parameters. Inactive ones are ignored."""
        return self._build(lambda key, _: point[key])

    def validate(self, params: object) -> Params:
        """Return a configuration in the space's own types.

        Raises:
            SpaceError: a name is missing or unknown, or a value is out of range.
        """
        return self.unflatten(self.flatten(params))

    def grid_size(self, resolution: int) -> int:
        """Return the number of configurations of the grid: products over groups, sums over options."""
        return tree.grid_size(self.root, resolution)

    def grid(self, resolution: int) -> Iterator[Params]:
        """Yield all configurations with at most `resolution` values per number and all options.

        The parameter written last varies fastest. Configurations may share their parts.
        """
        return tree.grid(self.root, resolution)

    def argument(self, params: Params) -> Any:
        """Return what to call the objective with: `params`, unless the space comes from hyperopt."""
        value: Any = params if self.single is None else params[self.single]
        return tree.with_tuples(value) if self.tuples else value

    def to_json(self) -> dict[str, Any]:
        """Return the space as JSON, which `from_json` reads back, even with sorted keys."""
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
