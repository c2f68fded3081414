"""A property of a table that spoils the result of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class PitfallKind(StrEnum):
    """The kinds of pitfalls."""

    LEAK = "leak"  # columns give the label away
    MISSING_WITH_LABEL = "missing-with-label"  # a column is missing where the label has one value
    MOSTLY_MISSING = "mostly-missing"
    LABEL_PER_ROW = "label-per-row"  # nearly every row has a class of its own
    ABSENT_CLASS = "absent-class"  # a split has no row of a class
    TIME_ORDER = "time-order"  # rows near each other in time are on several sides
    SHARED_GROUP = "shared-group"  # an id is on several sides
    SMALL_TEST = "small-test"  # the metric of the test split is mostly noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Pitfall:
    """One pitfall, in a sentence with its figure, and what to do about it."""

    kind: PitfallKind
    columns: tuple[str, ...]  # of the original table; empty: the whole table
    message: str
    cure: str
    split: Mapping[str, str] = field(default_factory=dict)  # settings of a split that avoids it

    def __str__(self) -> str:
        return f"{self.message}. {self.cure}"
