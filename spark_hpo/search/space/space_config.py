"""Reading a space as people write it: `{"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from spark_hpo.errors import SpaceError
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Normal, Number, Uniform
from spark_hpo.search.space.tree import same_json, to_json
from spark_hpo.suggest import suggestion

# YAML 1.1, and so PyYAML, takes a number for text when its exponent stands without a point or a sign:
# 1e-4, 1.5e3. Nobody means the text.
_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type as written: the distribution that it stands for, its flags, and the keys that it takes."""

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


def parse_space(config: object, place: str) -> Group:
    """The tree for a mapping of names to parameters and constants."""
    if not isinstance(config, Mapping) or not config:
        raise SpaceError(f"{place} is {config!r}; it must be a mapping from names to parameters")
    return _group(config, place)


def checked(parameter: Uniform | Normal | Choice, place: str) -> Uniform | Normal | Choice:
    """The parameter, once it is known to mean something."""
    if broken := parameter.broken_rule():
        name, rule = broken
        value = getattr(parameter, name)
        shown = f"{value:.12g}" if isinstance(value, float) else repr(value)
        raise SpaceError(f"{place}.{name} is {shown}; {rule}")
    return parameter


def json_constant(value: object, place: str) -> Any:
    """A copy of a constant, once it is known to be JSON. Numbers that YAML took for text become numbers."""
    if isinstance(value, str):
        return float(value) if _NUMBER_AS_TEXT.fullmatch(value) else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Real) and math.isfinite(value):  # numpy's numbers among them
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list):
        return [json_constant(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_name(name, place): json_constant(v, f"{place}.{name}") for name, v in value.items()}
    raise SpaceError(
        f"{place} is {value!r} ({type(value).__name__}); a constant or an option must be a JSON value: "
        "a finite number, text, true, false, null, a list or a mapping. Name the object by a string here, "
        "and look it up in the task"
    )


def _node(entry: object, place: str) -> Node:
    if isinstance(entry, Mapping):
        return _parameter(entry, place) if "type" in entry else _group(entry, place)
    if isinstance(entry, list):
        _refuse_parameters(entry, place)
    return Constant(json_constant(entry, place))


def _group(config: Mapping[Any, object], place: str) -> Group:
    return Group(
        tuple((_name(name, place), _node(entry, f"{place}.{name}")) for name, entry in config.items())
    )


def _name(name: object, place: str) -> str:
    if not isinstance(name, str) or not name:
        raise SpaceError(f"{place} has the key {name!r}; keys must be text: write it in quotes")
    return name


def _parameter(entry: Mapping[Any, object], place: str) -> Node:
    kind = entry["type"]
    if kind == "choice":
        return _choice(entry, place)
    if not isinstance(kind, str) or kind not in NUMBERS:
        raise SpaceError(
            f"{place}.type is {kind!r}. {suggestion(kind, TYPES)}. "
            "A constant of one's own needs another key than 'type'"
        )
    return _number(NUMBERS[kind], entry, place)


def _number(kind: _Kind, entry: Mapping[Any, object], place: str) -> Number:
    _require_keys(entry, kind.required, (*kind.optional, "default"), place)
    fields: dict[str, Any] = {name: _float(entry[name], f"{place}.{name}") for name in kind.required}
    if "integer" in entry:
        if not isinstance(entry["integer"], bool):
            raise SpaceError(f"{place}.integer is {entry['integer']!r}; it must be true or false")
        fields["integer"] = entry["integer"]
    if kind.flags.get("integer"):
        for name, value in fields.items():
            if math.isfinite(value) and value != int(value):
                raise SpaceError(f"{place}.{name} is {value:.12g}; it must be a whole number")
    number = kind.distribution(**fields, **kind.flags)
    if "default" in entry:
        default = _float(entry["default"], f"{place}.default")
        number = replace(number, default=number.plain(default) if number.integer else default)
    checked(number, place)
    return number


def _choice(entry: Mapping[Any, object], place: str) -> Choice:
    _require_keys(entry, ("options",), ("weights", "default"), place)
    options, weights = entry["options"], entry.get("weights")
    if not isinstance(options, list):
        raise SpaceError(f"{place}.options is {options!r}; it must be a list")
    nodes = tuple(_node(option, f"{place}.options[{i}]") for i, option in enumerate(options))
    for i, node in enumerate(nodes):
        for j, earlier in enumerate(nodes[:i]):
            if same_json(to_json(node), to_json(earlier)):
                raise SpaceError(f"{place}.options[{i}] is the same as options[{j}]; write it once")
    if weights is not None:
        if not isinstance(weights, list):
            raise SpaceError(f"{place}.weights is {weights!r}; it must be a list, one number for each option")
        weights = tuple(_float(w, f"{place}.weights[{i}]") for i, w in enumerate(weights))
    default = _default_option(nodes, entry["default"], place) if "default" in entry else None
    choice = Choice(options=nodes, weights=weights, default=default)
    checked(choice, place)
    return choice


def _default_option(options: tuple[Node, ...], value: object, place: str) -> int:
    """The option that is meant: a constant itself, a group by its `name`."""
    for i, option in enumerate(options):
        names = dict(option.entries).get("name") if isinstance(option, Group) else option
        if isinstance(names, Constant) and same_json(names.value, value):
            return i
    raise SpaceError(f"{place}.default is {value!r}; it must be one of the options, a group by its name")


def _require_keys(
    entry: Mapping[Any, object], required: tuple[str, ...], optional: tuple[str, ...], place: str
) -> None:
    kind, known = entry["type"], ("type", *required, *optional)
    for name in entry:
        if name not in known:
            raise SpaceError(
                f"{place} has the key {name!r}, which {kind} does not take. {suggestion(name, known)}"
            )
    for name in required:
        if name not in entry:
            raise SpaceError(f"{place} has no {name!r}; {kind} needs {', '.join(required)}")


def _float(value: object, place: str) -> float:
    if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SpaceError(f"{place} is {value!r}; it must be a number")
    return float(value)


def _refuse_parameters(items: list[Any], place: str) -> None:
    for i, item in enumerate(items):
        if isinstance(item, Mapping) and item.get("type") in TYPES:
            raise SpaceError(
                f"{place}[{i}] is a parameter inside a list; give it a name in a mapping instead"
            )
