"""Encodes one stored column into its delivered values, by the rules of each kind of feature."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from spark_hpo.data.schema import Feature, Label, NullRule

Column = npt.NDArray[np.float32] | npt.NDArray[np.int64] | npt.NDArray[np.uint8]

# Texts that count as missing in a table that is read in place.
MISSING_TEXTS = ("", "NaN", "nan", "NULL", "null")

_SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class BadColumn(Exception):
    """A column has bad values. The message has the rule and the cure; the caller adds the place."""


# Prepared tables: the files hold encoded values --------------------------------------------------------


def stored_numbers(values: pa.Array, feature: Feature | Label) -> Column:
    """Return float32 [rows]. With the rule `fill`, a null becomes 0, the mean of standardised numbers."""
    if values.null_count:
        refuse_nulls(values, feature)
        values = pc.fill_null(values, 0)
    return finite(_numpy(values))


def stored_codes(values: pa.Array, num_codes: int, feature: Feature | Label) -> Column:
    """Return int64 [rows]. With the rule `fill`, a null becomes code 0."""
    if values.null_count:
        refuse_nulls(values, feature)
        values = pc.fill_null(values, 0)
    codes: Column = _numpy(values).astype(np.int64, copy=False)
    if len(codes):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= num_codes:
            raise BadColumn(
                f"code {low if low < 0 else high} is outside 0..{num_codes - 1}, the codes of "
                "schema.json. Prepare the table again"
            )
    return codes


# Raw tables: the files hold original values ------------------------------------------------------------


def standardised(values: pa.Array, feature: Feature) -> Column:
    """Return float32 [rows]: (value - mean) / deviation, computed in double precision."""
    numbers = as_numbers(values)
    if numbers.null_count:
        refuse_nulls(numbers, feature)
        numbers = pc.fill_null(numbers, feature.mean)
    return finite((_numpy(numbers) - feature.mean) / feature.deviation)


def missing_marks(values: pa.Array) -> Column:
    """Return float32 [rows]: 1.0 where a value is missing, else 0.0."""
    return np.asarray(_numpy(as_numbers(values).is_null()), np.float32)


def looked_up(values: pa.Array, feature: Feature) -> Column:
    """Return int64 [rows]: the 1-based index in the vocabulary, or 0 for unknown values."""
    return codes_of(as_texts(values), feature)


def codes_of(texts: pa.Array, feature: Feature) -> Column:
    """Return int64 [rows], as `looked_up`, of texts whose missing values are null."""
    if texts.null_count:
        refuse_nulls(texts, feature)
        texts = pc.fill_null(texts, "")
    return _indices(texts, feature.vocabulary) + 1


def raw_label(values: pa.Array, label: Label) -> Column:
    """Return float32 [rows] for a regression, else int64 [rows] class codes."""
    if label.is_regression:
        numbers = as_numbers(values)
        refuse_nulls(numbers, label)
        return finite(_numpy(numbers))
    texts = as_texts(values)
    refuse_nulls(texts, label)
    codes = _indices(texts, label.classes)
    if (codes < 0).any():
        unknown = texts[int(np.argmax(codes < 0))].as_py()
        raise BadColumn(
            f"{unknown!r} is not a class of schema.json ({', '.join(label.classes)}). Prepare the table again"
        )
    return codes


# Both kinds of tables ---------------------------------------------------------------------------------


def arrays(values: pa.Array, feature: Feature) -> Column:
    """Return float32 [rows, *shape] from lists of equal length. With `fill`, a null becomes zeros."""
    if values.null_count:
        return _zeros_for_nulls(arrays, values, feature)
    size = prod(feature.shape)
    if t.is_fixed_size_list(values.type):
        bad = len(values) * (values.type.list_size != size)
    else:
        bad = int((_numpy(values.value_lengths()) != size).sum())
    if bad:
        raise BadColumn(
            f"{bad} arrays do not have {size} elements; all must have the shape {list(feature.shape)}. "
            "Pad or drop them"
        )
    flat = values.flatten()
    refuse_nulls(flat)
    return finite(_numpy(flat)).reshape(len(values), *feature.shape)


def sequences(values: pa.Array, feature: Feature, *, is_raw: bool) -> tuple[Column, Column]:
    """Return padded lists [rows, longest], as float32 or int64 codes, and their lengths, int64 [rows]."""
    if values.null_count:
        refuse_nulls(values, feature)
    longest = feature.shape[0]
    if feature.truncates:
        values = pc.list_slice(values, 0, longest, return_fixed_size_list=False)
    lengths = _numpy(pc.fill_null(values.value_lengths(), 0)).astype(np.int64)
    if len(lengths) and int(lengths.max()) > longest:
        raise BadColumn(
            f"{int((lengths > longest).sum())} lists have more than {longest} elements; the longest has "
            f"{int(lengths.max())}. Cut them (data.truncate: {{{feature.name}: {longest}}}), or raise the "
            "shape in schema.json"
        )
    flat = values.flatten()
    if feature.vocabulary:
        num_codes = feature.num_codes
        elements = looked_up(flat, feature) if is_raw else stored_codes(flat, num_codes, Label(name=""))
    else:
        refuse_nulls(flat)
        elements = finite(_numpy(flat))
    padded: npt.NDArray[Any] = np.zeros((len(values), longest), elements.dtype)
    padded[np.arange(longest) < lengths[:, None]] = elements
    column: Column = padded
    return column, lengths


def texts_as_bytes(values: pa.Array, feature: Feature, *, is_raw: bool) -> tuple[Column, Column]:
    """Return texts as UTF-8, cut and padded with zeros, uint8 [rows, longest], and their bytes, int64 [rows].

    The cut may leave a part of a character at the end. With the rule `fill`, a null becomes the empty text.
    """
    texts = as_texts(values) if is_raw else values.cast(pa.string())
    if texts.null_count:
        refuse_nulls(texts, feature)
        texts = pc.fill_null(texts, "")
    longest = feature.shape[0]
    cut = pc.binary_slice(texts.cast(pa.binary()), 0, longest)
    lengths = _numpy(pc.binary_length(cut)).astype(np.int64)
    padded = np.zeros((len(values), longest), np.uint8)
    padded[np.arange(longest) < lengths[:, None]] = np.frombuffer(b"".join(cut.to_pylist()), np.uint8)
    return padded, lengths


def transformed(values: pa.Array, feature: Feature) -> Column:
    """Return float32 [rows, *shape]: the transform of each value; with the rule `fill`, zeros for a null."""
    if values.null_count:
        return _zeros_for_nulls(transformed, values, feature)
    transform = find_transform(feature.transform)
    column = np.empty((len(values), *feature.shape), np.float32)
    for row, value in enumerate(values):
        try:
            array = np.asarray(transform(value.as_py()), np.float32)
        except Exception as exc:  # user code can raise anything
            raise BadColumn(
                f"{feature.transform} failed with {type(exc).__name__}: {exc} on a value of "
                f"{len(value.as_py())} bytes. Fix the transform, or drop such rows"
            ) from exc
        if array.shape != feature.shape:
            raise BadColumn(
                f"{feature.transform} returned the shape {list(array.shape)}, but all values must have the "
                f"shape {list(feature.shape)}. Resize in the transform"
            )
        column[row] = array
    return finite(column)


@cache
def find_transform(reference: str) -> Callable[[bytes], Any]:
    """Import the function `module:function`, or return the decoder `petastorm:codec`.

    Raises:
        BadColumn: it cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    if module_name == "petastorm":
        from spark_hpo.data.petastorm_codecs import find_codec

        return find_codec(name)
    try:
        function: Callable[[bytes], Any] = getattr(importlib.import_module(module_name), name)
    except Exception as exc:  # user code can raise anything
        raise BadColumn(f"the transform {reference} cannot be imported: {type(exc).__name__}: {exc}") from exc
    return function


