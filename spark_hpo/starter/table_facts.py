"""The facts about a table that a first study depends on: size, columns, label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_hpo.config.windows import windows_config
from spark_hpo.data import files
from spark_hpo.data.lake.formats import table_format
from spark_hpo.data.profile import ColumnProfile, TableProfile, label_counts, profile, value_counts
from spark_hpo.data.schema import ColumnKind, TableFormat
from spark_hpo.data.table import SCHEMA_FILE, Table, open_table
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.pitfalls import find_pitfalls, find_pitfalls_of_rows
from spark_hpo.pitfalls.sample import sample_of_rows
from spark_hpo.train.built_in import missing_package
from spark_hpo.trial import Split

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_NAMES = 40  # in a message
_COPIED_BYTES = 2 * 10**9  # a larger table is read in place
_MIN_ROW_GROUPS = 20  # to split a table by row groups
_MAX_CLASSES = 1000
_MAX_INTEGER_CLASSES = 20  # as `prepare` has it
_MAX_VOCABULARY = 1000
_CATALOG = "catalog"  # the format of a table that Spark reads
_DEFAULT = (0.8, 0.1, 0.1)  # fractions of train, validation and test, as in `prepare`
_SMALL = (0.6, 0.2, 0.2)  # of a small table
_FEWEST_ROWS = 10
FEW_ROWS = 200  # of validation: below, its metric is noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """The column to predict."""

    name: str
    classes: int = 0  # 0: the label is a number
    largest_share: float = 0.0  # of the most frequent class, in the rows
    smallest_share: float = 1.0  # of the rarest one
    rare_is_second: bool = False  # with two classes: the rarer one is what metrics call positive
    deviation: float | None = None  # of a number; None: unknown

    @property
    def is_number(self) -> bool:
        return not self.classes

    @classmethod
    def of_classes(cls, name: str, classes: int, counts: Mapping[str, int]) -> LabelFacts:
        """Describe a label by the frequency of its values, as text, in a sample."""
        if not counts:
            return cls(name=name, classes=classes)
        is_whole = all(re.fullmatch(r"-?\d+", text) for text in counts)
        ordered = sorted(counts, key=int) if is_whole else sorted(counts)  # as `prepare` orders classes
        rows = sum(counts.values())
        return cls(
            name=name,
            classes=classes,
            largest_share=max(counts.values()) / rows,
            smallest_share=min(counts.values()) / rows,
            rare_is_second=counts[ordered[-1]] < counts[ordered[0]],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """The facts about a table that `choices` uses."""

    path: str  # for the study file; "": `settings` has a table or a query
    train_rows: int  # estimated if the table is not prepared
    validation_rows: int
    numbers: int  # numeric columns and elements of arrays
    categories: tuple[int, ...]  # number of codes of each categorical column
    image: tuple[int, ...] = ()  # channels, height, width; empty: not an image table
    texts: tuple[str, ...] = ()  # columns that TextTask reads; empty if transformers is not installed
    lists: tuple[str, ...] = ()  # columns of lists of any length
    label: LabelFacts
    extra_labels: tuple[LabelFacts, ...] = ()
    is_forecast: bool = False  # the label is the next values of a series
    settings: Mapping[str, Any] = field(default_factory=dict)  # of data; empty: the table is prepared
    transforms: tuple[tuple[str, str], ...] = ()  # functions for columns of bytes
    remarks: tuple[str, ...] = ()  # notes for the user


def look(
    table: str,
    *,
    labels: Sequence[str],
    windows: Mapping[str, Any] | None = None,
    data_path: str,
    trust_petastorm_metadata: bool,
) -> TableFacts:
    """Inspect a prepared table, other Parquet, a Delta or Iceberg table, a CSV, or what Spark can read.

    Args:
        labels: the columns to predict; none: those of the prepared table.
        windows: the section `data.windows`, of a table that is not prepared.
        data_path: where to prepare a table that is not prepared yet.
        trust_petastorm_metadata: whether to unpickle what Petastorm wrote about the columns.

    Raises:
        ConfigError: a label is missing or invalid.
        DataError: the table is missing or cannot be used.
    """
    if len(set(labels)) < len(labels):
        raise ConfigError("must name different columns", key="--label", value=list(labels))
    url = files.absolute(table)
    if files.exists(files.join(url, SCHEMA_FILE)):
        if windows is not None:
            raise ConfigError(
                "is for a table that is not prepared",
                key="--windows",
                cure=f"Leave it out: {table} has windows if it was prepared with them",
            )
        return _of_prepared(table, open_table(url), labels)
    if source := files.catalog_source(table):
        from spark_hpo.prepare.catalog_profile import profile_catalog  # imports pyspark

        return _of_raw(
            table, profile_catalog(source), labels, data_path, windows, format=_CATALOG, source=source
        )
    if files.is_csv(url):
        from spark_hpo.prepare.csv_profile import profile_csv  # imports pyspark

        return _of_raw(table, profile_csv(url), labels, data_path, windows, format="csv")
    found = profile(url, trust_petastorm_metadata=trust_petastorm_metadata)
    return _of_raw(table, found, labels, data_path, windows, format=str(table_format(url)))


def _of_prepared(path: str, table: Table, labels: Sequence[str]) -> TableFacts:
    schema = table.schema
    prepared = [label.name for label in schema.labels]
    if labels and list(labels) != prepared:
        raise ConfigError(
            f"{path} was prepared with the label {_quoted(prepared)}, not {_quoted(labels)}",
            cure="Leave --label out, or prepare another table",
        )
    arrays = schema.of_kind(ColumnKind.ARRAY, ColumnKind.BINARY)
    lists = schema.of_kind(ColumnKind.SEQUENCE)
    undecoded = [f.name for f in schema.of_kind(ColumnKind.BINARY) if not f.transform]
    if undecoded:
        raise ConfigError(
            f"{path}: {_names(undecoded)} hold bytes that have no decoder",
            cure=f"Prepare the table again with --drop {','.join(undecoded)}, or write a study file with "
            "data.transforms (docs/data.md)",
        )
    pitfalls = find_pitfalls(table)
    facts = []
    for label in schema.labels:
        facts.append(LabelFacts(name=label.name, deviation=label.deviation))
        if classes := len(label.classes):
            facts[-1] = LabelFacts.of_classes(label.name, classes, label_counts(table, label.name))
    return TableFacts(
        path=path,
        train_rows=table.manifest(Split.TRAIN).rows,
        validation_rows=table.manifest(Split.VALIDATION).rows,
        numbers=len(schema.of_kind(ColumnKind.NUMERIC))
        + sum(_size(f.shape) for f in arrays)
        + sum(f.shape[0] + 1 for f in lists if not f.vocabulary),
        categories=tuple(
            f.num_codes for f in (*schema.of_kind(ColumnKind.CATEGORICAL), *lists) if f.vocabulary
        ),
        image=_image([f.shape for f in arrays]),
        texts=tuple(f.name for f in schema.of_kind(ColumnKind.TEXT)),
        lists=tuple(f.name for f in lists),
        label=facts[0],
        extra_labels=tuple(facts[1:]),
        is_forecast=bool(schema.label.shape),
        remarks=tuple(map(str, pitfalls)),
    )


def _of_raw(
    path: str,
    table: TableProfile,
    labels: Sequence[str],
    data_path: str,
    windows: Mapping[str, Any] | None,
    *,
    format: str,
    source: Mapping[str, str] | None = None,
) -> TableFacts:
    named = [column.name for column in table.columns]
    if not labels:
        raise ConfigError("is missing", key="--label", cure=f"{path} has the columns {_names(named)}")
    columns = {column.name: column for column in table.columns if column.name in labels}
    for label in labels:
        if label not in columns:
            raise ConfigError(
                f"is not a column of {path}", key="--label", value=label, cure=suggestion(label, named)
            )
    if table.rows < _FEWEST_ROWS:
        raise DataError(f"{path} has {table.rows} rows, which are too few to train, validate and test on")
    remarks: list[str] = []
    features = [c for c in table.columns if c.name not in labels]
    dropped = [c for c in features if c.kind is None or (c.kind is ColumnKind.BINARY and not c.transform)]
    if dropped:
        kinds = ", ".join(f"{c.name} ({c.stored})" for c in dropped[:_MAX_NAMES])
        cure = (
            "--trust-petastorm-metadata decodes what Petastorm encoded, if you trust its source"
            if table.is_petastorm
            else "data.transforms in the study file can decode bytes (docs/data.md)"
        )
        remarks.append(f"left out, because they have no decoder: {kinds}; {cure}")
    used = [c for c in features if c not in dropped]
    if not used:
        raise DataError(f"{path}: only the label {_quoted(labels)} can be used: {'; '.join(remarks)}")
    if windows is not None:
        windows = _checked_windows(path, windows, labels, table)
    facts = [_raw_label(path, columns[label], table.sample.column(label)) for label in labels]
    pitfalls = []
    for i, label in enumerate(labels):
        others = [name for name in table.sample.column_names if name == label or name not in labels]
        # The split depends on the first label.
        pitfalls += find_pitfalls_of_rows(
            table.sample.select(others), label, at_random=i == 0 and windows is None
        )
    remarks += (
        f"{pitfall}. The study file does so" if pitfall.split else str(pitfall) for pitfall in pitfalls
    )
    is_lake = format in (TableFormat.DELTA, TableFormat.ICEBERG)
    is_large = table.bytes > _COPIED_BYTES and table.row_groups >= _MIN_ROW_GROUPS
    in_place = is_lake or source is not None or (is_large and format == TableFormat.PARQUET)
    how = "writes a snapshot of its rows" if source else "reads it in place"
    remarks.append(f"{path} is not prepared: run {how if in_place else f'writes a copy to {data_path}'}")
    settings: dict[str, Any] = {"label": labels[0] if len(labels) == 1 else list(labels)}
    if windows is None:
        settings["label_type"] = "class" if facts[0].classes else "number"
    else:
        settings["windows"] = dict(windows)
        facts = [LabelFacts(name=labels[0])]
    texts = [c.name for c in used if c.kind is ColumnKind.TEXT and windows is None]
    if texts and (package := missing_package("text")):
        remarks.append(
            f"{_names(texts)} holds texts; install the extra (`pip install 'spark_hpo[{package}]'`) and run "
            "init again to learn from them"
        )
        texts = []
    if texts:
        settings["text"] = texts
    if dropped:
        settings["drop"] = [c.name for c in dropped]
    fractions = _SMALL if table.rows * _DEFAULT[1] < FEW_ROWS and not in_place else _DEFAULT
    # The first time and the first group.
    split = {key: value for pitfall in reversed(pitfalls) for key, value in pitfall.split.items()}
    if windows is not None:
        split = {}  # by time
    elif not split and len(texts) == 1 and any(c.distinct < c.present for c in used if c.name in texts):
        split = {"key": texts[0]}  # equal texts belong to one split
    if split:
        settings["split"] = split
    if not in_place:
        settings = {"source": "csv", "input": path, "format": format, **settings}
        if fractions is _SMALL:
            settings["fractions"] = list(fractions)
    return TableFacts(
        path="" if source else path if in_place else data_path,
        train_rows=round(table.rows * fractions[0]),
        validation_rows=round(table.rows * fractions[1]),
        numbers=sum(_size(c.shape) for c in used if c.kind not in (ColumnKind.CATEGORICAL, ColumnKind.TEXT)),
        categories=tuple(
            min(c.distinct, _MAX_VOCABULARY) + 1 for c in used if c.kind is ColumnKind.CATEGORICAL
        ),
        image=_image([c.shape for c in used if c.kind in (ColumnKind.ARRAY, ColumnKind.BINARY)]),
        texts=tuple(texts),
        lists=tuple(c.name for c in used if c.kind is ColumnKind.SEQUENCE),
        label=facts[0],
        extra_labels=tuple(facts[1:]),
        is_forecast=windows is not None,
        settings={**(source or {}), **settings} if in_place else {"prepare": settings},
        transforms=tuple((c.name, c.transform) for c in used if c.transform),
        remarks=tuple(remarks),
    )


def _checked_windows(
    path: str, windows: Mapping[str, Any], labels: Sequence[str], table: TableProfile
) -> dict[str, Any]:
    """Check the windows of a table of steps. Without `time`, they take its only column of times."""
    if len(labels) > 1:
        raise ConfigError("is for one label", key="--windows", cure="Forecast one column")
    if "time" not in windows:
        times = sorted(sample_of_rows(table.sample, labels[0]).times)
        if len(times) != 1:
            found = f"has the times {_names(times)}" if times else "has no column of dates or times"
            raise ConfigError(
                f"has no time, and {path} {found}", key="--windows", cure="Name the column: 'time: day, ...'"
            )
        windows = {"time": times[0], **windows}
    named = [column.name for column in table.columns]
    try:
        checked = windows_config(windows)
    except ConfigError as exc:
        for error in exc.errors or (exc,):
            error.key = f"--{error.key}"  # windows.history, ...
        raise
    for name in checked.columns:
        if name not in named:
            raise ConfigError(
                f"is not a column of {path}", key="--windows", value=name, cure=suggestion(name, named)
            )
    return checked.options()


def _raw_label(path: str, column: ColumnProfile, values: pa.ChunkedArray) -> LabelFacts:
    texts = (ColumnKind.CATEGORICAL, ColumnKind.TEXT)
    is_class = column.kind in texts or (column.is_whole and column.distinct <= _MAX_INTEGER_CLASSES)
    if column.kind not in (*texts, ColumnKind.NUMERIC):
        raise ConfigError(
            f"must be text or a number ({column.name!r} is {column.stored})", key="--label", value=column.name
        )
    if not is_class:
        return LabelFacts(name=column.name)
    if column.distinct > _MAX_CLASSES:
        raise ConfigError(f"has more than {_MAX_CLASSES} different texts", key="--label", value=column.name)
    return LabelFacts.of_classes(column.name, column.distinct, value_counts(values))


def _image(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the only array if it is an image: channels, height, width."""
    images = [shape for shape in shapes if len(shape) == 3]
    if len(images) != 1 or len(shapes) != 1:
        return ()
    channels, height, width = images[0]
    return images[0] if channels <= 4 <= min(height, width) else ()


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
