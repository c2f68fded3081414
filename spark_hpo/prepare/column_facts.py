"""What the analysis of a table has found, column by column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFacts:
    """A numeric column, as the training split has it."""

    name: str
    mean: float
    deviation: float  # 1.0 for a constant
    has_missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A text column. The values are in the order of their codes; "" stands for missing ones."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFacts:
    """A column of lists of numbers or texts, none of whose elements is missing."""

    name: str
    longest: int  # of all rows, at least 1
    is_array: bool  # numbers, and each row has `longest` of them
    values: tuple[str, ...]  # texts: in the order of their codes, at least one; numbers: none


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesFacts:
    """A column of bytes, none of them missing."""

    name: str


FeatureFacts = NumberFacts | TextFacts | ListFacts | BytesFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All that encoding needs to know."""

    features: tuple[FeatureFacts, ...]
    label: NumberFacts | TextFacts
    total_rows: int
