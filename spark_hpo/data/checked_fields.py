"""Checks the types of a dataclass's fields, for records that people edit."""

from __future__ import annotations

from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def checked(value: T) -> T:
    """Return the value if its fields have their declared types; else raise TypeError."""
    for name, kind in get_type_hints(type(value)).items():
        if not _is(field := getattr(value, name), kind):
            raise TypeError(f"{name} is {field!r}")
    return value


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_is(value, one) for one in get_args(kind))
    if kinds := get_args(kind):  # a tuple
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(kinds) == len(value) and all(map(_is, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
