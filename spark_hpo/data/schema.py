"""What the columns of a prepared table mean: `schema.json`, written beside the splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class ColumnKind(StrEnum):
    """How a task may use a feature."""

    NUMERIC = "numeric"  # one float a row, standardised
    CATEGORICAL = "categorical"  # one code a row: 0 is "unseen", 1..n are the vocabulary in order
    ARRAY = "array"  # a fixed-size array of floats a row, flattened in row-major order


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One input column of the prepared table."""

    name: str
    kind: ColumnKind
    shape: tuple[int, ...] = ()  # of one row; () for a scalar
    vocabulary: tuple[str, ...] = ()  # categorical: the values seen in the training split
    mean: float = 0.0  # numeric: what was subtracted, and what stands in for a missing value
    deviation: float = 1.0  # numeric: what it was divided by
    source: str = ""  # the column of the original table that it was made from

    @property
    def num_codes(self) -> int:
        """Categorical: how many codes there are, the one for unseen values included."""
        return len(self.vocabulary) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The column to predict."""

    name: str
    classes: tuple[str, ...] = ()  # in the order of their codes 0, 1, ...; empty: a regression
    mean: float = 0.0  # regression: of the training split; the label itself stays in natural units
    deviation: float = 1.0

    @property
    def is_regression(self) -> bool:
        return not self.classes


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns of a prepared table: integers are int64, numbers and arrays float32, nothing is null."""

    features: tuple[Feature, ...]
    label: Label

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that a reader must deliver: the features in order, then the label."""
        return (*(f.name for f in self.features), self.label.name)

    def of_kind(self, kind: ColumnKind) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind is kind)

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TableSchema:
        return cls(
            features=tuple(
                Feature(
                    **{
                        **f,
                        "kind": ColumnKind(f["kind"]),
                        "shape": tuple(f["shape"]),
                        "vocabulary": tuple(f["vocabulary"]),
                    }
                )
                for f in record["features"]
            ),
            label=Label(**{**record["label"], "classes": tuple(record["label"]["classes"])}),
        )
