"""What the columns of a table mean: `schema.json`, in the folder of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

LENGTH_SUFFIX = ".length"
VERSION = 1

T = TypeVar("T")


class ColumnKind(StrEnum):
    """How a task may use a feature."""

    NUMERIC = "numeric"  # one float a row, standardised
    CATEGORICAL = "categorical"  # one code a row: 0 is "unseen", 1..n are the vocabulary in order
    ARRAY = "array"  # a fixed-size array of floats a row, flattened in row-major order
    SEQUENCE = "sequence"  # a list a row, padded with zeros to shape (longest,); its length beside it
    BINARY = "binary"  # bytes a row, from which a transform makes an array of floats


class NullRule(StrEnum):
    """What a null becomes."""

    REFUSE = "refuse"  # an error
    FILL = "fill"  # the mean; code of "" or 0; an array of zeros; a list of length 0


class Encoding(StrEnum):
    """What the files hold."""

    PREPARED = "prepared"  # features as they are delivered: codes, standardised numbers
    RAW = "raw"  # the table's own values: they are encoded while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One input column of the table."""

    name: str
    kind: ColumnKind
    shape: tuple[int, ...] = ()  # of one row; () for a scalar
    vocabulary: tuple[str, ...] = ()  # the values seen in the training split; sequence: of its elements
    mean: float = 0.0  # numeric: what is subtracted, and what stands in for a missing value
    deviation: float = 1.0  # numeric: what it is divided by
    source: str = ""  # the column of the original table that it is made from
    nulls: NullRule = NullRule.REFUSE
    marks_missing: bool = False  # raw: 1.0 where the source is null, 0.0 elsewhere
    transform: str = ""  # binary: `module:function`, from bytes to an array of this shape
    truncates: bool = False  # sequence: longer lists are cut; otherwise they are an error

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
class Source:
    """Where the rows of one split lie, for a table that is read in place."""

    url: str  # of a folder or file of Parquet
    where: str = ""  # a condition on the original columns; "": all rows
    share: tuple[float, float] = (0.0, 1.0)  # of the row groups, in an order by their hashes: from, to
    seed: int = 0  # of that order


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns of a table. What is delivered are int64 codes and float32 numbers; nothing is null."""

    features: tuple[Feature, ...]
    label: Label
    encoding: Encoding = Encoding.PREPARED
    sources: Mapping[str, Source] = field(default_factory=dict)  # by split; empty: train/, validation/, test/

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns of the files that features and label are made from."""
        names = [self.stored_name(feature) for feature in self.features]
        return tuple(dict.fromkeys([*names, self.label.name]))

    def stored_name(self, feature: Feature) -> str:
        return feature.source if self.encoding is Encoding.RAW and feature.source else feature.name

    def of_kind(self, *kinds: ColumnKind) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TableSchema:
        """
        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is no schema, or one of a newer version.
        """
        version = record.get("version", VERSION)
        if version != VERSION:
            raise ValueError(f"version is {version!r}; this spark_hpo reads version {VERSION}")
        sources = record.get("sources", {})
        return cls(
            features=tuple(
                _checked(
                    Feature(
                        **{
                            **f,
                            "kind": ColumnKind(f["kind"]),
                            "shape": tuple(f["shape"]),
                            "vocabulary": tuple(f["vocabulary"]),
                            "nulls": NullRule(f.get("nulls", NullRule.REFUSE)),
                        }
                    )
                )
                for f in record["features"]
            ),
            label=_checked(Label(**{**record["label"], "classes": tuple(record["label"]["classes"])})),
            encoding=Encoding(record.get("encoding", Encoding.PREPARED)),
            sources={
                name: _checked(Source(**{**s, "share": tuple(s["share"])})) for name, s in sources.items()
            },
        )


def _checked(value: T) -> T:
    """The same value, when its fields are of their types: a hand may have written them."""
    for name, kind in get_type_hints(type(value)).items():
        if not _is(field := getattr(value, name), kind):
            raise TypeError(f"{name} is {field!r}")
    return value


def _is(value: Any, kind: Any) -> bool:
    if kinds := get_args(kind):  # a tuple
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(kinds) == len(value) and all(map(_is, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
