"""Changes the ranges of a space while a study runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from spark_hpo.errors import SpaceError, suggestion, within
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Normal, Sequence, Uniform
from spark_hpo.search.space.space import Space
from spark_hpo.search.space.space_config import checked, json_constant
from spark_hpo.search.space.tree import Key, same_json
from spark_hpo.search.steerable import Ranges


def with_ranges(space: Space, ranges: Ranges) -> Space:
    """Return the space with other ranges. A default outside its range is dropped.

    Args:
        space: as the study began with it.
        ranges: wider or narrower than those of the space; of a choice, some of its options.

    Raises:
        SpaceError: a name is unknown, or a range does not suit its parameter.
    """
    names = {".".join(map(str, dimension.path)) for dimension in space.dimensions()}
    for name in ranges:
        if name not in names:
            raise SpaceError(
                "is not a parameter of the space", key=name, cure=suggestion(name, sorted(names))
            )
    root = _changed(space.root, (), ranges)
    assert isinstance(root, Group)
    return replace(space, root=root)


def widest(space: Space, all_ranges: Iterable[Ranges]) -> Space:
    """Return the smallest space that contains a space and all of its changes."""
    bounds: dict[str, list[Any]] = {}
    numbers = {
        ".".join(map(str, dimension.path)): dimension.parameter
        for dimension in space.dimensions()
        if isinstance(dimension.parameter, Uniform)
    }
    for ranges in all_ranges:
        for name in ranges.keys() & numbers.keys():
            low, high = bounds.get(name) or numbers[name].bounds()
            bounds[name] = [min(low, ranges[name][0]), max(high, ranges[name][1])]
    return with_ranges(space, bounds)


def nearest(space: Space, params: object) -> Any:
    """Return the configuration with numbers outside their range moved to its end.

    Raises:
        SpaceError: the configuration does not fit the space otherwise, because an option is missing.
    """
    return space.validate(_nearest(space.root, params))


def _changed(node: Node, path: Key, ranges: Ranges) -> Node:
    name = ".".join(map(str, path))
    match node:
        case Group(entries):
            return Group(tuple((key, _changed(child, (*path, key), ranges)) for key, child in entries))
        case Sequence(items):
            return Sequence(tuple(_changed(child, (*path, i), ranges) for i, child in enumerate(items)))
        case Choice():
            inside = replace(node, options=tuple(_changed(o, path, ranges) for o in node.options))
            with within(name):
                return _with_options(inside, ranges[name]) if name in ranges else inside
        case Uniform() if name in ranges:
            with within(name):
                return _with_bounds(node, ranges[name])
        case Normal() if name in ranges:
            raise SpaceError(
                "has a normal distribution, which has no range to change",
                key=name,
                cure="Start another study with a uniform one",
            )
    return node


def _with_bounds(number: Uniform, bounds: list[Any]) -> Uniform:
    found = [json_constant(bound) for bound in bounds]
    if len(found) != 2 or any(isinstance(b, bool) or not isinstance(b, int | float) for b in found):
        raise SpaceError("must be two numbers, [low, high]", value=bounds)
    low, high = (float(bound) for bound in found)
    changed = replace(number, low=low, high=high, default=None)
    checked(changed)
    if number.default is not None and changed.accepts(number.default):
        return replace(changed, default=number.default)
    return changed


def _with_options(choice: Choice, names: list[Any]) -> Choice:
    kept: list[int] = []
    for name in names:
        found = [i for i, option in enumerate(choice.options) if _is_called(option, json_constant(name))]
        if not found:
            known = ", ".join(repr(_name(option)) for option in choice.options)
            raise SpaceError(
                "is not an option of the choice with which the study began",
                value=name,
                cure=f"Its options are {known}",
            )
        kept += found
    kept = sorted(set(kept))
    if not kept:
        raise SpaceError("must keep at least one option", value=names)
    weights = choice.weights and tuple(choice.weights[i] for i in kept)
    if weights:
        total = sum(weights)
        if not total:
            raise SpaceError("must keep an option with a weight above 0", value=names)
        weights = tuple(weight / total for weight in weights)
    default = kept.index(choice.default) if choice.default in kept else None
    return Choice(options=tuple(choice.options[i] for i in kept), weights=weights, default=default)


def _is_called(option: Node, name: Any) -> bool:
    return same_json(_name(option), name)


def _name(option: Node) -> Any:
    """Return the value of a constant, or the `name` of a group."""
    node = dict(option.entries).get("name") if isinstance(option, Group) else option
    return node.value if isinstance(node, Constant) else None


def _nearest(node: Node, value: Any) -> Any:
    match node:
        case Group(entries) if isinstance(value, Mapping):
            known = dict(entries)
            return {key: _nearest(known[key], item) if key in known else item for key, item in value.items()}
        case Sequence(items) if isinstance(value, list | tuple) and len(value) == len(items):
            return [_nearest(child, item) for child, item in zip(items, value, strict=True)]
        case Choice(options=options) if isinstance(value, Mapping):
            named = [o for o in options if isinstance(o, Group) and same_json(_name(o), value.get("name"))]
            return _nearest(named[0], value) if len(named) == 1 else value
        case Uniform() if isinstance(value, int | float) and not isinstance(value, bool):
            return value if node.accepts(value) else node.value(node.latent(value))
    return value
