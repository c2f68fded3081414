"""Rows as JSON, written as Spark's `to_json` writes them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from pyspark.sql import types as T


def json_row(row: Mapping[str, Any], kinds: Mapping[str, T.DataType]) -> dict[str, Any]:
    """Return one row as JSON; nulls stay."""
    return {name: _json(value, kinds[name]) for name, value in row.items()}


def _json(value: Any, kind: T.DataType) -> Any:
    match value:
        case datetime():
            text = value.replace(tzinfo=None).isoformat(timespec="milliseconds")
            return f"{text}Z" if isinstance(kind, T.TimestampType) else text
        case date():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case Decimal():
            return float(value) if value.as_tuple().exponent else int(value)
        case float() if value != value or value in (float("inf"), float("-inf")):
            return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        case float() if isinstance(kind, T.FloatType):
            return float(str(np.float32(value)))  # its own shortest digits, not those of a double
        case list() if isinstance(kind, T.ArrayType):
            return [_json(element, kind.elementType) for element in value]
    return value
