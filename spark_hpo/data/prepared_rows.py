"""Tells rows of a prepared table from rows of the table that it was made from, if that is not described.

Older versions did not record in schema.json how the columns of the original table were read. The model of
such a table takes standardised numbers and codes. Original values would give nonsense, so a value that cannot
be a prepared one is refused.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from spark_hpo.data.encoders import BadColumn
from spark_hpo.data.plan.column_use import is_list
from spark_hpo.data.schema import ColumnKind, Feature

Range = tuple[float, float]
"""The lowest and the highest stored value."""


def check_prepared(values: pa.Array, feature: Feature, span: Range | None) -> None:
    """Refuse values that only the original column can hold.

    A number is refused when it lies far outside the stored range (by more than the width of that range) and
    inside the range of the original column. Original values that look standardised are not detected.

    Args:
        span: the feature's stored range; None: it is not known.

    Raises:
        BadColumn: with the first such value, and how it is encoded.
    """
    inner = values.flatten() if is_list(values.type) else values
    inner = inner.drop_null()
    if not len(inner) or feature.kind in (ColumnKind.BINARY, ColumnKind.TEXT):
        return
    is_coded = feature.kind is ColumnKind.CATEGORICAL or bool(feature.vocabulary)
    kind = inner.type
    if not (t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind) or t.is_decimal(kind)):
        raise _original(inner[0].as_py(), feature)
    if t.is_boolean(kind):
        if is_coded and not {"true", "false"}.isdisjoint(feature.vocabulary):  # the names that prepare gives
            raise _original(inner[0].as_py(), feature)
        return
    numbers = pc.cast(inner, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if is_coded:
        is_code = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < feature.num_codes)
        is_original = ~is_code
    elif span is not None and is_standardised(feature):
        low, high, width = *span, span[1] - span[0]
        low, high = low - width, high + width
        originals = feature.mean + feature.deviation * np.array([low, high])
        is_outside = (numbers < low) | (high < numbers)
        is_original = is_outside & (originals[0] <= numbers) & (numbers <= originals[1]) & (width > 0)
    else:
        return
    if is_original.any():
        raise _original(inner[int(np.argmax(is_original))].as_py(), feature)


def _original(value: object, feature: Feature) -> BadColumn:
    if feature.kind is ColumnKind.CATEGORICAL or feature.vocabulary:
        rule = f"a code from 0 to {len(feature.vocabulary)}"
        cure = "1 + its position in the feature's vocabulary in schema.json, 0 for any other value"
    elif is_standardised(feature):
        rule = "a standardised number"
        cure = f"(value - {feature.mean:.12g}) / {feature.deviation:.12g}"
    else:
        rule, cure = "a number", "as the files of the prepared table hold it"
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    return BadColumn(
        f"{shown} is not {rule}. The model was trained on a prepared table and takes prepared rows, not "
        f"original ones: encode the value ({cure})"
    )


def is_standardised(feature: Feature) -> bool:
    return feature.kind is ColumnKind.NUMERIC and (feature.mean, feature.deviation) != (0.0, 1.0)
