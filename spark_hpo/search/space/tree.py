"""Recursive functions over the tree of a space: build, read, enumerate, serialize."""

from __future__ import annotations

import copy
import math
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

from spark_hpo.errors import SpaceError, suggestion, within
from spark_hpo.search.space.parameter import (
    Choice,
    Constant,
    Group,
    Node,
    Normal,
    Parameter,
    Sequence,
    Uniform,
)

Key: TypeAlias = tuple[str | int, ...]
"""Position of a parameter in the tree: names in groups, indices of options and list items."""

Point: TypeAlias = dict[Key, Any]
"""The active parameters of one configuration: the value of a number, the option index of a choice."""

Conditions: TypeAlias = tuple[tuple[Key, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """A free parameter. It is active if every choice in `conditions` has taken the given option."""

    key: Key  # unique in the space: ("optimizer", 1, "momentum")
    path: Key  # of its value in the params: ("optimizer", "momentum")
    parameter: Parameter
    conditions: Conditions  # (key of a choice, option index), outermost first

    def is_active(self, point: Mapping[Key, Any]) -> bool:
        return all(point.get(choice) == option for choice, option in self.conditions)


def paths(node: Node, path: Key) -> Iterator[Key]:
    """Yield the paths in the params of all parameters and constants."""
    match node:
        case Group(entries):
            for name, child in entries:
                yield from paths(child, (*path, name))
        case Choice(options=options):
            yield path
            for option in options:
                yield from paths(option, path)
        case _:
            yield path


def build(node: Node, key: Key, pick: Callable[[Key, Parameter], Any]) -> Any:
    match node:
        case Constant(value):
            return copy.deepcopy(value)
        case Group(entries):
            return {name: build(child, (*key, name), pick) for name, child in entries}
        case Sequence(items):
            return [build(child, (*key, i), pick) for i, child in enumerate(items)]
        case Choice():
            option = pick(key, node)
            return build(node.options[option], (*key, option), pick)
        case Uniform() | Normal():
            return pick(key, node)


def dimensions(
    node: Node, key: Key, path: Key, conditions: tuple[tuple[Key, int], ...]
) -> Iterator[Dimension]:
    match node:
        case Group(entries):
            for name, child in entries:
                yield from dimensions(child, (*key, name), (*path, name), conditions)
        case Sequence(items):
            for i, child in enumerate(items):
                yield from dimensions(child, (*key, i), (*path, i), conditions)
        case Choice(options=options):
            yield Dimension(key=key, path=path, parameter=node, conditions=conditions)
            for i, option in enumerate(options):
                yield from dimensions(option, (*key, i), path, (*conditions, (key, i)))
        case Uniform() | Normal():
            yield Dimension(key=key, path=path, parameter=node, conditions=conditions)


def read(node: Node, key: Key, value: Any, point: Point) -> None:
    """Add the values of the parameters below `node` to `point`.

    Raises:
        SpaceError: `value` does not fit; the error's key is relative to `node`.
    """
    match node:
        case Constant(expected):
            if not same_json(value, expected):
                raise SpaceError(f"must be the constant of the space, {expected!r}", value=value)
        case Group(entries):
            names = [name for name, _ in entries]
            if not isinstance(value, Mapping):
                raise SpaceError(f"must be a mapping with {', '.join(names)}", value=value)
            for name in value:
                if name not in names:
                    raise SpaceError(
                        "is not a parameter of the space", key=str(name), cure=suggestion(name, names)
                    )
            for name, child in entries:
                if name not in value:
                    raise SpaceError("is missing", key=name)
                with within(name):
                    read(child, (*key, name), value[name], point)
        case Sequence(items):
            if not isinstance(value, list | tuple) or len(value) != len(items):
                raise SpaceError(f"must be a list of {len(items)}", value=value)
            for i, child in enumerate(items):
                with within(f"[{i}]"):
                    read(child, (*key, i), value[i], point)
        case Choice(options=options):
            _read_option(options, key, value, point)
        case Uniform() | Normal():
            if not node.accepts(value):
                raise SpaceError(f"must be {node.rule()}", value=value)
            point[key] = node.plain(value)


def _read_option(options: tuple[Node, ...], key: Key, value: Any, point: Point) -> None:
    intended: list[SpaceError] = []
    for i, option in enumerate(options):
        if not _may_fit(option, value):
            continue  # most options do not, and an error for each would take most of the time
        inner: Point = {key: i}
        try:
            read(option, (*key, i), value, inner)
        except SpaceError as error:
            if _names_option(option, value):
                intended.append(error)
        else:
            point.update(inner)
            return
    if len(intended) == 1:  # the value names one option: report what is wrong inside it
        raise intended[0]
    constants = ", ".join(repr(option.value) for option in options if isinstance(option, Constant))
    if all(isinstance(option, Constant) for option in options):
        raise SpaceError(f"must be one of {constants}", value=value)
    or_constant = f", such as {constants}" if constants else ""
    raise SpaceError(f"must fit one of the {len(options)} options{or_constant}", value=value)


def _may_fit(option: Node, value: Any) -> bool:
    """Return False if the constants of an option rule the value out."""
    match option:
        case Constant(expected):
            return same_json(value, expected)
        case Group():
            return _names_option(option, value)
    return True


def _names_option(option: Node, value: Any) -> bool:
    """Return whether `value` has all constants of a group, such as `name: sgd`."""
    if not (isinstance(option, Group) and isinstance(value, Mapping)):
        return False
    constants = [(name, c.value) for name, c in option.entries if isinstance(c, Constant)]
    return all(name in value and same_json(value[name], c) for name, c in constants)


def grid_size(node: Node, resolution: int) -> int:
    match node:
        case Constant():
            return 1
        case Group(entries):
            return math.prod(grid_size(child, resolution) for _, child in entries)
        case Sequence(items):
            return math.prod(grid_size(child, resolution) for child in items)
        case Choice(options=options):
            return sum(grid_size(option, resolution) for option in options)
        case Uniform() | Normal():
            return len(node.grid(resolution))


def grid(node: Node, resolution: int) -> Iterator[Any]:
    match node:
        case Constant(value):
            yield value
        case Group(entries):
            for values in _grid_product([child for _, child in entries], resolution):
                yield dict(zip((name for name, _ in entries), values, strict=True))
        case Sequence(items):
            yield from map(list, _grid_product(items, resolution))
        case Choice(options=options):
            for option in options:
                yield from grid(option, resolution)
        case Uniform() | Normal():
            yield from node.grid(resolution)


def _grid_product(nodes: abc.Sequence[Node], resolution: int) -> Iterator[tuple[Any, ...]]:
    # Not itertools.product, which holds all values of each node in memory.
    if not nodes:
        yield ()
        return
    for first in grid(nodes[0], resolution):
        for rest in _grid_product(nodes[1:], resolution):
            yield (first, *rest)


def same_json(a: object, b: object) -> bool:
    """Return whether two JSON values are equal. True is not equal to 1, but 1.0 is."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_json, a, b))
    return a == b


def with_tuples(value: Any) -> Any:
    """Return the value with every list turned into a tuple."""
    if isinstance(value, Mapping):
        return {name: with_tuples(child) for name, child in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def to_json(node: Node) -> dict[str, Any]:
    """Return the node as JSON. Entries are a list of pairs, so their order survives sorted keys."""
    return {
        "node": type(node).__name__.lower(),
        **{f.name: _encoded(getattr(node, f.name)) for f in fields(node)},
    }


def _encoded(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)  # type: ignore[arg-type] # the only dataclasses in a tree are its nodes
    return list(map(_encoded, value)) if isinstance(value, list | tuple) else copy.deepcopy(value)


def from_json(record: Mapping[str, Any]) -> Node:
    values = {name: value for name, value in record.items() if name != "node"}
    match record["node"]:
        case "constant":
            return Constant(copy.deepcopy(values["value"]))
        case "group":
            return Group(tuple((name, from_json(child)) for name, child in values["entries"]))
        case "sequence":
            return Sequence(tuple(map(from_json, values["items"])))
        case "choice":
            weights = values["weights"] and tuple(values["weights"])
            return Choice(
                **{**values, "options": tuple(map(from_json, values["options"])), "weights": weights}
            )
        case "uniform":
            return Uniform(**values)
        case "normal":
            return Normal(**values)
        case other:
            raise SpaceError(f"has a node of an unknown kind, {other!r}")
