"""Rules of a study for null values and for long lists and texts, applied over the schema of the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from spark_hpo.data.schema import Feature, NullRule, TableSchema
from spark_hpo.errors import DataError

EVERY_COLUMN = "*"


def with_rules(schema: TableSchema, nulls: Mapping[str, str], truncate: Mapping[str, int]) -> TableSchema:
    """Return the schema with the study's rules for nulls and for long lists.

    Args:
        nulls: `refuse` or `fill`, by stored column; `*` applies to all columns that are not named.
        truncate: maximum length of a list, or of a text in bytes, by column; longer ones are cut.

    Raises:
        DataError: a rule names a column that is not a feature, or a feature of another kind.
    """
    by_column = {schema.stored_name(f): f for f in schema.features if not f.marks_missing}
    sequences = {name: f for name, f in by_column.items() if f.kind.has_length}
    _check_known("nulls", nulls, [*by_column, EVERY_COLUMN], "the columns of features are")
    _check_known("truncate", truncate, sequences, "the columns of texts and of lists of any length are")

    def ruled(feature: Feature) -> Feature:
        name = schema.stored_name(feature)
        if feature.marks_missing:
            return feature
        rule = nulls.get(name, nulls.get(EVERY_COLUMN, feature.nulls))
        feature = replace(feature, nulls=NullRule(rule))
        return replace(feature, shape=(truncate[name],), truncates=True) if name in truncate else feature

    return replace(schema, features=tuple(map(ruled, schema.features)))


def _check_known(key: str, given: Iterable[str], known: Iterable[str], what: str) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise DataError(f"data.{key} names {name!r}; {what}: {', '.join(names) or 'none'}")
