"""Constraints between parameters: `hidden_2 <= hidden_1`, read without running anything."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.errors import SpaceError
from spark_hpo.suggest import suggestion

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
_LONGEST = 500  # characters


class _Inactive(Exception):
    """A parameter is not there in this configuration."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition that every proposal must meet. It holds wherever a parameter in it is not active.

    Written in Python's words: names of parameters (`optimizer.momentum` for nested ones), numbers, text,
    `+ - * / // %`, `< <= > >= == !=`, `and or not`, parentheses. Nothing else is read, and nothing is
    ever executed.
    """

    text: str

    @classmethod
    def parse(cls, text: object, names: set[str], place: str) -> Constraint:
        """Check a constraint over parameters of these names.

        Raises:
            SpaceError: it cannot be read, or names no parameter of the space.
        """
        if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
            raise SpaceError(f"{place} is {text!r}; it must be text such as 'hidden_2 <= hidden_1'")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            raise SpaceError(f"{place} is {text!r}; it cannot be read: {exc}") from exc
        _check(tree, names, f"{place} is {text!r}")
        if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp):
            raise SpaceError(f"{place} is {text!r}; it must compare something, as in 'hidden_2 <= hidden_1'")
        return cls(text.strip())

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration meets it. What cannot be worked out (1 / 0, 'a' < 1) does not."""
        try:
            return bool(_value(ast.parse(self.text, mode="eval").body, params))
        except _Inactive:
            return True
        except (ArithmeticError, TypeError, ValueError):
            return False


def _check(node: ast.expr, names: set[str], place: str) -> None:
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
                    f"{place}; there is no parameter {name!r}. {suggestion(name, sorted(names))}"
                )
            children = []
        case _:
            raise SpaceError(
                f"{place}; {ast.unparse(node)!r} has no place in a constraint: use names of parameters, "
                "numbers, + - * / // %, comparisons, and, or, not"
            )
    for child in children:
        _check(child, names, place)


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
    raise AssertionError("checked when it was parsed")


def _look_up(name: str, params: Mapping[str, Any]) -> Any:
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _Inactive
        value = value[part]
    return value
