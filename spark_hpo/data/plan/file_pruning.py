"""Rules out files of a Delta or Iceberg table with what the log knows about them."""

from __future__ import annotations

from collections.abc import Sequence

from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds, Condition
from spark_hpo.data.lake.table_version import TableVersion
from spark_hpo.data.plan import partitions
from spark_hpo.errors import DataError


def candidates(lake: TableVersion, wheres: Sequence[str]) -> tuple[File, ...]:
    """Return the files in which a row may meet one of the conditions.

    Raises:
        DataError: a condition is not valid, or no file is left.
    """
    if not all(wheres):  # an empty condition is met by all rows
        return lake.files
    from spark_hpo.data.filter.where import parse_where  # imports a SQL parser, which most tables do not need

    types = {column.name: column.type for column in lake.schema}
    conditions = [parse_where(where, None, types) for where in dict.fromkeys(wheres)]
    columns = dict.fromkeys(name for condition in conditions for name in condition.columns)
    known = {name: _bounds(lake, name) for name in columns}
    kept = tuple(
        file
        for number, file in enumerate(lake.files)
        if _may_match(conditions, {n: b for n, found in known.items() if (b := found[number]) is not None})
    )
    if not kept:
        raise DataError(f"{lake.label} has no rows that match {' or '.join(wheres)}. Check the condition")
    return kept


def _may_match(conditions: Sequence[Condition], bounds: dict[str, Bounds]) -> bool:
    return any(True in condition.outcomes(bounds) for condition in conditions)


def _bounds(lake: TableVersion, name: str) -> Sequence[Bounds | None]:
    if name not in lake.partition_types:
        return lake.bounds(name)
    kind = {name: lake.partition_types[name]}
    values = (partitions.values(file.partition, kind)[name].as_py() for file in lake.files)
    return [
        Bounds(low=value, high=value, may_be_null=value is None, may_have_value=value is not None)
        for value in values
    ]
