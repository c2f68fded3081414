"""The schema of a table: `schema.json` in its folder, which gives the meaning of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self, TypeVar

from spark_hpo.data.checked_fields import checked
from spark_hpo.data.text_forms import TextForm

LENGTH_SUFFIX = ".length"
VERSION = 1

T = TypeVar("T")


class ColumnKind(StrEnum):
    """The kinds of features."""

    NUMERIC = "numeric"  # one float per row, standardised
    CATEGORICAL = "categorical"  # one code per row: 0 is "unseen", 1..n index the vocabulary
    ARRAY = "array"  # one fixed-size array of floats per row, flattened in row-major order
    SEQUENCE = "sequence"  # one list per row, padded with zeros to shape (longest,), plus its length
    BINARY = "binary"  # bytes that a transform decodes into an array of floats
    TEXT = "text"  # UTF-8 bytes per row, cut and padded with zeros to shape (longest,), plus their number

    @property
    def has_length(self) -> bool:
        """True if rows differ in length, which is delivered in another column."""
        return self in (ColumnKind.SEQUENCE, ColumnKind.TEXT)


class NullRule(StrEnum):
    """Handling of nulls."""

    REFUSE = "refuse"  # an error
    FILL = "fill"  # with the mean; the code of "" or 0; an array of zeros; an empty list


class Encoding(StrEnum):
    """Encoding of the files."""

    PREPARED = "prepared"  # encoded features: codes, standardised numbers
    RAW = "raw"  # original values, encoded while reading


class TableFormat(StrEnum):
    """The formats of tables that are read in place."""

    PARQUET = "parquet"  # a folder or a file; partition folders are columns
    DELTA = "delta"  # the active files of one version, from the log
    ICEBERG = "iceberg"  # the data files of one snapshot, from the metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """An input column of the table."""

    name: str
    kind: ColumnKind
    shape: tuple[int, ...] = ()  # of one row; () for a scalar
    vocabulary: tuple[str, ...] = ()  # values (or list elements) seen in the training split
    mean: float = 0.0  # numeric: subtracted from values, and used for missing values
    deviation: float = 1.0  # numeric: divides values. Lists of numbers are not changed: tasks may do it
    source: str = ""  # column of the original table
    nulls: NullRule = NullRule.REFUSE
    marks_missing: bool = False  # raw: 1.0 where the source is null, 0.0 elsewhere
    transform: str = ""  # binary: `module:function` that decodes bytes to an array of this shape
    truncates: bool = False  # sequence: cut longer lists instead of raising; longer texts are always cut

    @property
    def num_codes(self) -> int:
        """Categorical: the number of codes, including the code for unseen values."""
        return len(self.vocabulary) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The column to predict."""

    name: str
    classes: tuple[str, ...] = ()  # in the order of codes 0, 1, ...; empty for a regression
    mean: float = 0.0  # regression: over the training split; the label itself is not standardised
    deviation: float = 1.0
    shape: tuple[int, ...] = ()  # of one row; (k,) for a list of k numbers
    class_weights: tuple[float, ...] = ()  # in the training loss, on average 1 per training row; empty: all 1

    @property
    def is_regression(self) -> bool:
        return not self.classes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWeight:
    """The column that weights the rows in the loss and in means over rows. It is not a feature."""

    feature: Feature  # numeric; read like a feature, standardised
    average: float  # over the training rows

    @property
    def name(self) -> str:
        return self.feature.name

    def weights(self, delivered: T) -> T:
        """Return the weights, on average 1 per training row, from an array or a tensor of the column."""
        values: Any = delivered
        weights: T = (values * self.feature.deviation + self.feature.mean) / self.average
        return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraLabel:
    """A further column to predict. It is stored like a feature, and delivered like a label."""

    feature: Feature  # categorical: a class; numeric: a number
    label: Label

    @classmethod
    def of(cls, feature: Feature) -> Self:
        """Describe a feature as a label. Classes are in order, as those of a label."""
        if feature.kind is ColumnKind.NUMERIC:
            label = Label(name=feature.name, mean=feature.mean, deviation=feature.deviation)
            return cls(feature=replace(feature, nulls=NullRule.REFUSE), label=label)
        is_whole = all(text.lstrip("-").isdigit() for text in feature.vocabulary)
        classes = sorted(feature.vocabulary, key=int) if is_whole else sorted(feature.vocabulary)
        label = Label(name=feature.name, classes=tuple(classes))
        return cls(feature=replace(feature, nulls=NullRule.REFUSE), label=label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows of one split, for a table that is read in place."""

    url: str  # a Parquet folder or file, a Delta table, an Iceberg table or its metadata file
    format: TableFormat = TableFormat.PARQUET
    version: int | None = None  # of a Delta table; the id of an Iceberg snapshot; None for Parquet
    where: str = ""  # a condition on the original columns; "" for all rows
    share: tuple[float, float] = (0.0, 1.0)  # half-open interval of the row groups, ordered by hash
    seed: int = 0  # seed of that hash

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Source:
        """Raise ValueError, KeyError or TypeError if the record is not a source."""
        format = TableFormat(record.get("format", TableFormat.PARQUET))
        return checked(cls(**{**record, "share": tuple(record["share"]), "format": format}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """How the rows of a table were formed from the steps of series."""

    value: str  # the feature with the history of the values to forecast
    history: int  # steps before a forecast
    horizon: int  # steps to forecast
    season: int = 1  # steps after which values repeat
    known: tuple[str, ...] = ()  # features with history + horizon steps
    time: str = ""  # column of the steps; "": the table was made of windows
    series: tuple[str, ...] = ()  # columns of the steps that tell series apart


class FoldOrder(StrEnum):
    """How the folds of a cross-validation follow the split."""

    GROUP = "group"  # rows with the same hash stay together
    TIME = "time"  # each fold is later than the rows that are trained on
    STRATUM = "stratum"  # equal shares of each stratum, in the order of a hash


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldBy:
    """The columns that divide the training and validation rows into folds."""

    order: FoldOrder
    term: str  # in SQL: `xxhash64(...)` or one quoted column
    columns: tuple[str, ...]  # stored columns of the term
    stratum: str = ""  # column; with STRATUM
    time: str = ""  # column; with GROUP: each fold also has only rows later than those that are trained on

    @property
    def is_hash(self) -> bool:
        return self.term.startswith("xxhash64(")

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The stored columns that decide on the fold of a row."""
        return tuple(dict.fromkeys((*self.columns, *filter(None, (self.stratum, self.time)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalColumn:
    """A column of the original table, and how `prepare` read it. A model encodes raw rows by it."""

    name: str
    type: str  # in SQL: bigint, double, decimal(10,2), string, boolean, date, timestamp, array<string>, ...
    form: TextForm = TextForm.NONE
    is_optional: bool = False  # values were missing, or texts that count as missing
    dropped: str = ""  # why the column is not used


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns of a table. Delivered values are int64 codes and float32 numbers, never null."""

    features: tuple[Feature, ...]
    label: Label
    encoding: Encoding = Encoding.PREPARED
    sources: Mapping[str, Source] = field(
        default_factory=dict
    )  # by split; empty for train/, validation/, test/
    original: tuple[OriginalColumn, ...] = ()  # with the label; empty: unknown, as in older tables
    null_values: tuple[str, ...] = ()  # texts of the original table that mean missing, besides ""
    fold_by: FoldBy | None = None  # None: any rows may be in one fold
    splits: Mapping[str, str] = field(
        default_factory=dict
    )  # in a copy: the conditions on original values that have decided the splits
    copied_from: Source | None = None  # in a copy: the version of a Delta or Iceberg table
    windows: Windows | None = None  # None: rows are independent
    weight: RowWeight | None = None  # of the rows; set by the study, not by `prepare`
    extra_labels: tuple[ExtraLabel, ...] = ()  # of `prepare`, or those that the study chooses

    @property
    def labels(self) -> tuple[Label, ...]:
        """All columns to predict, `label` first."""
        return (self.label, *(extra.label for extra in self.extra_labels))

    @property
    def read_features(self) -> tuple[Feature, ...]:
        """The columns that are read like features: those of the model, further labels, the row weight."""
        extra = (extra.feature for extra in self.extra_labels)
        return (*self.features, *extra, *(() if self.weight is None else (self.weight.feature,)))

    def for_prediction(self) -> TableSchema:
        """Return the schema without what only training reads, except `label`."""
        return replace(self, weight=None, extra_labels=())

    def with_class_weights(self, weights: Sequence[tuple[float, ...]]) -> TableSchema:
        """Return the schema with these class weights, for each label in order."""
        label, *others = (
            replace(label, class_weights=found) for label, found in zip(self.labels, weights, strict=True)
        )
        extra = zip(self.extra_labels, others, strict=True)
        return replace(self, label=label, extra_labels=tuple(replace(e, label=label) for e, label in extra))

    def with_only(self, label: Label) -> TableSchema:
        """Return the schema with one of its labels."""
        return replace(self, label=label, extra_labels=())

    @property
    def stored(self) -> tuple[str, ...]:
        """The stored columns that features and label come from."""
        names = [self.stored_name(feature) for feature in self.read_features]
        return tuple(dict.fromkeys([*names, self.label.name]))

    def stored_name(self, feature: Feature) -> str:
        """Return the name of the stored column of a feature."""
        return feature.source if self.encoding is Encoding.RAW and feature.source else feature.name

    @property
    def takes_raw_rows(self) -> bool:
        """True if rows of the original table can be encoded."""
        return bool(self.original)

    def of_kind(self, *kinds: ColumnKind) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        record = {"version": VERSION, **asdict(self)}
        # Fingerprints of tables that older versions prepared must not change.
        for name in (
            "original",
            "null_values",
            "fold_by",
            "splits",
            "copied_from",
            "windows",
            "weight",
            "extra_labels",
        ):
            if not record[name]:
                del record[name]
        for name in ("shape", "class_weights"):
            if not getattr(self.label, name):
                del record["label"][name]
        for source in record["sources"].values():
            if source["version"] is None:
                del source["format"], source["version"]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TableSchema:
        """
        Raises:
            ValueError, KeyError, TypeError, AttributeError: not a schema, or one of a newer version.
        """
        version = record.get("version", VERSION)
        if version != VERSION:
            raise ValueError(f"version is {version!r}; this spark_hpo reads version {VERSION}")
        sources, fold_by, weight = record.get("sources", {}), record.get("fold_by"), record.get("weight")
        copied_from = record.get("copied_from")
        return cls(
            features=tuple(map(_feature, record["features"])),
            label=_label(record["label"]),
            encoding=Encoding(record.get("encoding", Encoding.PREPARED)),
            sources={name: Source.from_json(s) for name, s in sources.items()},
            copied_from=copied_from and Source.from_json(copied_from),
            original=tuple(
                checked(OriginalColumn(**{**c, "form": TextForm(c["form"])}))
                for c in record.get("original", ())
            ),
            null_values=tuple(record.get("null_values", ())),
            fold_by=fold_by
            and checked(
                FoldBy(
                    **{
                        **fold_by,
                        "order": FoldOrder(fold_by["order"]),
                        "columns": tuple(fold_by["columns"]),
                    }
                )
            ),
            windows=(windows := record.get("windows"))
            and checked(
                Windows(**{**windows, "known": tuple(windows["known"]), "series": tuple(windows["series"])})
            ),
            splits={str(name): str(text) for name, text in record.get("splits", {}).items()},
            weight=weight
            and checked(RowWeight(feature=_feature(weight["feature"]), average=weight["average"])),
            extra_labels=tuple(
                checked(ExtraLabel(feature=_feature(e["feature"]), label=_label(e["label"])))
                for e in record.get("extra_labels", ())
            ),
        )


def _feature(record: Mapping[str, Any]) -> Feature:
    return checked(
        Feature(
            **{
                **record,
                "kind": ColumnKind(record["kind"]),
                "shape": tuple(record["shape"]),
                "vocabulary": tuple(record["vocabulary"]),
                "nulls": NullRule(record.get("nulls", NullRule.REFUSE)),
            }
        )
    )


def _label(record: Mapping[str, Any]) -> Label:
    lists = ("classes", "shape", "class_weights")
    return checked(Label(**{**record, **{name: tuple(record.get(name, ())) for name in lists}}))
