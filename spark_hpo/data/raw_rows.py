"""Encodes rows of the original table as `prepare` encoded them, to the last bit.

`prepare` writes into schema.json how it read each column of the original table (`TableSchema.original`). A
model repeats this for the rows that it predicts for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from spark_hpo.data import encoders
from spark_hpo.data.encoders import BadColumn
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, NullRule, OriginalColumn, TableSchema
from spark_hpo.data.text_forms import DATES, IGNORED, PATTERNS, WHITESPACE, TextForm
from spark_hpo.data.text_times import micros_of_dates, micros_of_times

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE_ROWS = 5  # of the input example of a model
_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_FRACTIONS = ("float", "double")
_TIMES = ("timestamp", "timestamp_ntz", "timestamp_ns")
_AMBIGUOUS = re.compile(f"(true|false|)$|{PATTERNS[TextForm.NUMBER]}", re.IGNORECASE)
_SHOWN = 40  # characters of a value, in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A column that a model takes."""

    name: str
    type: str  # long, number, string, boolean, datetime, binary, any, or an array such as array<number>
    is_required: bool


@dataclass(frozen=True, slots=True)
class RawColumn:
    """A column of the original table that features are made of."""

    original: OriginalColumn
    features: tuple[Feature, ...]
    is_copied: bool  # the table is a prepared copy, whose columns `prepare` has cleaned
    null_values: tuple[str, ...]

    def stored(self, given: pd.Series[Any] | Sequence[Any] | pa.Array) -> Iterator[tuple[Feature, pa.Array]]:
        """Yield each feature with the values that the files of the table would hold.

        Raises:
            BadColumn: a value has another form than those of the original column.
        """
        values = self._read(self._values(given))
        for feature in self.features:
            filled = replace(feature, nulls=NullRule.FILL)
            match feature.kind:
                case _ if not self.is_copied:
                    yield feature, values
                case ColumnKind.NUMERIC if feature.name != self.original.name:
                    yield feature, pa.array(encoders.missing_marks(values))
                case ColumnKind.NUMERIC:
                    yield feature, pa.array(encoders.standardised(values, filled))
                case ColumnKind.CATEGORICAL:
                    yield feature, pa.array(encoders.codes_of(values, filled))
                case ColumnKind.TEXT:
                    yield feature, pc.fill_null(values, "")
                case ColumnKind.SEQUENCE:
                    flat = values.flatten()
                    elements = pa.array(encoders.codes_of(flat, filled)) if feature.vocabulary else flat
                    yield feature, _lists(values, elements)
                case _:
                    yield feature, values

    def numbers(self, given: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Return given values as numbers, NaN where they are missing."""
        values = self._read(self._values(given)).cast(pa.float64())
        numbers: npt.NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
        return numbers

    def _values(self, given: pd.Series[Any] | Sequence[Any] | pa.Array) -> pa.Array:
        """Return given values as an Arrow array of any type."""
        try:
            values = given if isinstance(given, pa.Array) else pa.Array.from_pandas(given)
        except (pa.ArrowException, ValueError, TypeError) as exc:
            if self.original.type.startswith(("array", "binary")):
                raise BadColumn(str(exc)) from exc
            # Values of several types, such as 39 and "?".
            values = pa.array([_as_text(value) for value in given], pa.string())
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        return values.dictionary_decode() if t.is_dictionary(values.type) else values

    def _read(self, values: pa.Array) -> pa.Array:
        """Return what `prepare` read: doubles, trimmed texts, lists or bytes. Missing values are null."""
        kind = self.original.type
        if t.is_null(values.type):
            return values.cast(self._null_type)
        if kind == "binary" and not _is_bytes(values.type):
            return pa.array([_decoded(value) for value in values.to_pylist()], pa.binary())
        if kind == "date" or kind in _TIMES or self.original.form.is_date:
            return self._instants(values)
        if kind == "float" and t.is_float64(values.type):
            values = values.cast(pa.float32())
        if not self.is_copied:
            return values
        if self._has_tokens:
            return self._lists_of_texts(values)
        if kind.startswith("array<decimal") and t.is_decimal(values.type.value_type):
            # Through text, because Arrow does not round decimals to the nearest float.
            return _lists(values, values.flatten().cast(pa.string()).cast(pa.float32()))
        if kind.startswith("array") or kind == "binary":
            return values
        return self._numbers(values) if self._is_number else self._texts(values)

    @property
    def _null_type(self) -> pa.DataType:
        kind = self.original.type
        if kind.startswith("array"):
            return pa.list_(pa.string() if self._has_tokens else pa.float64())
        if kind == "binary":
            return pa.binary()
        return pa.float64() if self._is_number else pa.string()

    @property
    def _has_tokens(self) -> bool:
        """True for lists whose elements have codes."""
        return any(f.kind is ColumnKind.SEQUENCE and f.vocabulary for f in self.features)

    @property
    def _is_number(self) -> bool:
        return any(feature.kind is ColumnKind.NUMERIC for feature in self.features)

    @property
    def _is_text(self) -> bool:
        return self.original.type == "string"

    def _texts(self, values: pa.Array) -> pa.Array:
        if t.is_boolean(values.type):
            # The names that prepare gives, or those in a CSV that pandas reads as booleans.
            of = {text.lower(): text for text in self.features[0].vocabulary}
            named = [value if value is None else str(value).lower() for value in values.to_pylist()]
            values = pa.array([of.get(name, name) if name else None for name in named], pa.string())
        elif not (t.is_string(values.type) or t.is_large_string(values.type)):
            if not (t.is_integer(values.type) or t.is_floating(values.type) or t.is_decimal(values.type)):
                raise _unfit(values, "text")
            values = encoders.as_texts(values)
        return self._present(values)

    def _present(self, texts: pa.Array) -> pa.Array:
        """Trim texts, and make those null that mean missing."""
        trimmed = pc.utf8_trim(texts.cast(pa.string()), characters=WHITESPACE)
        missing = pa.array(["", *self.null_values], pa.string())
        return pc.if_else(pc.is_in(trimmed, value_set=missing), pa.scalar(None, pa.string()), trimmed)

    def _numbers(self, values: pa.Array) -> pa.Array:
        kind = values.type
        if t.is_string(kind) or t.is_large_string(kind):
            return self._parsed(self._present(values))
        if t.is_decimal(kind):
            values = values.cast(pa.string())  # Arrow does not round decimals to the nearest double
        elif not (t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind)):
            raise _unfit(values, "a number")
        return encoders.as_numbers(values)

    def _parsed(self, texts: pa.Array) -> pa.Array:
        form = self.original.form if self.original.form in PATTERNS else TextForm.NUMBER
        pattern = PATTERNS.get(form, PATTERNS[TextForm.NUMBER])
        fits = pc.match_substring_regex(texts, pattern)
        if self.original.form is TextForm.NUMBER_OR_WORD:
            texts = pc.if_else(fits, texts, pa.scalar(None, pa.string()))
        elif (bad := _first(texts, pc.invert(fits))) is not None:
            raise BadColumn(f"{_shown(bad)} is not a number{_READABLE.get(form, '')}")
        if form in IGNORED:
            texts = pc.replace_substring_regex(texts, IGNORED[form], "")
            texts = pc.replace_substring(texts, ",", ".")
        # Arrow takes no plus sign.
        return pc.cast(pc.replace_substring_regex(texts, r"^\+", ""), pa.float64())

    def _lists_of_texts(self, values: pa.Array) -> pa.Array:
        flat = values.flatten()
        if not (t.is_string(flat.type) or t.is_large_string(flat.type)):
            flat = encoders.as_texts(flat)
        encoders.refuse_nulls(flat)
        return _lists(values, pc.fill_null(self._present(flat), ""))

    def _instants(self, values: pa.Array) -> pa.Array:
        """Return dates and times as seconds since 1970, in double precision as Spark computes them."""
        kind = values.type
        if t.is_timestamp(kind):
            if self.original.type == "timestamp_ns":
                return values.cast(pa.timestamp("ns", kind.tz))
            counts = values.cast(pa.int64())
            if kind.unit == "ns":
                floored = pc.fill_null(counts, 0).to_numpy() // 1000
                return _seconds(floored, values.is_null())
            return encoders.as_numbers(values)
        if t.is_date(kind):
            return encoders.as_numbers(values)
        if not (t.is_string(kind) or t.is_large_string(kind)):
            raise _unfit(values, "a date")
        texts = self._present(values)
        form = self.original.form
        micros, is_valid = micros_of_dates(texts, form) if form in DATES else micros_of_times(texts)
        if (bad := _first(texts, pa.array(~is_valid))) is not None:
            readable = f" such as {DATES[form].readable}" if form in DATES else " such as 2024-01-31 12:00"
            raise BadColumn(f"{_shown(bad)} is not a date{readable}")
        return _seconds(micros, texts.is_null())


_READABLE = {
    TextForm.SIGNS: " such as 1,200.50, $5 or 12 %",
    TextForm.COMMA: " with a decimal comma, such as 1.200,50",
}


def raw_columns(schema: TableSchema) -> Iterator[RawColumn]:
    """Yield the columns of the original table that features are made of."""
    is_copied = schema.encoding is Encoding.PREPARED
    features: dict[str, list[Feature]] = {}
    for feature in schema.features:
        features.setdefault(feature.source or feature.name, []).append(feature)
    for column in schema.original:
        if column.name in features:
            yield RawColumn(column, tuple(features[column.name]), is_copied, schema.null_values)


def inputs_of(schema: TableSchema) -> tuple[Input, ...]:
    """Return the columns that a model with this schema takes: those of the original table that it uses."""
    return tuple(
        Input(
            name=column.original.name,
            type=_input_type(column),
            is_required=not column.original.is_optional,
        )
        for column in raw_columns(schema)
    )


def example_rows(records: Sequence[Mapping[str, Any]], schema: TableSchema) -> pd.DataFrame:
    """Return rows of the original table, as JSON holds them, with the columns that the model takes."""
    import pandas as pd

    rows = pd.DataFrame(index=range(len(records)))
    for column in raw_columns(schema):
        name, kind = column.original.name, _input_type(column)
        values = [record.get(name) for record in records]
        if kind == "number":
            rows[name] = column.numbers(values)
        elif kind == "datetime":
            rows[name] = pd.to_datetime(pd.Series(values), utc=True).dt.tz_localize(None)
        else:
            rows[name] = pd.Series([_decoded(v) for v in values] if kind == "binary" else values)
    return rows


def class_values(schema: TableSchema) -> list[Any]:
    """Return the classes as the values that the label has in the original table."""
    label = schema.label
    stored = next((column.type for column in schema.original if column.name == label.name), "string")
    if stored in _INTEGERS:
        return [int(name) for name in label.classes]
    if stored in _FRACTIONS or stored.startswith("decimal"):
        return [float(name) for name in label.classes]
    if stored == "boolean":
        return [name == "true" for name in label.classes]
    return list(label.classes)


def _input_type(column: RawColumn) -> str:
    original = column.original
    kind, form = original.type, original.form
    if kind.startswith("array<"):
        element = kind.removeprefix("array<").removesuffix(">")
        return f"array<{'string' if element == 'string' else 'long' if element in _INTEGERS else 'number'}>"
    if kind in _INTEGERS:
        return "number" if original.is_optional else "long"
    if kind in _FRACTIONS or kind.startswith("decimal"):
        return "number"
    if kind == "date" or kind in _TIMES:
        return "datetime"
    if kind == "string":
        [first, *_] = column.features
        # pandas reads such texts in a CSV as booleans or numbers.
        is_ambiguous = first.kind is ColumnKind.CATEGORICAL and all(map(_AMBIGUOUS.match, first.vocabulary))
        return "any" if form is TextForm.NUMBER_OR_WORD or is_ambiguous else "string"
    return kind  # boolean, binary


def _seconds(micros: npt.NDArray[np.int64], is_null: pa.Array) -> pa.Array:
    return pa.array(micros / 1e6, mask=is_null.to_numpy(zero_copy_only=False))


def _lists(values: pa.Array, elements: pa.Array) -> pa.Array:
    """Return lists of the lengths of others, with these elements; null lists become empty."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), elements)


def _first(values: pa.Array, is_bad: pa.Array) -> Any:
    """Return the first of the bad values; None: there is none."""
    bad = values.filter(pc.fill_null(is_bad, False)).drop_null()
    return bad[0].as_py() if len(bad) else None


def _unfit(values: pa.Array, rule: str) -> BadColumn:
    present = values.drop_null()
    return BadColumn(f"{_shown(present[0].as_py()) if len(present) else values.type} is not {rule}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind))


def _decoded(value: Any) -> bytes | None:
    """Return bytes from base64, which JSON holds."""
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str) or re.search(r"[^A-Za-z0-9+/=\s]", value):
        raise BadColumn(f"{_shown(value)} is neither bytes nor base64")
    return base64.b64decode(value)
