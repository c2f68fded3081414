"""Checks nulls with column statistics before training: refuses them, or counts those that a rule fills.

Nulls that the statistics do not show are found while reading.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from spark_hpo.data.encoders import null_cure
from spark_hpo.data.plan.footers import Footers
from spark_hpo.data.schema import ColumnKind, NullRule, TableSchema
from spark_hpo.errors import DataError

logger = logging.getLogger(__name__)


def check_nulls(found: Footers, schema: TableSchema, row_groups: Iterable[tuple[int, int, bool]]) -> None:
    """Raise on nulls that no rule fills, and log how many are filled.

    Args:
        row_groups: the row groups to be read: file number, index within the file, and whether all rows are
            delivered. If not all are, the filter may remove exactly the nulls.

    Raises:
        DataError: a column that must not have nulls has some.
    """
    # The statistics of lists count empty lists as nulls, so sequences are left out.
    checked = [f for f in schema.features if not f.marks_missing and f.kind is not ColumnKind.SEQUENCE]
    refused = {schema.stored_name(f) for f in checked if f.nulls is NullRule.REFUSE} | {schema.label.name}
    names = tuple(dict.fromkeys([*map(schema.stored_name, checked), schema.label.name]))
    filled: Counter[str] = Counter()
    is_exact = True
    for number, index, is_whole in row_groups:
        file, footer = found.files[number], found.footers[number]
        constants = found.constants(number)
        for name in names:
            if name in constants:
                count = 0 if constants[name].is_valid else footer.row_groups[index][0]
            else:
                count = footer.nulls(index, name) or 0
            if count and is_whole and name in refused:
                raise DataError(
                    f"{file.path}: column {name!r} has {count} nulls in row group {index}. "
                    f"{null_cure(name, is_label=name == schema.label.name)}"
                )
            if count and name not in refused:
                filled[name] += count
                is_exact &= is_whole
    for name, count in filled.items():
        most = "" if is_exact else "at most "
        logger.info("%s: column %r: filling %s%d nulls", found.url, name, most, count)
