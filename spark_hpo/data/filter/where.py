"""Row filters in SQL: `country = 'DE' and day >= '2026-01-01'`.

Conditions refer to the original values, even where the files hold codes or standardised numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import sqlglot
from sqlglot import exp

from spark_hpo.data.filter.condition import All, Comparison, Condition, IsNull, Not, Some
from spark_hpo.data.filter.row_hash import Key, RowHash, check_key
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, TableSchema
from spark_hpo.errors import DataError

Operator = Callable[[Any, Any], Any]
Value = str | int | float | bool

_OPERATORS: dict[type[exp.Expression], Operator] = {
    exp.EQ: eq,
    exp.NEQ: ne,
    exp.LT: lt,
    exp.LTE: le,
    exp.GT: gt,
    exp.GTE: ge,
}
_MIRRORED: dict[Operator, Operator] = {lt: gt, le: ge, gt: lt, ge: le}
_KNOWN = "comparisons of a column or of xxhash64(...) with a value, and, or, not, in, between, is null"


def parse_where(text: str, schema: TableSchema | None, types: Mapping[str, pa.DataType]) -> Condition:
    """Translate a condition on original values into a condition on the stored columns of a table.

    Args:
        schema: the schema of a prepared table, whose files hold codes and standardised numbers. None if the
            files hold the original values.
        types: the types of the stored columns, including partition columns.

    Raises:
        DataError: the text is not a valid condition, or it compares incompatible types.
    """
    return _Parser(text, schema, types).parse()


class _Term(Protocol):
    """A column in a condition. A comparison that is not possible raises TypeError or ValueError."""

    def compare(self, operator: Operator, value: Value) -> Condition: ...

    def is_null(self) -> Condition: ...


class _Parser:
    def __init__(self, text: str, schema: TableSchema | None, types: Mapping[str, pa.DataType]) -> None:
        self._text = text
        self._types = types
        self._schema = schema if schema is not None and schema.encoding is Encoding.PREPARED else None

    def parse(self) -> Condition:
        try:
            tree = sqlglot.condition(self._text, dialect="spark")
        except sqlglot.errors.SqlglotError as exc:
            raise self._error(str(exc).splitlines()[0]) from exc
        try:
            condition = self._condition(tree)
            condition.expression()  # fails now if a value does not fit its type
            return condition
        except (ValueError, TypeError, ArithmeticError, pa.ArrowException) as exc:
            raise self._error(str(exc)) from exc

    def _condition(self, node: Any) -> Condition:
        match node:
            case exp.Paren():
                return self._condition(node.this)
            case exp.And():
                return All((self._condition(node.left), self._condition(node.right)))
            case exp.Or():
                return Some((self._condition(node.left), self._condition(node.right)))
            case exp.Not():
                return Not(self._condition(node.this))
            case exp.Between():
                term = self._term(node.this)
                low, high = self._value(node.args["low"]), self._value(node.args["high"])
                return All((term.compare(ge, low), term.compare(le, high)))
            case exp.In() if node.expressions:
                term = self._term(node.this)
                return Some(tuple(term.compare(eq, self._value(value)) for value in node.expressions))
            case exp.Is() if isinstance(node.expression, exp.Null):
                return self._term(node.this).is_null()
            case exp.Column():
                return self._term(node).compare(eq, True)
        operator = _OPERATORS.get(type(node))
        if operator is None:
            raise TypeError(f"{node.sql(dialect='spark')} is not supported; use {_KNOWN}")
        left, right = node.left, node.right
        if not isinstance(left, exp.Column | exp.Anonymous):
            left, right, operator = right, left, _MIRRORED.get(operator, operator)
        return self._term(left).compare(operator, self._value(right))

    def _term(self, node: exp.Expression) -> _Term:
        if isinstance(node, exp.Anonymous) and node.name.lower() == "xxhash64":
            return _HashedRow(RowHash(tuple(map(self._key, node.expressions)), node.sql(dialect="spark")))
        name = self._column_name(node)
        if self._schema is not None:
            if name == self._schema.label.name:
                return _PreparedLabel(self._schema.label)
            made = [f for f in self._schema.read_features if name in (f.source, f.name)]
            if made:
                return _PreparedFeature(made[0], made[1].name if len(made) > 1 else None)
        return _StoredColumn(name, self._type(name))

    def _column_name(self, node: exp.Expression) -> str:
        if not isinstance(node, exp.Column):
            raise TypeError(f"{node.sql(dialect='spark')} must be a column; use {_KNOWN}")
        # `a.b` is one column name, because a condition has no table names
        return ".".join(part.name for part in node.parts)

    def _type(self, name: str) -> pa.DataType:
        if name not in self._types:
            raise TypeError(f"there is no column {name!r}; the columns are {', '.join(self._types)}")
        return self._types[name]

    def _key(self, node: Any) -> Key:
        """Translate an argument of xxhash64."""
        if self._schema is not None:
            raise TypeError(
                "xxhash64 is for tables in place: a prepared copy no longer has the original values"
            )
        if isinstance(node, exp.Literal | exp.Neg):
            value = self._value(node)
            if not isinstance(value, int):
                raise TypeError(f"{node.sql(dialect='spark')} must be a column or an integer in xxhash64")
            return Key(value=value)
        as_bigint = isinstance(node, exp.Cast) and node.to.is_type("bigint")
        name = self._column_name(node.this if as_bigint else node)
        kind = self._type(name)
        check_key(name, kind)
        if as_bigint and not pa.types.is_integer(kind):
            raise TypeError(f"column {name!r} is {kind}; only integers can be cast to bigint")
        return Key(column=name, as_bigint=as_bigint)

    def _value(self, node: exp.Expression) -> Value:
        match node:
            case exp.Paren():
                return self._value(node.this)
            case exp.Neg():
                value = self._value(node.this)
                if isinstance(value, int | float):
                    return -value
            case exp.Boolean():
                return bool(node.this)
            case exp.Cast() if isinstance(node.this, exp.Literal):  # date '2026-01-01'
                return self._value(node.this)
            case exp.Literal() if node.is_string:
                return str(node.this)
            case exp.Literal():
                text = str(node.this)
                return int(text) if text.isdigit() else float(text)
        raise TypeError(f"{node.sql(dialect='spark')} must be a string, a number, a date, true or false")

    def _error(self, fault: str) -> DataError:
        return DataError(f"where is {self._text!r}: {fault}")


class _StoredColumn:
    """A column whose files hold the original values."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self._name = name
        self._stored = kind
        self._kind = kind.value_type if pa.types.is_dictionary(kind) else kind

    def compare(self, operator: Operator, value: Value) -> Condition:
        if pa.types.is_integer(self._kind) and isinstance(value, int | float) and not isinstance(value, bool):
            return self._compare_integer(operator, value)
        kind, converted = self._converted(value)
        return self._comparison(operator, converted, kind)

    def _comparison(self, operator: Operator, value: Any, kind: pa.DataType) -> Condition:
        return Comparison(
            self._name,
            operator,
            value,
            kind,
            may_have_nan=pa.types.is_floating(self._kind),
            is_cast=kind != self._stored and not pa.types.is_integer(self._stored),
        )

    def _compare_integer(self, operator: Operator, value: int | float) -> Condition:
        """Compare with an integer within the range of the type, because Arrow compares integers with floats
        inexactly.
        """
        is_signed = self._kind != pa.uint64()
        kind = pa.int64() if is_signed else pa.uint64()
        low, high = (-(2**63), 2**63 - 1) if is_signed else (0, 2**64 - 1)
        whole = math.floor(value)
        if whole == value and low <= whole <= high:
            return self._comparison(operator, whole, kind)
        never = self._comparison(gt, high, kind)  # false, or null for a null
        if operator in (eq, ne):
            return never if operator is eq else Not(never)
        is_upper = operator in (lt, le)
        if whole < low:
            return never if is_upper else Not(never)
        return self._comparison(le if is_upper else gt, min(whole, high), kind)

    def is_null(self) -> Condition:
        return IsNull(self._name)

    def _converted(self, value: Value) -> tuple[pa.DataType, Any]:
        kind, t = self._kind, pa.types
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, str):
            if t.is_string(kind) or t.is_large_string(kind):
                return kind, value
            if t.is_date(kind):
                return kind, date.fromisoformat(value)
            if t.is_timestamp(kind):
                finer = kind if kind.unit == "ns" else pa.timestamp("us", kind.tz)
                return finer, moment(value, has_zone=kind.tz is not None)
        elif isinstance(value, bool) and t.is_boolean(kind):
            return kind, value
        elif is_number and t.is_decimal(kind):
            # Widen to a type that holds both: Arrow compares decimals of different scales wrongly.
            number = Decimal(str(value))
            return _wider(kind, pa.scalar(number).type), number
        elif is_number and t.is_floating(kind):
            return pa.float64(), float(value)
        raise TypeError(f"column {self._name!r} is {kind} and cannot be compared with {value!r}")


