"""Reading a hyperopt space: an expression of `hp.*`, as it is, becomes a Space.

    hp.uniform, quniform, loguniform, qloguniform     Uniform; hp's bounds of a log are logs, ours are not
    hp.normal, qnormal, lognormal, qlognormal         Normal
    hp.randint, hp.uniformint, scope.int(hp.q...)     the same with `integer`
    hp.choice, hp.pchoice                             Choice
    dict; list, tuple; anything else                  Group; Sequence; Constant

Values are multiples of q *within* the bounds; hyperopt rounds after drawing, and may leave them.
"""

from __future__ import annotations

import math
from typing import Any

from spark_hpo.errors import SpaceError
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Constant, Group, Node, Normal, Number, Sequence, Uniform
from spark_hpo.search.space.space_config import checked, json_constant


def from_hyperopt(expression: Any, place: str = "space") -> Space:
    """The space of a hyperopt expression.

    `Space.argument(params)` gives the objective what hyperopt's `space_eval` would: the same nesting, lists
    as tuples, and the value alone where the expression is not a dict.

    Raises:
        SpaceError: the expression has something that a Space cannot say, which is named.
    """
    from hyperopt.pyll import as_apply

    try:
        graph = as_apply(expression)
    except Exception as exc:  # as_apply has no errors of its own: it fails on what it happens to meet
        raise SpaceError(f"{place} is not a hyperopt space: {exc}") from exc
    reader = _Reader()
    root = reader.node(graph, place)
    if isinstance(root, Group):
        return Space(root, tuples=True)
    single = "value" if isinstance(root, Sequence) else reader.first_label or "value"
    return Space(Group(((single, root),)), single=single, tuples=True)


def is_hyperopt(value: object) -> bool:
    """Whether a value is, or holds, a hyperopt expression. Does not import hyperopt."""
    if isinstance(value, dict):
        return any(map(is_hyperopt, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_hyperopt, value))
    return any(cls.__module__ == "hyperopt.pyll.base" for cls in type(value).__mro__)


# What is inside hyperopt_param, and the names of its arguments in their order.
_DISTRIBUTIONS: dict[str, tuple[type[Uniform] | type[Normal], tuple[str, ...], bool]] = {
    "uniform": (Uniform, ("low", "high"), False),
    "quniform": (Uniform, ("low", "high", "q"), False),
    "loguniform": (Uniform, ("low", "high"), True),
    "qloguniform": (Uniform, ("low", "high", "q"), True),
    "normal": (Normal, ("mu", "sigma"), False),
    "qnormal": (Normal, ("mu", "sigma", "q"), False),
    "lognormal": (Normal, ("mu", "sigma"), True),
    "qlognormal": (Normal, ("mu", "sigma", "q"), True),
}