def code_of(reference: str) -> str:
    """Return the source of a transform's module, as part of cache keys."""
    module = inspect.getmodule(find_transform(reference))
    try:
        return inspect.getsource(module) if module is not None else reference
    except (OSError, TypeError):  # defined interactively, or compiled
        return reference


def as_numbers(values: pa.Array) -> pa.Array:
    """Return double [rows]: dates and times as seconds since 1970, text parsed, missing values as null."""
    kind = values.type
    if t.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif t.is_date32(kind):
        return pc.multiply(values.cast(pa.int32()).cast(pa.float64()), 86_400.0)
    elif t.is_date64(kind):
        return pc.divide(values.cast(pa.int64()).cast(pa.float64()), 1e3)
    elif t.is_timestamp(kind):
        return pc.divide(pc.cast(values.cast(pa.int64()), pa.float64(), safe=False), _SECONDS[kind.unit])
    elif t.is_string(kind) or t.is_large_string(kind):
        values = as_texts(values)
    try:
        numbers = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowInvalid as exc:
        if (moments := _moments(values)) is not None:
            return as_numbers(moments)
        raise BadColumn(f"{exc}. Fix the value, or prepare the table again") from exc
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _moments(texts: pa.Array) -> pa.Array | None:
    """Return the times in texts such as `2026-01-31 12:00`, or None if one of them is something else."""
    try:
        return pc.cast(texts, pa.timestamp("us"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def as_texts(values: pa.Array) -> pa.Array:
    """Return string [rows]: trimmed, integers without a decimal point, missing values as null."""
    kind = values.type
    if t.is_floating(kind) or t.is_decimal(kind):
        numbers = _numpy(pc.cast(values, pa.float64())).tolist()
        texts = values.cast(pa.string()).to_pylist()
        whole = [n is not None and abs(n) < 2**53 and n == int(n) for n in numbers]
        pairs = zip(numbers, texts, whole, strict=True)
        values = pa.array([str(int(n)) if is_whole else text for n, text, is_whole in pairs], pa.string())
    elif not t.is_string(kind):
        values = values.cast(pa.string())
    trimmed = pc.utf8_trim_whitespace(values)
    is_missing = pc.is_in(trimmed, value_set=pa.array(MISSING_TEXTS))
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), trimmed)


