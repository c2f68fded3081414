"""Decides whether a label holds classes or numbers, and which classes."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.errors import ConfigError, DataError

MAX_CLASSES = 1000
MAX_INTEGER_CLASSES = 20  # label_type auto: integers with more values are a regression


def check_stored_label(name: str, type: str, stored: T.DataType, *, is_alone: bool) -> None:
    """Check that a column can be a label.

    Args:
        type: auto, class or number.
        is_alone: whether it is the only label, which may be a list of numbers.

    Raises:
        ConfigError: `type` does not fit the column.
        DataError: the column is neither text, a number nor a list of numbers.
    """
    is_list = isinstance(stored, T.ArrayType) and not isinstance(stored.elementType, T.StringType)
    if not isinstance(stored, T.StringType | T.NumericType) and not (is_list and is_alone):
        rule = "it must be text, a number or a list of numbers"
        if not is_alone:
            rule = "each of several labels must be text or a number"
        raise DataError(f"the label {name!r} is {stored.simpleString()}; {rule}")
    if is_list and type == "class":
        raise ConfigError(
            f"does not fit the label {name!r}, which holds lists of numbers", key="label_type", value=type
        )


def may_be_classes(name: str, type: str, kind: ColumnKind, *, is_whole: bool, in_place: bool) -> bool:
    """Return whether to count the values of a label, because they are or may be classes.

    Args:
        type: auto, class or number.
        kind: of the values: NUMERIC if all are numbers.
        is_whole: whether all are integers.
        in_place: whether readers look up the classes in the table itself.

    Raises:
        ConfigError: `type` does not fit the label.
    """
    is_number = kind is ColumnKind.NUMERIC
    if kind is ColumnKind.SEQUENCE:
        return False
    if type == "number" and not is_number:
        raise ConfigError(
            f"does not fit the label {name!r}, which holds text",
            key="label_type",
            value=type,
            cure="Leave it out to predict the texts as classes, or choose a label of numbers",
        )
    if type == "class" and is_number and not is_whole and in_place:
        raise ConfigError(
            f"does not fit the label {name!r}, which holds numbers that are not integers",
            key="label_type",
            value=type,
            cure="Use number, or prepare a copy",
        )
    return type == "class" or (type == "auto" and (not is_number or is_whole))


def classes_of(values: Sequence[str], name: str, type: str, kind: ColumnKind) -> tuple[str, ...]:
    """Return the classes of a label in the order of their codes; none if it is a regression after all.

    The order is numerical if all are integers, else alphabetical.

    Args:
        values: the different values of the label, or the most frequent of more than MAX_CLASSES.
        type: auto, class or number.
        kind: as for `may_be_classes`.

    Raises:
        DataError: there are too many.
    """
    if type == "auto" and kind is ColumnKind.NUMERIC and len(values) > MAX_INTEGER_CLASSES:
        return ()
    if len(values) > MAX_CLASSES:
        raise DataError(
            f"the label {name!r} has more than {MAX_CLASSES} classes. Choose another column, or "
            "--label-type number"
        )
    try:
        return tuple(sorted(values, key=int))
    except ValueError:
        return tuple(sorted(values))