class _Reader:
    """Walks the graph once. Each label may stand in one place, or in several options of one choice."""

    def __init__(self) -> None:
        self.first_label: str | None = None
        self._seen: dict[str, list[tuple[Any, _Branch]]] = {}

    def node(self, graph: Any, place: str, branch: _Branch = ()) -> Node:
        match graph.name:
            case "literal":
                return Constant(_with_lists(graph.obj, place))
            case "dict":
                if graph.pos_args:
                    raise SpaceError(f"{place} has keys that are not text; write them in quotes")
                return Group(
                    tuple(
                        (name, self.node(child, f"{place}.{name}", branch))
                        for name, child in graph.named_args
                    )
                )
            case "pos_args":
                children = enumerate(graph.pos_args)
                return Sequence(tuple(self.node(child, f"{place}[{i}]", branch) for i, child in children))
            case "switch":
                return self._choice(graph, place, branch)
            case "float" | "int" | "hyperopt_param":
                return self._number(graph, place, branch)
            case name:
                raise SpaceError(
                    f"{place} is an expression with {name!r}, which a Space cannot hold: "
                    "keep the hp.* parameter itself, and do the arithmetic in the objective"
                )

    def _number(self, graph: Any, place: str, branch: _Branch) -> Node:
        """float(hyperopt_param(label, uniform(...))): a number, under any casts."""
        casts = []
        while graph.name in ("float", "int") and len(graph.pos_args) == 1:
            casts.append(graph.name)
            graph = graph.pos_args[0]
        if graph.name != "hyperopt_param":
            raise SpaceError(
                f"{place} is {casts[0]}({graph.name}); only a cast of an hp.* parameter can stay"
            )
        place = self._register(graph, place, branch)
        drawn = graph.arg["obj"]
        if drawn.name == "randint":
            return _randint(drawn, place)
        if drawn.name not in _DISTRIBUTIONS:
            raise SpaceError(
                f"{place} draws from {drawn.name!r}, which a Space does not know: "
                f"use one of {', '.join(f'hp.{name}' for name in _DISTRIBUTIONS)}"
            )
        distribution, names, log = _DISTRIBUTIONS[drawn.name]
        fields: dict[str, Any] = {name: _argument(drawn, name, place) for name in names}
        if log and distribution is Uniform:  # hp.loguniform takes the logarithms of the bounds
            fields["low"], fields["high"] = (_exp(fields[name], name, place) for name in ("low", "high"))
        integer = bool(casts) and casts[0] == "int"  # the outermost decides
        if "int" in casts and "q" not in fields:
            raise SpaceError(
                f"{place} cuts decimals off by scope.int; use hp.uniformint, or scope.int(hp.q...)"
            )
        number: Number = distribution(**fields, log=log, integer=integer)
        checked(number, place)
        return number

    def _choice(self, graph: Any, place: str, branch: _Branch) -> Node:
        selector, *options = graph.pos_args
        if selector.name != "hyperopt_param" or selector.arg["obj"].name not in ("randint", "categorical"):
            raise SpaceError(f"{place} is a switch on {selector.name!r}; use hp.choice or hp.pchoice")
        place = self._register(selector, place, branch)
        drawn = selector.arg["obj"]
        weights = None
        if drawn.name == "categorical":
            weights = tuple(float(p) for p in _evaluate(drawn.arg["p"], place))
        nodes = [self.node(o, f"{place}[{i}]", (*branch, (id(graph), i))) for i, o in enumerate(options)]
        choice = Choice(options=tuple(nodes), weights=weights)
        checked(choice, place)
        return choice

    def _register(self, parameter: Any, place: str, branch: _Branch) -> str:
        """Note the parameter's label, and name its place by it."""
        label = str(parameter.arg["label"].obj)
        self.first_label = self.first_label or label
        for other, elsewhere in self._seen.setdefault(label, []):
            if other is not parameter:
                raise SpaceError(f"{place} uses the label {label!r} again; each parameter needs its own")
            if not _exclude(branch, elsewhere):
                raise SpaceError(
                    f"{place} repeats the parameter {label!r}, so that two places share one value, which a "
                    "Space cannot say: keep one of them, and copy the value in the objective"
                )
        self._seen[label].append((parameter, branch))
        return f"{place} (hp label {label!r})"


_Branch = tuple[tuple[int, int], ...]  # the options on the way: (which choice, option number)


def _exclude(a: _Branch, b: _Branch) -> bool:
    """Whether two branches are never active together: one choice, two options."""
    options = dict(a)
    return any(options.get(choice, option) != option for choice, option in b)


def _randint(drawn: Any, place: str) -> Node:
    """randint(upper) and randint(low, upper): integers below upper."""
    from hyperopt.pyll.base import MissingArgument

    first = int(_argument(drawn, "low", place))
    if drawn.arg["high"] is MissingArgument:
        low, high = 0, first - 1
    else:
        low, high = first, int(_argument(drawn, "high", place)) - 1
    if low == high:
        return Constant(low)
    number = Uniform(low=low, high=high, q=1.0, integer=True)
    checked(number, place)
    return number


def _argument(drawn: Any, name: str, place: str) -> float:
    value = _evaluate(drawn.arg[name], place)
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise SpaceError(f"{place}: {name} is {value!r}; it must be a number") from exc


def _exp(value: float, name: str, place: str) -> float:
    try:
        return float(f"{math.exp(value):.14g}")  # 0.1 again, after math.log(0.1)
    except OverflowError as exc:
        raise SpaceError(f"{place}: {name} is {value:g}; hp takes the logarithm here: math.log(...)") from exc


def _evaluate(graph: Any, place: str) -> Any:
    from hyperopt.pyll import dfs, rec_eval

    for node in dfs(graph):
        if node.name not in ("literal", "pos_args"):
            raise SpaceError(f"{place} has a bound that depends on {node.name!r}; write a number")
    return rec_eval(graph)


def _with_lists(value: Any, place: str) -> Any:
    """A literal as JSON: numpy's scalars as Python's."""
    return json_constant(value.item() if hasattr(value, "item") and not value.shape else value, place)
