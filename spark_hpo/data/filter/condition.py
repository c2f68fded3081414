"""Conditions on rows in the three-valued logic of SQL.

A condition is an Arrow expression, and from the bounds of its columns it tells which outcomes are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, eq, ge, gt, le, lt, ne, or_
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from spark_hpo.data.filter.row_hash import RowHash

Outcome = bool | None
ANY: frozenset[Outcome] = frozenset({True, False, None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Statistics of a column over some rows."""

    low: Any  # over values that are not null; low and high are both None if unknown
    high: Any
    may_be_null: bool
    may_have_value: bool = True


class Condition(Protocol):
    """A condition on rows. A row matches if the condition is true; false and null do not match."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The stored columns that the condition refers to."""
        ...

    def expression(self) -> pc.Expression: ...

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        """Return the possible outcomes for rows within these bounds.

        The result may include impossible outcomes but never misses one. A column without bounds can have
        any value.
        """
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """`column operator value`; the operator is one of eq, ne, lt, le, gt, ge."""

    column: str
    operator: Callable[[Any, Any], Any]
    value: Any  # a Python value of the type that column statistics have
    kind: pa.DataType  # the type of the comparison
    may_have_nan: bool = False
    is_cast: bool = False  # the column has another type, which Arrow does not cast implicitly
    row_hash: RowHash | None = None  # the column is this hash, which `select_rows` computes

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.row_hash is None else self.row_hash.columns

    def expression(self) -> pc.Expression:
        field = pc.field(self.column)
        if self.is_cast:
            field = field.cast(self.kind)
        return self.operator(field, pc.scalar(pa.scalar(self.value, self.kind)))

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        if self.row_hash is not None:
            return frozenset({True, False})
        known = bounds.get(self.column)
        if known is None:
            return ANY
        found: set[Outcome] = {None} if known.may_be_null else set()
        if known.may_have_value:
            found |= self._of_values(known)
            if self.may_have_nan:  # statistics ignore NaN, and NaN equals nothing
                found.add(self.operator is ne)
        return frozenset(found)

    def _of_values(self, known: Bounds) -> set[Outcome]:
        low, high, value = known.low, known.high, self.value
        if low is None or high is None:
            return {True, False}
        try:
            may_be = {
                lt: (low < value, high >= value),
                le: (low <= value, high > value),
                gt: (high > value, low <= value),
                ge: (high >= value, low < value),
                eq: (low <= value <= high, not low == value == high),
                ne: (not low == value == high, low <= value <= high),
            }[self.operator]
        except TypeError:  # for example, timestamps with and without a time zone
            return {True, False}
        return {outcome for outcome, possible in zip((True, False), may_be, strict=True) if possible}


@dataclass(frozen=True, slots=True)
class IsNull:
    """`column IS NULL`."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def expression(self) -> pc.Expression:
        return pc.field(self.column).is_null()

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        known = bounds.get(self.column)
        if known is None:
            return frozenset({True, False})
        found = {True: known.may_be_null, False: known.may_have_value}
        return frozenset(outcome for outcome, possible in found.items() if possible)


@dataclass(frozen=True, slots=True)
class Not:
    """Negation; null stays null."""

    inner: Condition

    @property
    def columns(self) -> tuple[str, ...]:
        return self.inner.columns

    def expression(self) -> pc.Expression:
        return ~self.inner.expression()

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        return frozenset(None if o is None else not o for o in self.inner.outcomes(bounds))


@dataclass(frozen=True, slots=True)
class All:
    """Conjunction of all parts."""

    parts: tuple[Condition, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return _columns(self.parts)

    def expression(self) -> pc.Expression:
        return reduce(and_, (part.expression() for part in self.parts))

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        return reduce(_both, (part.outcomes(bounds) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Some:
    """Disjunction of all parts."""

    parts: tuple[Condition, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return _columns(self.parts)

    def expression(self) -> pc.Expression:
        return reduce(or_, (part.expression() for part in self.parts))

    def outcomes(self, bounds: Mapping[str, Bounds]) -> frozenset[Outcome]:
        # De Morgan's law also holds in three-valued logic.
        return Not(All(tuple(Not(part) for part in self.parts))).outcomes(bounds)


def select_rows(table: pa.Table, condition: Condition) -> pa.Table:
    """Return the rows that match. The table has the columns of the condition."""
    hashed = with_row_hashes(table, [condition])
    selected = hashed.filter(condition.expression())
    return selected if hashed is table else selected.select(table.column_names)


def with_row_hashes(table: pa.Table, conditions: Sequence[Condition]) -> pa.Table:
    """Append the hashes that conditions refer to, so that `select_rows` does not compute them again."""
    for row_hash in (row_hash for condition in conditions for row_hash in _row_hashes(condition)):
        if row_hash.name not in table.column_names:
            table = table.append_column(row_hash.name, row_hash.of(table))
    return table


def _row_hashes(condition: Condition) -> Iterator[RowHash]:
    match condition:
        case Comparison(row_hash=RowHash() as row_hash):
            yield row_hash
        case Not():
            yield from _row_hashes(condition.inner)
        case All() | Some():
            for part in condition.parts:
                yield from _row_hashes(part)


def _both(left: frozenset[Outcome], right: frozenset[Outcome]) -> frozenset[Outcome]:
    pairs = [{a, b} for a in left for b in right]
    return frozenset(False if False in pair else None if None in pair else True for pair in pairs)


def _columns(parts: tuple[Condition, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part.columns))