class _HashedRow:
    """`xxhash64(...)`: a signed integer of 64 bits."""

    def __init__(self, row_hash: RowHash) -> None:
        self._hash = row_hash

    def compare(self, operator: Operator, value: Value) -> Condition:
        if not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise TypeError(f"{self._hash.name} must be compared with an integer of 64 bits")
        return Comparison(self._hash.name, operator, value, pa.int64(), row_hash=self._hash)

    def is_null(self) -> Condition:
        raise TypeError(f"{self._hash.name} is never null")


class _PreparedFeature:
    """A column of codes or standardised numbers, compared by original value."""

    def __init__(self, feature: Feature, missing: str | None) -> None:
        self._feature = feature
        self._missing = missing  # the column that is 1.0 where the original was null

    def compare(self, operator: Operator, value: Value) -> Condition:
        compared = self._compared(operator, value)
        if self._missing is None and "" not in self._feature.vocabulary:
            return compared
        return All((compared, Not(self.is_null())))  # a null was filled with a value, which must not match

    def is_null(self) -> Condition:
        feature = self._feature
        if self._missing is not None:
            return Comparison(self._missing, gt, 0.5, pa.float32())
        if "" in feature.vocabulary:
            return Comparison(feature.name, eq, feature.vocabulary.index("") + 1, pa.int64())
        return IsNull(feature.name)

    def _compared(self, operator: Operator, value: Value) -> Condition:
        feature = self._feature
        if feature.kind is ColumnKind.CATEGORICAL:
            if operator not in (eq, ne):
                raise TypeError(f"column {feature.name!r} holds categories: use =, != or in")
            code = _code(feature.name, feature.vocabulary, value) + 1
            return Comparison(feature.name, operator, code, pa.int64())
        if feature.kind is ColumnKind.NUMERIC:
            number = (_number(feature.name, value) - feature.mean) / feature.deviation
            return Comparison(feature.name, operator, float(np.float32(number)), pa.float32())
        raise TypeError(f"column {feature.name!r} of kind {feature.kind} cannot be compared")


