"""Answers questions about the rows of a table in this process, for a split by columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as t

from spark_hpo.data.filter.where import parse_where
from spark_hpo.prepare.arrow_columns import Columns, array_of
from spark_hpo.prepare.split_conditions import Counts, Stratum

_IS_NULL = " is null"


def evaluated(expression: str, columns: Mapping[str, pa.Array]) -> pa.Array:
    """Return the values of a call of `xxhash64`, of a column in SQL, or of its `is null`."""
    if expression.startswith("xxhash64("):
        table = pa.table(dict(columns))
        types = {column.name: column.type for column in table.schema}
        condition: Any = parse_where(f"{expression} < 0", None, types)
        return array_of(condition.row_hash.of(table))
    name = expression.removesuffix(_IS_NULL)[1:-1].replace("``", "`")
    return columns[name].is_null() if expression.endswith(_IS_NULL) else columns[name]


class ArrowFacts:
    """See `TableFacts`."""

    def __init__(self, parts: Iterable[Columns], schema: pa.Schema) -> None:
        self._parts = parts  # may be iterated several times
        self.types: Mapping[str, pa.DataType] = {column.name: column.type for column in schema}

    def counts(self, expression: str, limit: int) -> Counts | None:
        counts: Counter[Any] = Counter()
        for part in self._parts:
            for pair in _collectable(evaluated(expression, part)).value_counts().to_pylist():
                counts[_normal(pair["values"])] += pair["counts"]
            if len(counts) > limit:
                return None
        return sorted(counts.items(), key=_in_order)

    def quantiles(self, column: str, shares: Sequence[float]) -> Sequence[Any]:
        """Exact; those of Spark are among a million ranks."""
        values = pa.concat_arrays([_collectable(part[column]).drop_null() for part in self._parts])
        ordered = values.take(pa.compute.array_sort_indices(values))
        return [ordered[max(math.ceil(share * len(ordered)) - 1, 0)].as_py() for share in shares]

    def strata(self, column: str, expression: str, fractions: Sequence[float]) -> Sequence[Stratum]:
        hashes: dict[Any, list[Any]] = {}
        for part in self._parts:
            values = _collectable(part[column]).dictionary_encode()
            codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            own = evaluated(expression, part).to_numpy(zero_copy_only=False)
            for code in np.unique(codes):
                value = None if code < 0 else _normal(values.dictionary[int(code)].as_py())
                hashes.setdefault(value, []).append(own[codes == code])
        shares = (fractions[0], round(fractions[0] + fractions[1], 12))
        found = []
        for value, parts in sorted(hashes.items(), key=_in_order):
            ordered = np.sort(np.concatenate(parts))
            ranks = [math.floor(len(ordered) * share + 0.5) for share in shares]
            low, high = (int(ordered[rank]) if rank < len(ordered) else None for rank in ranks)
            found.append(Stratum(value=value, rows=len(ordered), cuts=(low, high)))
        return found


def _collectable(values: pa.Array) -> pa.Array:
    """Times with a zone as UTC without one."""
    if t.is_timestamp(values.type) and values.type.tz is not None:
        return values.cast(pa.int64()).cast(pa.timestamp(values.type.unit))
    return values


def _normal(value: Any) -> Any:
    """Return one object for all NaN, and 0.0 for -0.0."""
    if not isinstance(value, float):
        return value
    return math.nan if value != value else value + 0.0


def _in_order(pair: tuple[Any, Any]) -> tuple[bool, bool, Any]:
    """Null first, NaN last."""
    value = pair[0]
    is_nan = value != value
    return value is not None, is_nan, 0 if value is None or is_nan else value
