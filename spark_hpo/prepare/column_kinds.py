"""Gives columns the kinds that the user names: categories, numbers, times or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.text_forms import TextForm
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.cleaning import time_in_text
from spark_hpo.prepare.columns import class_name, number
from spark_hpo.prepare.encode import original
from spark_hpo.prepare.splits import column

KINDS = ("categorical", "numeric", "time", "text")
# Readers parse these times in text.
_ISO_IN_PLACE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?$"


def check_kinds(
    kinds: Mapping[str, Sequence[str]], label: str | None, extra_labels: Sequence[str] = ()
) -> None:
    """Raise ConfigError if a column has two kinds, or if the label has one.

    Further labels may be `categorical` (classes) or `numeric`.
    """
    seen: dict[str, str] = {}
    for kind, names in kinds.items():
        for name in names:
            if name == label:
                raise ConfigError(
                    f"contains the label {name!r}", key=kind, cure="Use label_type for the label"
                )
            if name in extra_labels and kind not in ("categorical", "numeric"):
                raise ConfigError(f"contains the label {name!r}", key=kind)
            if seen.setdefault(name, kind) != kind:
                raise ConfigError(f"contains {name!r}, which is in {seen[name]} as well", key=kind)


def original_of_kinds(
    frame: DataFrame, null_values: Sequence[str], kinds: Mapping[str, Sequence[str]], *, in_place: bool
) -> tuple[DataFrame, dict[str, TextForm]]:
    """Return the original values as `original` does, and columns with a kind as text or as numbers.

    Also the forms of those that were text.

    Args:
        kinds: names of columns, by kind.
        in_place: refuse conversions that readers of the original files do not make.

    Raises:
        DataError: the values of a column do not fit its kind.
    """
    for name in kinds.get("categorical", ()):
        stored = frame.schema[name].dataType
        if not (isinstance(stored, T.StringType | T.NumericType | T.BooleanType) or _has_tokens(stored)):
            raise _unfit(name, stored, "categories")
    for name in kinds.get("text", ()):
        if not isinstance(stored := frame.schema[name].dataType, T.StringType):
            raise _unfit(name, stored, "text")
    is_flag = {
        name: column(name).cast("int")
        for name in kinds.get("numeric", ())
        if isinstance(frame.schema[name].dataType, T.BooleanType)
    }
    frame = original(_with(frame, is_flag), null_values)
    changed = {name: _category(frame, name, in_place=in_place) for name in kinds.get("categorical", ())}
    forms: dict[str, TextForm] = {}
    for kind, read in (("numeric", _number), ("time", _time)):
        for name in kinds.get(kind, ()):
            stored = frame.schema[name].dataType
            if isinstance(stored, T.StringType):
                forms[name], changed[name] = read(frame, name, in_place=in_place)
            elif not isinstance(stored, T.NumericType):
                raise _unfit(name, stored, "numbers")
    return _with(frame, changed), forms


def _with(frame: DataFrame, replaced: Mapping[str, Column]) -> DataFrame:
    if not replaced:
        return frame
    return frame.select(*(replaced.get(name, column(name)).alias(name) for name in frame.columns))


def _has_tokens(stored: T.DataType) -> bool:
    """True for lists of texts or of integers."""
    return isinstance(stored, T.ArrayType) and isinstance(stored.elementType, T.StringType | T.IntegralType)


def _category(frame: DataFrame, name: str, *, in_place: bool) -> Column:
    if isinstance(frame.schema[name].dataType, T.ArrayType):
        return column(name).cast("array<string>")
    if in_place and isinstance(frame.schema[name].dataType, T.FractionalType):
        value = number(frame, name)
        if broken := _count(frame, value != F.floor(value)):
            raise DataError(
                f"column {name!r} has {broken:,} numbers that are not integers, which cannot be categories "
                "in place. Prepare a copy, or leave the column out of categorical"
            )
    return class_name(frame, name, in_place=True)  # text stays as it is


def _number(frame: DataFrame, name: str, *, in_place: bool) -> tuple[TextForm, Column]:
    value = number(frame, name)
    strays = _count(frame, column(name).isNotNull() & value.isNull())
    if in_place and strays:
        raise DataError(
            f"column {name!r} has {strays:,} texts that are not numbers. Prepare a copy, in which they count "
            "as missing, or leave the column out of numeric"
        )
    return TextForm.NUMBER_OR_WORD if strays else TextForm.NUMBER, value


def _time(frame: DataFrame, name: str, *, in_place: bool) -> tuple[TextForm, Column]:
    parsed = time_in_text(frame, name)
    if parsed is None:
        raise DataError(
            f"the time {name!r} is text that is neither dates in one format nor numbers. Write it as "
            "year-month-day, or leave the column out of time"
        )
    is_readable = column(name).rlike(_ISO_IN_PLACE) | number(frame, name).isNotNull()
    if in_place and _count(frame, ~is_readable):
        raise DataError(
            f"the time {name!r} is text that readers cannot parse. Prepare a copy, or write year-month-day"
        )
    return parsed


def _unfit(name: str, stored: T.DataType, kind: str) -> DataError:
    return DataError(f"column {name!r} is {stored.simpleString()[:60]}, which cannot be {kind}")


def _count(frame: DataFrame, condition: Column) -> int:
    return int(frame.agg(F.count_if(condition).alias("rows")).collect()[0]["rows"])