class _PreparedLabel:
    def __init__(self, label: Label) -> None:
        self._label = label

    def compare(self, operator: Operator, value: Value) -> Condition:
        label = self._label
        if label.is_regression:
            return Comparison(label.name, operator, _number(label.name, value), pa.float64())
        if operator not in (eq, ne):
            raise TypeError(f"the label {label.name!r} holds classes: use =, != or in")
        return Comparison(label.name, operator, _code(label.name, label.classes, value), pa.int64())

    def is_null(self) -> Condition:
        return IsNull(self._label.name)


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """Return a decimal type that holds the values of both types."""
    scale = max(a.scale, b.scale)
    precision = scale + max(a.precision - a.scale, b.precision - b.scale)
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _code(name: str, values: tuple[str, ...], value: Value) -> int:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text not in values:
        raise TypeError(f"column {name!r} has no code for {text!r} in schema.json")
    return values.index(text)


def _number(name: str, value: Value) -> float:
    """Return the value as a number; a date becomes seconds since 1970."""
    if isinstance(value, str):
        try:
            return moment(value, has_zone=True).timestamp()
        except ValueError:
            raise TypeError(f"column {name!r} holds numbers and cannot be compared with {value!r}") from None
    return float(value)


def moment(text: str, *, has_zone: bool) -> datetime:
    """Parse an ISO 8601 time. Without a time zone, it is UTC."""
    parsed = datetime.fromisoformat(text)
    in_utc = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    return in_utc if has_zone else in_utc.replace(tzinfo=None)
