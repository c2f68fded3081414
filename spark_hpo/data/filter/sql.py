"""Writes conditions in the SQL that Spark and `parse_where` share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any


def quoted(name: str) -> str:
    """Return a column name in SQL."""
    return "`{}`".format(name.replace("`", "``"))


def literal(value: Any) -> str:
    """Return a value in SQL. A time with a zone is written in UTC, which `parse_where` expects."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float() | Decimal():
            return str(value)
        case datetime():
            return f"'{value.replace(tzinfo=None).isoformat(' ')}'"
        case date():
            return f"'{value.isoformat()}'"
    return "'{}'".format(str(value).replace("\\", "\\\\").replace("'", "\\'"))


def any_of(parts: Sequence[str]) -> str:
    """Join conditions by `or`, nested as a balanced tree: a chain of a thousand is too deep for a parser."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"({any_of(parts[:half])} or {any_of(parts[half:])})"
