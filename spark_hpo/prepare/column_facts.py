"""The result of analysing a table, column by column."""

from __future__ import annotations

from dataclasses import dataclass

MISSING_SUFFIX = "_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """A numeric column of the training split."""

    name: str
    mean: float
    deviation: float  # 1.0 for a constant
    has_missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A text column. Values are in the order of their codes; "" means missing."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFacts:
    """A column of lists of numbers or texts without missing elements."""

    name: str
    longest: int  # list, over all rows; at least 1
    is_array: bool  # numbers, and every row has `longest` of them
    values: tuple[str, ...]  # of texts, in the order of their codes; empty for numbers
    mean: float = 0.0  # of all elements that are numbers, in the training split
    deviation: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesFacts:
    """A column of bytes without missing values."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProseFacts:
    """A column of texts that a task reads, instead of categories."""

    name: str
    longest: int  # in bytes of UTF-8, over all rows; at least 1


FeatureFacts = NumberFacts | TextFacts | ListFacts | BytesFacts | ProseFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The input of `encode`."""

    features: tuple[FeatureFacts, ...]
    label: NumberFacts | TextFacts | ListFacts  # lists of one length
    extra_labels: tuple[NumberFacts | TextFacts | ListFacts, ...] = ()  # no lists
    total_rows: int
    optional: frozenset[str] = frozenset()  # the columns with missing values, in any split

    @property
    def labels(self) -> tuple[NumberFacts | TextFacts | ListFacts, ...]:
        return (self.label, *self.extra_labels)

    def flag_name(self, facts: NumberFacts) -> str:
        """`<name>_missing`, with underscores added until no other column has this name."""
        taken = {facts.name for facts in (*self.features, *self.labels)}
        name = facts.name + MISSING_SUFFIX
        while name in taken:
            name += "_"
        return name
