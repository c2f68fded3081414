"""Constraints between parameters: `hidden_2 <= hidden_1`, evaluated without executing code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.errors import SpaceError, suggestion

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_MAX_LENGTH = 500  # characters
_EXAMPLE = "'hidden_2 <= hidden_1'"


class _Inactive(Exception):
    """A parameter is not active in this configuration."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition that every proposal must meet. It holds if one of its parameters is not active.

    The syntax is a subset of Python: names of parameters (`optimizer.momentum` for nested ones), numbers,
    text, `+ - * / // %`, `< <= > >= == !=`, `and or not` and parentheses.
    """

    text: str

    @classmethod
    def parse(cls, text: object, names: set[str]) -> Constraint:
        """Parse a constraint on parameters with these names.

        Raises:
            SpaceError: the syntax is invalid, or a name is unknown.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > _MAX_LENGTH:
            raise SpaceError(f"must be text such as {_EXAMPLE}", value=text)
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            raise SpaceError(f"is not a valid expression: {exc}", value=text) from exc
        _check(tree, names, text)
        if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp):
            raise SpaceError(f"must be a comparison such as {_EXAMPLE}", value=text)
        return cls(text.strip())

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether a configuration meets the constraint; False on errors (1 / 0, 'a' < 1)."""
        try:
            return bool(_value(ast.parse(self.text, mode="eval").body, params))
        except _Inactive:
            return True
        except (ArithmeticError, TypeError, ValueError):
            return False


def _check(node: ast.expr, names: set[str], text: str) -> None:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            children = [left, *others]
        case ast.BoolOp(values=values):
            children = list(values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            children = [left, right]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            children = [operand]
        case ast.Constant(value=bool() | int() | float() | str()):
            children = []
        case ast.Name() | ast.Attribute() if (name := _name(node)) is not None:
            if name not in names:
                raise SpaceError(
                    f"names an unknown parameter, {name!r}", value=text, cure=suggestion(name, sorted(names))
                )
            children = []
        case _:
            raise SpaceError(
                f"contains {ast.unparse(node)!r}, which constraints do not support",
                value=text,
                cure="Use names of parameters, numbers, + - * / // %, comparisons, and, or, not",
            )
    for child in children:
        _check(child, names, text)


def _name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name) if (outer := _name(inner)) is not None:
            return f"{outer}.{name}"
    return None


def _value(node: ast.expr, params: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            return _look_up(_name(node) or "", params)
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, params)
            return not value if isinstance(op, ast.Not) else -value
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, params), _value(right, params))
        case ast.BoolOp(op=op, values=values):
            results = (_value(child, params) for child in values)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.Compare(left=left, ops=ops, comparators=others):
            terms = [_value(child, params) for child in (left, *others)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, terms[:-1], terms[1:], strict=True))
    raise AssertionError("`parse` accepts no other node")


def _look_up(name: str, params: Mapping[str, Any]) -> Any:
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _Inactive
        value = value[part]
    return value
