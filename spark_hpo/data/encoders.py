"""From one stored column to what is delivered of it: the rules of each kind of feature."""

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

Column = npt.NDArray[np.float32] | npt.NDArray[np.int64]

# Texts that mean a missing value, besides the empty one, in a table that is read as it is.
MISSING_TEXTS = ("", "NaN", "nan", "NULL", "null")

_SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class BadColumn(Exception):
    """What is wrong with the values, the rule and the cure. The caller adds the place."""


# Prepared: the files hold what is delivered -----------------------------------------------------------


def stored_numbers(values: pa.Array, feature: Feature | Label) -> Column:
    """float32 [rows]. A null becomes the mean, which is 0 once standardised, where its rule says so."""
    if values.null_count:
        refuse_nulls(values, feature)
        values = pc.fill_null(values, 0)
    return finite(_numpy(values))


def stored_codes(values: pa.Array, num_codes: int, feature: Feature | Label) -> Column:
    """int64 [rows]. A null becomes code 0 where its rule says so."""
    if values.null_count:
        refuse_nulls(values, feature)
        values = pc.fill_null(values, 0)
    codes: Column = _numpy(values).astype(np.int64, copy=False)
    if len(codes):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= num_codes:
            raise BadColumn(
                f"code {low if low < 0 else high}; schema.json allows 0..{num_codes - 1}: prepare the table "
                "again, so that both agree"
            )
    return codes


# Raw: the files hold the table's own values -----------------------------------------------------------


def standardised(values: pa.Array, feature: Feature) -> Column:
    """float32 [rows]: (value - mean) / deviation, worked out in double precision."""
    numbers = as_numbers(values)
    if numbers.null_count:
        refuse_nulls(numbers, feature)
        numbers = pc.fill_null(numbers, feature.mean)
    return finite((_numpy(numbers) - feature.mean) / feature.deviation)


def missing_marks(values: pa.Array) -> Column:
    """float32 [rows]: 1.0 where a value is missing."""
    return np.asarray(_numpy(as_numbers(values).is_null()), np.float32)


def looked_up(values: pa.Array, feature: Feature) -> Column:
    """int64 [rows]: the places in the vocabulary, from 1; 0 for what is not in it."""
    texts = as_texts(values)
    if texts.null_count:
        refuse_nulls(texts, feature)
        texts = pc.fill_null(texts, "")
    return _places(texts, feature.vocabulary) + 1


def raw_label(values: pa.Array, label: Label) -> Column:
    """float32 [rows] of a regression, or int64 [rows] codes of classes."""
    if label.is_regression:
        numbers = as_numbers(values)
        refuse_nulls(numbers, label)
        return finite(_numpy(numbers))
    texts = as_texts(values)
    refuse_nulls(texts, label)
    codes = _places(texts, label.classes)
    if (codes < 0).any():
        unknown = texts[int(np.argmax(codes < 0))].as_py()
        raise BadColumn(
            f"{unknown!r} is no class of schema.json ({', '.join(label.classes)}): prepare the table again"
        )
    return codes


# Both -------------------------------------------------------------------------------------------------


def arrays(values: pa.Array, feature: Feature) -> Column:
    """float32 [rows, *shape] of lists that all have as many elements. A null becomes zeros."""
    if values.null_count:
        return _zeros_for_nulls(arrays, values, feature)
    size = prod(feature.shape)
    if t.is_fixed_size_list(values.type):
        bad = len(values) * (values.type.list_size != size)
    else:
        bad = int((_numpy(values.value_lengths()) != size).sum())
    if bad:
        raise BadColumn(
            f"{bad} arrays do not have {size} elements; all must have the shape {list(feature.shape)}: "
            "pad or drop them"
        )
    flat = values.flatten()
    refuse_nulls(flat)
    return finite(_numpy(flat)).reshape(len(values), *feature.shape)


