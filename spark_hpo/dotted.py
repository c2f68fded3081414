"""Dotted names for the values of nested mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted name. An empty mapping is a value; lists are not entered.

    A trace: {"optimizer": {"name": "sgd"}, "layers": [8, 4]} -> ("optimizer.name", "sgd"), ("layers", [8, 4])
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
