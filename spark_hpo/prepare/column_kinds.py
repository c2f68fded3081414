"""Gives columns the kinds that the user names: categories, numbers, times or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import types as T

from spark_hpo.data.text_forms import DATES, TextForm
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.rows import Reading, Rows

KINDS = ("categorical", "numeric", "time", "text")
ISO_IN_PLACE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?$"
"""Times in text that readers parse."""


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
    rows: Rows, null_values: Sequence[str], kinds: Mapping[str, Sequence[str]], *, in_place: bool
) -> tuple[Rows, dict[str, TextForm]]:
    """Return the original values, in which columns with a kind are text or numbers.

    Also the forms of those that were text.

    Args:
        kinds: names of columns, by kind.
        in_place: refuse conversions that readers of the original files do not make.

    Raises:
        DataError: the values of a column do not fit its kind.
    """
    for name in kinds.get("categorical", ()):
        stored = rows.schema[name].dataType
        if not (isinstance(stored, T.StringType | T.NumericType | T.BooleanType) or _has_tokens(stored)):
            raise _unfit(name, stored, "categories")
    for name in kinds.get("text", ()):
        if not isinstance(stored := rows.schema[name].dataType, T.StringType):
            raise _unfit(name, stored, "text")
    flags = [
        name for name in kinds.get("numeric", ()) if isinstance(rows.schema[name].dataType, T.BooleanType)
    ]
    rows = rows.converted(dict.fromkeys(flags, Reading.FLAG)).original(null_values)
    readings: dict[str, TextForm | Reading] = {
        name: _category(rows, name, in_place=in_place) for name in kinds.get("categorical", ())
    }
    forms: dict[str, TextForm] = {}
    for kind, form_of in (("numeric", _number), ("time", _time)):
        for name in kinds.get(kind, ()):
            stored = rows.schema[name].dataType
            if isinstance(stored, T.StringType):
                forms[name] = form_of(rows, name, in_place=in_place)
            elif not isinstance(stored, T.NumericType):
                raise _unfit(name, stored, "numbers")
    return rows.converted(readings | forms), forms


def time_in_text(facts: Mapping[str, int]) -> TextForm | None:
    """Return how a text column spells times in every row with a value; None if it holds something else.

    Args:
        facts: as `Rows.text_facts` counts them.
    """
    forms = (TextForm.ISO, *DATES, TextForm.NUMBER)
    return next((form for form in forms if facts[form] == facts["present"]), None)


def _has_tokens(stored: T.DataType) -> bool:
    """True for lists of texts or of integers."""
    return isinstance(stored, T.ArrayType) and isinstance(stored.elementType, T.StringType | T.IntegralType)


def _category(rows: Rows, name: str, *, in_place: bool) -> Reading:
    stored = rows.schema[name].dataType
    if isinstance(stored, T.ArrayType):
        return Reading.TOKENS
    if in_place and isinstance(stored, T.FractionalType) and (broken := rows.count_fractions(name)):
        raise DataError(
            f"column {name!r} has {broken:,} numbers that are not integers, which cannot be categories "
            "in place. Prepare a copy, or leave the column out of categorical"
        )
    return Reading.CATEGORY


def _number(rows: Rows, name: str, *, in_place: bool) -> TextForm:
    facts = rows.text_facts(name)
    strays = facts["present"] - facts[TextForm.NUMBER]
    if facts["present"] and not facts[TextForm.NUMBER]:
        raise DataError(
            f"column {name!r} is text without a single number. Leave it out of the numeric columns"
        )
    if in_place and strays:
        raise DataError(
            f"column {name!r} has {strays:,} texts that are not numbers. Prepare a copy, in which they count "
            "as missing, or leave the column out of numeric"
        )
    return TextForm.NUMBER_OR_WORD if strays else TextForm.NUMBER


def _time(rows: Rows, name: str, *, in_place: bool) -> TextForm:
    facts = rows.text_facts(name)
    form = time_in_text(facts)
    if form is None:
        raise DataError(
            f"the time {name!r} is text that is neither dates in one format nor numbers. Write it as "
            "year-month-day, or leave the column out of time"
        )
    if in_place and facts["unreadable"]:
        raise DataError(
            f"the time {name!r} is text that readers cannot parse. Prepare a copy, or write year-month-day"
        )
    return form


def _unfit(name: str, stored: T.DataType, kind: str) -> DataError:
    return DataError(f"column {name!r} is {stored.simpleString()[:60]}, which cannot be {kind}")