def sequences(values: pa.Array, feature: Feature, *, is_raw: bool) -> tuple[Column, Column]:
    """Padded lists [rows, longest], float32 or int64 codes, and their lengths, int64 [rows]."""
    if values.null_count:
        refuse_nulls(values, feature)
    longest = feature.shape[0]
    if feature.truncates:
        values = pc.list_slice(values, 0, longest, return_fixed_size_list=False)
    lengths = _numpy(pc.fill_null(values.value_lengths(), 0)).astype(np.int64)
    if len(lengths) and int(lengths.max()) > longest:
        raise BadColumn(
            f"{int((lengths > longest).sum())} lists have more than {longest} elements, one "
            f"{int(lengths.max())}: cut them (data.truncate: {{{feature.name}: {longest}}}), or raise the "
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


def transformed(values: pa.Array, feature: Feature) -> Column:
    """float32 [rows, *shape]: what the transform makes of each value, and zeros of a null."""
    if values.null_count:
        return _zeros_for_nulls(transformed, values, feature)
    transform = find_transform(feature.transform)
    column = np.empty((len(values), *feature.shape), np.float32)
    for row, value in enumerate(values):
        try:
            array = np.asarray(transform(value.as_py()), np.float32)
        except Exception as exc:  # the transform is the user's: anything may happen in it
            raise BadColumn(
                f"{feature.transform} failed with {type(exc).__name__}: {exc} on a value of "
                f"{len(value.as_py())} bytes: mend it, or drop such rows"
            ) from exc
        if array.shape != feature.shape:
            raise BadColumn(
                f"{feature.transform} gave the shape {list(array.shape)}; all must have the shape "
                f"{list(feature.shape)}: resize in it"
            )
        column[row] = array
    return finite(column)


@cache
def find_transform(reference: str) -> Callable[[bytes], Any]:
    """The function of `module:function`.

    Raises:
        BadColumn: there is none.
    """
    module_name, _, name = reference.partition(":")
    if module_name == "petastorm":
        from spark_hpo.data.readers.petastorm_codecs import find_codec

        return find_codec(name)
    try:
        function: Callable[[bytes], Any] = getattr(importlib.import_module(module_name), name)
    except Exception as exc:  # the module is the user's
        raise BadColumn(f"the transform {reference} cannot be imported: {type(exc).__name__}: {exc}") from exc
    return function


def code_of(reference: str) -> str:
    """The source of a transform's module: what it makes of a value may change with it."""
    module = inspect.getmodule(find_transform(reference))
    try:
        return inspect.getsource(module) if module is not None else reference
    except (OSError, TypeError):  # typed at a prompt, or compiled
        return reference


def as_numbers(values: pa.Array) -> pa.Array:
    """double [rows]: of a date or time the seconds since 1970, of text what it says; null where missing."""
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
        raise BadColumn(f"{exc}: mend the value, or prepare the table again") from exc
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def as_texts(values: pa.Array) -> pa.Array:
    """string [rows]: trimmed; whole numbers without a decimal point; null where missing."""
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
    """As float32, all of them finite."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        column: Column = values.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        is_sure = np.isfinite(column.sum())  # one pass; what is not finite stays so in a sum
    if not is_sure and not (good := np.isfinite(column)).all():
        raise BadColumn(
            f"{int((~good).sum())} values are NaN or beyond float32; all must be finite: fill them, or let "
            "spark-hpo prepare treat them as missing"
        )
    return column


def refuse_nulls(values: pa.Array, owner: Feature | Label | None = None) -> None:
    """Nulls are an error, unless the owner's rule fills them. None: of the elements of a list."""
    if not values.null_count or (isinstance(owner, Feature) and owner.nulls is NullRule.FILL):
        return
    if owner is None:
        raise BadColumn(f"{values.null_count} nulls within lists; a list must have none: write it without")
    name = owner.source or owner.name if isinstance(owner, Feature) else owner.name
    raise BadColumn(
        f"{values.null_count} nulls; a column must have none: "
        f"{null_cure(name, is_label=isinstance(owner, Label))}"
    )


def null_cure(name: str, *, is_label: bool = False) -> str:
    """What may be done about nulls."""
    quoted = name if name.isidentifier() else f"`{name}`"
    without = f'leave such rows out (data.where: "{quoted} is not null")'
    return without if is_label else f"fill them (data.nulls: {{{name}: fill}}), or {without}"


def _zeros_for_nulls(
    encode: Callable[[pa.Array, Feature], Column], values: pa.Array, feature: Feature
) -> Column:
    refuse_nulls(values, feature)
    column = np.zeros((len(values), *feature.shape), np.float32)
    column[_numpy(values.is_valid())] = encode(values.drop_null(), feature)
    return column


def _places(texts: pa.Array, values: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Where each text stands among the values; -1 for none."""
    found = pc.index_in(texts, value_set=pa.array(values, pa.string()))
    places: npt.NDArray[np.int64] = _numpy(pc.fill_null(found, -1)).astype(np.int64)
    return places


def _numpy(values: pa.Array) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
