"""Converts hyperopt spaces, expressions of `hp.*`, to Space.

    hp.uniform, quniform, loguniform, qloguniform     Uniform, with bounds in natural units
    hp.normal, qnormal, lognormal, qlognormal         Normal
    hp.randint, hp.uniformint, scope.int(hp.q...)     the same with `integer`
    hp.choice, hp.pchoice                             Choice
    dict; list, tuple; anything else                  Group; Sequence; Constant

Values are multiples of q *within* the bounds; hyperopt rounds after drawing, which may leave the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spark_hpo.errors import SpaceError, within
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Number, Sequence, Uniform
from spark_hpo.search.space.space_config import NUMBERS, checked, json_constant


def from_hyperopt(expression: Any) -> Space:
    """Convert a hyperopt expression to a space.

    `Space.argument(params)` then returns what hyperopt's `space_eval` would pass to the objective: the same
    nesting, with tuples for lists, and the bare value if the expression is not a dict.

    Raises:
        SpaceError: the expression has a part that a Space does not support.
    """
    from hyperopt.pyll import as_apply

    with within("space"):
        try:
            graph = as_apply(expression)
        except Exception as exc:  # as_apply fails with whatever error it happens to meet
            raise SpaceError(f"is not a hyperopt space: {exc}") from exc
        reader = _Reader()
        root = reader.node(graph)
    if isinstance(root, Group):
        return Space(root, tuples=True)
    single = "value" if isinstance(root, Sequence) else reader.first_label or "value"
    return Space(Group(((single, root),)), single=single, tuples=True)


def is_hyperopt(value: object) -> bool:
    """Return whether a value is or contains a hyperopt expression. Does not import hyperopt."""
    if isinstance(value, dict):
        return any(map(is_hyperopt, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_hyperopt, value))
    return any(cls.__module__ == "hyperopt.pyll.base" for cls in type(value).__mro__)


class _Reader:
    """Walks the graph once. A label occurs once, or in several options of the same choice."""

    def __init__(self) -> None:
        self.first_label: str | None = None
        self._seen: dict[str, list[tuple[Any, _Branch]]] = {}

    def node(self, graph: Any, branch: _Branch = ()) -> Node:
        match graph.name:
            case "literal":
                value = graph.obj
                return Constant(json_constant(value.item() if _is_numpy_scalar(value) else value))
            case "dict":
                if graph.pos_args:
                    raise SpaceError("has keys that are not text", cure="Put them in quotes")
                return Group(
                    tuple((name, self._inside(name, child, branch)) for name, child in graph.named_args)
                )
            case "pos_args":
                children = enumerate(graph.pos_args)
                return Sequence(tuple(self._inside(f"[{i}]", child, branch) for i, child in children))
            case "switch":
                return self._choice(graph, branch)
            case "float" | "int" | "hyperopt_param":
                return self._number(graph, branch)
            case name:
                raise SpaceError(
                    f"is an expression with {name!r}, which a Space does not support",
                    cure="Keep the hp.* parameter, and do the arithmetic in the objective",
                )

    def _inside(self, section: str, graph: Any, branch: _Branch) -> Node:
        with within(section):
            return self.node(graph, branch)

    def _number(self, graph: Any, branch: _Branch) -> Node:
        """Read float(hyperopt_param(label, uniform(...))): a number, under any casts."""
        casts = []
        while graph.name in ("float", "int") and len(graph.pos_args) == 1:
            casts.append(graph.name)
            graph = graph.pos_args[0]
        if graph.name != "hyperopt_param":
            raise SpaceError(
                f"is {casts[0]}({graph.name}), but only hp.* parameters can be cast",
                cure="Keep the hp.* parameter, and do the arithmetic in the objective",
            )
        with _labelled(graph):
            self._register(graph, branch)
            drawn = graph.arg["obj"]
            if drawn.name == "randint":
                return _randint(drawn)
            kind = NUMBERS.get(drawn.name)
            if kind is None:
                raise SpaceError(
                    f"draws from {drawn.name!r}, which a Space does not support",
                    cure=f"Use one of {', '.join(f'hp.{name}' for name in NUMBERS if 'int' not in name)}",
                )
            fields: dict[str, Any] = {name: _argument(drawn, name) for name in kind.required}
            if (
                kind.flags and kind.distribution is Uniform
            ):  # hp.loguniform takes the logarithms of the bounds
                fields["low"], fields["high"] = (_exp(fields[name], name) for name in ("low", "high"))
            integer = bool(casts) and casts[0] == "int"  # the outermost cast decides
            if "int" in casts and "q" not in fields:
                raise SpaceError(
                    "truncates decimals with scope.int", cure="Use hp.uniformint, or scope.int(hp.q...)"
                )
            number: Number = kind.distribution(**fields, **kind.flags, integer=integer)
            checked(number)
            return number

    def _choice(self, graph: Any, branch: _Branch) -> Node:
        selector, *options = graph.pos_args
        if selector.name != "hyperopt_param" or selector.arg["obj"].name not in ("randint", "categorical"):
            raise SpaceError(f"is a switch on {selector.name!r}", cure="Use hp.choice or hp.pchoice")
        drawn, weights = selector.arg["obj"], None
        with _labelled(selector):
            self._register(selector, branch)
            if drawn.name == "categorical":
                weights = tuple(float(p) for p in _evaluate(drawn.arg["p"]))
        nodes = [
            self._inside(f"[{i}]", option, (*branch, (id(graph), i))) for i, option in enumerate(options)
        ]
        choice = Choice(options=tuple(nodes), weights=weights)
        with _labelled(selector):
            checked(choice)
        return choice

    def _register(self, parameter: Any, branch: _Branch) -> None:
        label = _label(parameter)
        self.first_label = self.first_label or label
        for other, elsewhere in self._seen.setdefault(label, []):
            if other is not parameter:
                raise SpaceError("is used twice", cure="Give each parameter its own label")
            if not _exclude(branch, elsewhere):
                raise SpaceError(
                    "occurs twice, and a Space cannot share a value between two places",
                    cure="Remove one of them, and copy the value in the objective",
                )
        self._seen[label].append((parameter, branch))


@contextmanager
def _labelled(parameter: Any) -> Iterator[None]:
    """Name the label of a parameter in errors that are raised inside."""
    try:
        yield
    except SpaceError as exc:
        exc.rule = f"(hp label {_label(parameter)!r}) {exc.rule}"
        raise


def _label(parameter: Any) -> str:
    return str(parameter.arg["label"].obj)


_Branch = tuple[tuple[int, int], ...]  # the options on the path: (choice, index of the option)


def _exclude(a: _Branch, b: _Branch) -> bool:
    """Return whether two branches are never active together: two options of one choice."""
    options = dict(a)
    return any(options.get(choice, option) != option for choice, option in b)


def _randint(drawn: Any) -> Node:
    """Read randint(upper) or randint(low, upper): integers below upper."""
    from hyperopt.pyll.base import MissingArgument

    first = int(_argument(drawn, "low"))
    if drawn.arg["high"] is MissingArgument:
        low, high = 0, first - 1
    else:
        low, high = first, int(_argument(drawn, "high")) - 1
    if low == high:
        return Constant(low)
    number = Uniform(low=low, high=high, q=1.0, integer=True)
    checked(number)
    return number


def _argument(drawn: Any, name: str) -> float:
    value = _evaluate(drawn.arg[name])
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise SpaceError("must be a number", key=name, value=value) from exc


def _exp(value: float, name: str) -> float:
    try:
        return float(f"{math.exp(value):.14g}")  # math.log(0.1) gives 0.1 again
    except OverflowError as exc:
        raise SpaceError(
            "is too large", key=name, value=value, cure="hp takes the logarithm here: write math.log(...)"
        ) from exc


def _evaluate(graph: Any) -> Any:
    from hyperopt.pyll import dfs, rec_eval

    for node in dfs(graph):
        if node.name not in ("literal", "pos_args"):
            raise SpaceError(f"has a bound that depends on {node.name!r}", cure="Write a number")
    return rec_eval(graph)


def _is_numpy_scalar(value: Any) -> bool:
    return hasattr(value, "item") and not value.shape
