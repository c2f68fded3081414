"""Arrow arrays converted as Spark converts columns: to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from spark_hpo.data.text_forms import IGNORED, PATTERNS, WHITESPACE, TextForm
from spark_hpo.data.text_times import micros_of_dates, micros_of_times
from spark_hpo.prepare.column_facts import (
    Analysis,
    FeatureFacts,
    ListFacts,
    NumberFacts,
    ProseFacts,
    TextFacts,
)
from spark_hpo.prepare.rows import Reading
from spark_hpo.prepare.splits import OWN_COLUMNS

Columns = dict[str, pa.Array]
"""The rows of a part of a table, by column."""

Numbers = npt.NDArray[np.float64]

_LONG = 2.0**63  # Java's floor returns a long
_EXACT = 2.0**53


def number(values: pa.Array) -> Numbers:
    """Return float64 [rows]: NaN where a value is missing or not a number."""
    if t.is_string(values.type):
        fits = pc.match_substring_regex(values, PATTERNS[TextForm.NUMBER])
        values = pc.if_else(fits, values, pa.scalar(None, pa.string()))
        # Arrow takes no plus sign.
        values = pc.replace_substring_regex(values, r"^\+", "")
    elif t.is_decimal(values.type):
        values = values.cast(pa.string())  # Arrow does not round decimals to the nearest double
    numbers: Numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def is_whole(numbers: Numbers) -> npt.NDArray[np.bool_]:
    whole: npt.NDArray[np.bool_] = numbers == np.clip(np.floor(numbers), -_LONG, _LONG)
    return whole


def class_name(values: pa.Array, *, in_place: bool = False) -> pa.Array:
    """Return the values as text: whole numbers without a decimal point, so that 1 and 1.0 are one class.

    Args:
        in_place: leave text as it is, because readers of such a table look it up.
    """
    if in_place and t.is_string(values.type):
        return values
    numbers = number(values)
    whole = is_whole(numbers) & (np.abs(numbers) < _EXACT)
    named = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
    return pc.if_else(pa.array(whole), named, _as_text(values))


def instant(values: pa.Array, form: TextForm) -> pa.Array:
    """Return the times in texts as seconds since 1970, double; null if a text does not have this form."""
    if form is TextForm.ISO:
        fits = pc.match_substring_regex(values, PATTERNS[form])
        values = pc.if_else(fits, values, pa.scalar(None, pa.string()))
        micros, is_valid = micros_of_times(values)
    else:
        micros, is_valid = micros_of_dates(values, form)
    is_valid &= values.is_valid().to_numpy(zero_copy_only=False)
    return pa.array(micros / 1e6, mask=~is_valid)


def matches(values: pa.Array, form: TextForm) -> pa.Array:
    """Return which texts have a form, as bool or null."""
    if form.is_date:
        return instant(values, form).is_valid()
    return pc.match_substring_regex(values, PATTERNS[form])


def converted(values: pa.Array, reading: TextForm | Reading) -> pa.Array:
    """Return the values of a column as `Rows.converted` describes them."""
    match reading:
        case Reading.CATEGORY:
            return class_name(values, in_place=True)
        case Reading.TOKENS:
            return _mapped(values, lambda elements: elements.cast(pa.string()))
        case Reading.FLAG:
            return values.cast(pa.int32())
        case TextForm.SIGNS | TextForm.COMMA:
            plain = pc.replace_substring_regex(values, IGNORED[reading], "")
            return _double(number(pc.replace_substring(plain, ",", ".")))
        case TextForm.NUMBER | TextForm.NUMBER_OR_WORD:
            return _double(number(values))
        case TextForm.NONE:
            return values
        case form:
            return instant(values, form)


def original(values: pa.Array, null_values: Sequence[str]) -> pa.Array:
    """Return what `Rows.original` describes."""
    kind = values.type
    if t.is_string(kind):
        trimmed = pc.utf8_trim(values, characters=WHITESPACE)
        is_missing = pc.is_in(trimmed, value_set=pa.array(["", *null_values], pa.string()))
        return pc.if_else(is_missing, pa.scalar(None, pa.string()), trimmed)
    if t.is_list(kind) and t.is_string(kind.value_type):
        return _mapped(values, lambda elements: _elements(elements, null_values))
    if t.is_boolean(kind):
        return pc.if_else(values, "true", "false")
    if t.is_date(kind):
        return pc.multiply(values.cast(pa.int32()).cast(pa.float64()), 86_400.0)
    if t.is_timestamp(kind):
        return pc.divide(pc.cast(values.cast(pa.int64()), pa.float64(), safe=False), 1e6)
    return values


def encode(columns: Columns, analysis: Analysis) -> Columns:
    """Return features and label as numbers, lists of numbers or bytes, none null; and the split columns."""
    encoded: Columns = {}
    for facts in analysis.features:
        encoded[facts.name] = _encoded(columns[facts.name], facts)
        if isinstance(facts, NumberFacts) and facts.has_missing:
            flags = np.isnan(number(columns[facts.name])).astype(np.float32)
            encoded[analysis.flag_name(facts)] = pa.array(flags)
    for extra in analysis.extra_labels:
        values = columns[extra.name]
        is_class = isinstance(extra, TextFacts)
        encoded[extra.name] = _encoded(class_name(values) if is_class else values, extra)
    label = analysis.label
    values = columns[label.name]
    if isinstance(label, TextFacts):
        encoded[label.name] = pc.subtract(_codes(class_name(values), label.values), 1)
    elif isinstance(label, ListFacts):
        encoded[label.name] = _floats(values)
    else:
        encoded[label.name] = pa.array(_float32(number(values)))
    return encoded | {name: columns[name] for name in OWN_COLUMNS if name in columns}


def _encoded(values: pa.Array, facts: FeatureFacts) -> pa.Array:
    match facts:
        case NumberFacts():
            numbers = number(values)
            filled = np.where(np.isnan(numbers), facts.mean, numbers)
            return pa.array(_float32((filled - facts.mean) / facts.deviation))
        case TextFacts():
            return _codes(pc.fill_null(values, ""), facts.values)
        case ListFacts(values=()):
            return _floats(values)
        case ListFacts():
            return _mapped(values, lambda elements: _codes(elements, facts.values), is_filled=True)
        case ProseFacts():
            return pc.fill_null(values, "")
    return values


def array_of(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return one array."""
    if isinstance(values, pa.ChunkedArray):
        chunks = values.chunks
        return pa.concat_arrays(chunks) if chunks else pa.array([], values.type)
    return values


