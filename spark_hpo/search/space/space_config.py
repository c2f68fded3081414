"""Reads a space from a mapping: `{"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, TypeVar

from spark_hpo.errors import SpaceError, suggestion, within
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Normal, Number, Uniform
from spark_hpo.search.space.tree import same_json, to_json

_T = TypeVar("_T")

# YAML 1.1, and so PyYAML, reads a number as text if its exponent has no point or no sign: 1e-4, 1.5e3.
_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of number: its distribution, the flags that it sets, and the keys that it accepts."""

    distribution: type[Uniform] | type[Normal]
    flags: dict[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        bounds = ("low", "high") if self.distribution is Uniform else ("mu", "sigma")
        return (*bounds, "q") if "integer" in self.optional else bounds


_ROUNDED = ("integer",)
NUMBERS = {
    "uniform": _Kind(Uniform),
    "loguniform": _Kind(Uniform, {"log": True}),
    "quniform": _Kind(Uniform, {}, _ROUNDED),
    "qloguniform": _Kind(Uniform, {"log": True}, _ROUNDED),
    "int": _Kind(Uniform, {"q": 1.0, "integer": True}),
    "logint": _Kind(Uniform, {"log": True, "q": 1.0, "integer": True}),
    "normal": _Kind(Normal),
    "lognormal": _Kind(Normal, {"log": True}),
    "qnormal": _Kind(Normal, {}, _ROUNDED),
    "qlognormal": _Kind(Normal, {"log": True}, _ROUNDED),
}
TYPES = (*NUMBERS, "choice")


def parse_space(config: object) -> Group:
    """Return the tree for a mapping from names to parameters and constants.

    Raises:
        SpaceError: an entry is invalid; its key is relative to the space.
    """
    if not isinstance(config, Mapping) or not config:
        raise SpaceError("must be a mapping from names to parameters", value=config)
    return _group(config)


def checked(parameter: Uniform | Normal | Choice) -> Uniform | Normal | Choice:
    """Return the parameter if its fields are valid, and raise SpaceError otherwise."""
    if broken := parameter.broken_rule():
        name, rule = broken
        raise SpaceError(rule, key=name, value=getattr(parameter, name))
    return parameter


def json_constant(value: object) -> Any:
    """Return a copy of a constant as plain JSON. Numbers that YAML read as text become numbers."""
    if isinstance(value, str):
        return float(value) if _NUMBER_AS_TEXT.fullmatch(value) else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Real) and math.isfinite(value):  # includes numpy's scalars
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list):
        return [_within(f"[{i}]", json_constant, item) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_name(name): _within(str(name), json_constant, item) for name, item in value.items()}
    raise SpaceError(
        f"has the type {type(value).__name__}, but constants and options must be JSON values: finite "
        "numbers, text, true, false, null, lists or mappings",
        value=value,
        cure="Write a name for the object here, and look the object up in the task",
    )


def _within(section: str, read: Callable[..., _T], *arguments: Any) -> _T:
    with within(section):
        return read(*arguments)


def _node(entry: object) -> Node:
    if isinstance(entry, Mapping):
        return _parameter(entry) if "type" in entry else _group(entry)
    if isinstance(entry, list):
        for i, item in enumerate(entry):
            if isinstance(item, Mapping) and item.get("type") in TYPES:
                raise SpaceError(
                    "is a parameter inside a list", key=f"[{i}]", cure="Give it a name in a mapping instead"
                )
    return Constant(json_constant(entry))


def _group(config: Mapping[Any, object]) -> Group:
    return Group(tuple((_name(name), _within(str(name), _node, entry)) for name, entry in config.items()))


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise SpaceError(f"has the key {name!r}, but keys must be text", cure="Put it in quotes")
    return name


def _parameter(entry: Mapping[Any, object]) -> Node:
    kind = entry["type"]
    if kind == "choice":
        return _choice(entry)
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise SpaceError(
            "is not a valid type of parameter",
            key="type",
            value=kind,
            cure=f"{suggestion(kind, TYPES)}. A mapping that is a constant cannot have the key 'type'",
        )
    return _number(NUMBERS[kind], entry)


def _number(kind: _Kind, entry: Mapping[Any, object]) -> Number:
    _require_keys(entry, kind.required, (*kind.optional, "default"))
    fields: dict[str, Any] = {name: _float(entry[name], name) for name in kind.required}
    if "integer" in entry:
        if not isinstance(entry["integer"], bool):
            raise SpaceError("must be true or false", key="integer", value=entry["integer"])
        fields["integer"] = entry["integer"]
    if kind.flags.get("integer"):
        for name, value in fields.items():
            if math.isfinite(value) and value != int(value):
                raise SpaceError("must be a whole number", key=name, value=value)
    number = kind.distribution(**fields, **kind.flags)
    if "default" in entry:
        default = _float(entry["default"], "default")
        number = replace(number, default=number.plain(default) if number.integer else default)
    checked(number)
    return number


def _choice(entry: Mapping[Any, object]) -> Choice:
    _require_keys(entry, ("options",), ("weights", "default"))
    options, weights = entry["options"], entry.get("weights")
    if not isinstance(options, list):
        raise SpaceError("must be a list", key="options", value=options)
    nodes = tuple(_within(f"options[{i}]", _node, option) for i, option in enumerate(options))
    for i, node in enumerate(nodes):
        for j, earlier in enumerate(nodes[:i]):
            if same_json(to_json(node), to_json(earlier)):
                raise SpaceError(
                    f"is the same as options[{j}]", key=f"options[{i}]", cure="Remove one of them"
                )
    if weights is not None:
        if not isinstance(weights, list):
            raise SpaceError("must be a list of one number per option", key="weights", value=weights)
        weights = tuple(_float(weight, f"weights[{i}]") for i, weight in enumerate(weights))
    default = _default_option(nodes, entry["default"]) if "default" in entry else None
    choice = Choice(options=nodes, weights=weights, default=default)
    checked(choice)
    return choice


def _default_option(options: tuple[Node, ...], value: object) -> int:
    """Return the number of the default option, which is given by its value, or a group by its `name`."""
    for i, option in enumerate(options):
        name = dict(option.entries).get("name") if isinstance(option, Group) else option
        if isinstance(name, Constant) and same_json(name.value, value):
            return i
    raise SpaceError("must be one of the options, or the name of a group", key="default", value=value)


def _require_keys(entry: Mapping[Any, object], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    kind, known = entry["type"], ("type", *required, *optional)
    for name in entry:
        if name not in known:
            raise SpaceError(f"is not a setting of {kind}", key=str(name), cure=suggestion(name, known))
    for name in required:
        if name not in entry:
            raise SpaceError(f"is missing; {kind} needs {', '.join(required)}", key=name)


def _float(value: object, key: str) -> float:
    if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SpaceError("must be a number", key=key, value=value)
    return float(value)
