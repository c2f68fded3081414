"""Checks that the types of stored columns fit their use in the schema."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.types as t

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, TableSchema
from spark_hpo.errors import DataError

Test = Callable[[pa.DataType], bool]

_WHOLE: tuple[Test, ...] = (t.is_integer, t.is_boolean)
_NUMBER = (*_WHOLE, t.is_floating)
_TEXT = (t.is_string, t.is_large_string)
_MEASURABLE = (*_NUMBER, *_TEXT, t.is_decimal, t.is_date, t.is_timestamp)  # text that spells numbers
_NAMEABLE = (*_WHOLE, *_TEXT, t.is_floating, t.is_decimal, t.is_date)
_BYTES = (t.is_binary, t.is_large_binary, t.is_fixed_size_binary)


def check_use(arrow_schema: pa.Schema, schema: TableSchema) -> None:
    """Raise if a column has a type that its feature cannot use.

    Raises:
        DataError: names the column, its type and the rule.
    """

    def check(name: str, tests: tuple[Test, ...], rule: str, *, in_list: bool = False) -> None:
        declared = arrow_schema.field(name).type
        inner = declared.value_type if t.is_dictionary(declared) else declared
        if is_list(inner):
            inner, is_nested = inner.value_type, True
        else:
            is_nested = False
        if is_nested != in_list or not any(test(inner) for test in tests):
            raise DataError(
                f"column {name!r} is {declared}, but {rule}. Encode it with `spark-hpo prepare`, or cast it"
            )

    is_raw = schema.encoding is Encoding.RAW
    for feature in schema.read_features:
        name = schema.stored_name(feature)
        if feature.marks_missing:
            continue
        match feature.kind:
            case ColumnKind.NUMERIC:
                check(name, _MEASURABLE if is_raw else _NUMBER, "a numeric feature must be a number")
            case ColumnKind.CATEGORICAL:
                tests = _NAMEABLE if is_raw else _WHOLE
                check(name, tests, "a categorical feature must be an integer code")
            case ColumnKind.ARRAY:
                check(name, _NUMBER, "an array feature must be a list of numbers", in_list=True)
            case ColumnKind.SEQUENCE:
                _check_sequence(check, name, feature, is_raw=is_raw)
            case ColumnKind.BINARY:
                check(name, _BYTES, "a binary feature must be bytes")
                _check_transform(feature)
            case ColumnKind.TEXT:
                check(name, _TEXT, "a feature of text must be text")
    label = schema.label
    if label.shape:
        check(label.name, _NUMBER, "a label of several numbers must be a list of numbers", in_list=True)
    elif label.is_regression:
        check(label.name, _MEASURABLE if is_raw else _NUMBER, "the label of a regression must be a number")
    else:
        tests = _NAMEABLE if is_raw else _WHOLE
        check(label.name, tests, "the label of a classification must be an integer code")


def is_list(kind: pa.DataType) -> bool:
    """Return True for any of Arrow's list types."""
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


def _check_sequence(check: Callable[..., None], name: str, feature: Feature, *, is_raw: bool) -> None:
    if feature.vocabulary and is_raw:
        check(name, _NAMEABLE, "a sequence of categories must be a list of categories", in_list=True)
    elif feature.vocabulary:
        check(name, _WHOLE, "a sequence of categories must be a list of integer codes", in_list=True)
    else:
        check(name, _NUMBER, "a sequence must be a list of numbers", in_list=True)


def _check_transform(feature: Feature) -> None:
    if not feature.transform:
        raise DataError(
            f"column {feature.name!r} holds bytes without a transform. Name a function that decodes "
            f"them in the study file, data.transforms: {{{feature.name}: my_module.py:decode}}. If Petastorm "
            "wrote the table and you trust its source, set data.trust_petastorm_metadata: true"
        )