def filtered(columns: Mapping[str, pa.Array], mask: pa.Array) -> Columns:
    return {name: values.filter(mask) for name, values in columns.items()}


def _double(numbers: Numbers) -> pa.Array:
    return pa.array(numbers, mask=np.isnan(numbers))


def _float32(numbers: Numbers) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _codes(texts: pa.Array, values: Sequence[str]) -> pa.Array:
    """Return int64 [rows]: the positions of values, from 1; 0 if one is not among them."""
    found = pc.index_in(texts, value_set=pa.array(values, pa.string()))
    return pc.add(pc.fill_null(found, -1).cast(pa.int64()), 1)


def _floats(values: pa.Array) -> pa.Array:
    def converted(elements: pa.Array) -> pa.Array:
        if t.is_decimal(elements.type):
            elements = elements.cast(pa.string())
        return pc.cast(elements, pa.float32(), safe=False)

    return _mapped(values, converted, is_filled=True)


def _elements(elements: pa.Array, null_values: Sequence[str]) -> pa.Array:
    trimmed = pc.utf8_trim(elements, characters=WHITESPACE)
    is_missing = pc.is_in(trimmed, value_set=pa.array(list(null_values), pa.string()))
    return pc.if_else(pc.and_(is_missing, trimmed.is_valid()), "", trimmed)


def _mapped(
    values: pa.Array, function: Callable[[pa.Array], pa.Array], *, is_filled: bool = False
) -> pa.Array:
    """Apply a function to the elements of lists. With `is_filled`, null lists become empty."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    is_null = np.zeros(len(values), np.bool_)
    if not is_filled:
        is_null = values.is_null().to_numpy(zero_copy_only=False)
    # A null offset makes a null list.
    marked = pa.array(offsets, mask=np.append(is_null, False))
    return pa.ListArray.from_arrays(marked, function(values.flatten()))


def _as_text(values: pa.Array) -> pa.Array:
    if t.is_floating(values.type):
        return pa.array([None if v is None else java_text(v) for v in _shortest(values)], pa.string())
    return values.cast(pa.string())


def _shortest(values: pa.Array) -> list[Any]:
    if t.is_float32(values.type):
        return [None if v is None else np.float32(v) for v in values.to_pylist()]
    return list(values.to_pylist())


def java_text(value: Any) -> str:
    """Return a number as Java writes it: 0.1, 1.0E10, NaN, Infinity."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return np.format_float_positional(value, unique=True, trim="0")
    digits, _, exponent = np.format_float_scientific(value, unique=True, trim="0").partition("e")
    return f"{digits}E{int(exponent)}"