def finite(values: npt.NDArray[Any]) -> Column:
    """Convert to float32 and raise unless all values are finite."""
    with np.errstate(over="ignore"):  # overflow becomes infinite, which is refused below
        column: Column = values.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        is_sure = np.isfinite(column.sum())  # one pass: a sum with non-finite terms is not finite
    if not is_sure and not (good := np.isfinite(column)).all():
        raise BadColumn(
            f"{int((~good).sum())} values are NaN or exceed float32. Fill them, or let "
            "`spark-hpo prepare` treat them as missing"
        )
    return column


def refuse_nulls(values: pa.Array, owner: Feature | Label | None = None) -> None:
    """Raise on nulls unless the rule of `owner` fills them. For list elements, `owner` is None."""
    if not values.null_count or (isinstance(owner, Feature) and owner.nulls is NullRule.FILL):
        return
    if owner is None:
        raise BadColumn(f"{values.null_count} nulls within lists. Write the lists without nulls")
    name = owner.source or owner.name if isinstance(owner, Feature) else owner.name
    raise BadColumn(f"{values.null_count} nulls. {null_cure(name, is_label=isinstance(owner, Label))}")


def null_cure(name: str, *, is_label: bool = False) -> str:
    """Return a sentence that says how to handle nulls."""
    quoted = name if name.isidentifier() else f"`{name}`"
    condition = f'data.where: "{quoted} is not null"'
    if is_label:
        return f"Exclude these rows ({condition})"
    return f"Fill them (data.nulls: {{{name}: fill}}), or exclude these rows ({condition})"


def _zeros_for_nulls(
    encode: Callable[[pa.Array, Feature], Column], values: pa.Array, feature: Feature
) -> Column:
    refuse_nulls(values, feature)
    column = np.zeros((len(values), *feature.shape), np.float32)
    column[_numpy(values.is_valid())] = encode(values.drop_null(), feature)
    return column


def _indices(texts: pa.Array, values: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return the index of each text in `values`, or -1."""
    found = pc.index_in(texts, value_set=pa.array(values, pa.string()))
    indices: npt.NDArray[np.int64] = _numpy(pc.fill_null(found, -1)).astype(np.int64)
    return indices


def _numpy(values: pa.Array) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
