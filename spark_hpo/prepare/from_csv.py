"""Any CSV or Parquet table: text becomes codes, numbers are standardised, missing values are filled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_hpo.config.split import SplitConfig, split_config
from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.lake.table_version import parse_version
from spark_hpo.data.plan.footers import column_names
from spark_hpo.data.raw_rows import EXAMPLE_ROWS
from spark_hpo.data.schema import Encoding, Source, TableFormat, TableSchema
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.prepare import in_place, splits
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.prepare.cleaning import Cleaned, clean
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.column_kinds import KINDS, check_kinds, original_of_kinds
from spark_hpo.prepare.columns import analyse
from spark_hpo.prepare.dialect import UTF_8, Dialect, find_dialect
from spark_hpo.prepare.encode import encode, original, original_columns, schema_of
from spark_hpo.prepare.output import Prepared, Request, fingerprint
from spark_hpo.prepare.phases import announce
from spark_hpo.prepare.reading import cause_of, columns_of, file_sizes, is_small, read, settings
from spark_hpo.prepare.split_by_columns import SplitByColumns, split_by_columns
from spark_hpo.prepare.table_files import source_of
from spark_hpo.trial import Split

DEFAULT_NULL_VALUES = ("NaN", "nan", "NULL", "null")  # and the empty text; in place, readers use the same
WRITTEN_NULL_VALUES = ("NA", "N/A", "n/a", "#N/A", "<NA>", "None", "?")  # of a CSV that is cleaned, as well

_MANY_FILES = 100

_CATALOG = ("table", "query")  # formats of inputs that only Spark can read
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "label_type": ("auto", "class", "number"),
    "format": (None, "csv", *TableFormat),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """The arguments of `csv`, which documents them."""

    input: str
    label: str | None = None
    format: str | None = None
    version: int | str | date | None = None
    label_type: str = "auto"
    null_values: Sequence[str] = DEFAULT_NULL_VALUES
    max_vocabulary: int = 1000
    drop: Sequence[str] = ()
    separator: str | None = None
    header: bool = True
    clean: bool = False
    keep: Sequence[str] = ()
    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    time: Sequence[str] = ()
    text: Sequence[str] = ()
    fractions: Sequence[float] | None = None
    seed: int = 0
    row_group_rows: int = 16_384
    in_place: bool = False
    where_train: str = ""
    where_validation: str = ""
    where_test: str = ""
    split: SplitConfig | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ConfigError(f"must be one of {known}", key=key, value=getattr(self, key))
        if self.max_vocabulary < 1:
            raise ConfigError("must be an integer >= 1", key="max_vocabulary", value=self.max_vocabulary)
        splits.check_fractions(self.fractions or splits.DEFAULT_FRACTIONS)
        splits.check_row_group_rows(self.row_group_rows)
        self._check_conditions()
        self._check_split()
        check_kinds(self.kinds, self.label)
        if self.in_place and tuple(self.null_values) != DEFAULT_NULL_VALUES:
            raise ConfigError(
                f"is not available in place, where '', {', '.join(DEFAULT_NULL_VALUES)} mean missing",
                key="null_values",
                cure="Leave it out, or prepare a copy",
            )

    def _check_conditions(self) -> None:
        given = [split for split, text in self.where.items() if text]
        if not given:
            return
        key = f"where_{given[0]}"
        if not self.in_place:
            raise ConfigError("is for tables that are read in place", key=key, cure="Set in_place as well")
        if len(given) < len(self.where):
            missing = ", ".join(f"where_{split}" for split in self.where if split not in given)
            raise ConfigError(f"is set without {missing}", key=key, cure="Set all three conditions, or none")
        if self.fractions is not None and tuple(self.fractions) != splits.DEFAULT_FRACTIONS:
            raise ConfigError("and conditions (where_train ...) exclude each other", key="fractions")

    def _check_split(self) -> None:
        split = self.split_config
        if split == SplitConfig():
            return
        if any(self.where.values()):
            raise ConfigError("and conditions (where_train ...) exclude each other", key="split")
        for key in ("fractions", "seed"):
            if getattr(split, key) and getattr(self, key):
                raise ConfigError(f"and split.{key} exclude each other", key=key, cure="Set only one of them")
        if split.column and self.fractions:
            raise ConfigError("and split.column exclude each other", key="fractions")

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The columns whose kind is named, by kind."""
        return {kind: list(getattr(self, kind)) for kind in KINDS if getattr(self, kind)}

    @property
    def split_config(self) -> SplitConfig:
        return self.split if isinstance(self.split, SplitConfig) else split_config(self.split or {})

    @property
    def where(self) -> dict[Split, str]:
        return dict(zip(Split, (self.where_train, self.where_validation, self.where_test), strict=True))


def request(output: str, *, overwrite: bool = False, **options: Any) -> Request:
    """Check the arguments of `csv`. The files at the input belong to the request: new files, new table.

    Raises:
        ConfigError: an argument is invalid.
        DataError: the input is missing, or no text.
    """
    wanted = CsvOptions(**options)
    format = wanted.format
    source = files.catalog_source(wanted.input)
    if source:
        [format] = source
    elif (there := table_format(wanted.input)) is not TableFormat.PARQUET:
        format = there  # its Parquet files also hold deleted rows
    is_lake = format in (TableFormat.DELTA, TableFormat.ICEBERG)
    # A table that has moved on is still the same input: the version of the first call stays.
    input_files = [] if is_lake or source else fingerprint(wanted.input)
    if format is None:
        is_parquet = any(name.endswith((".parquet", ".pq")) for name, *_ in input_files)
        format = "parquet" if is_parquet else "csv"
    if wanted.in_place:
        _check_in_place(output, wanted.input, format)
    separator = {"tab": "\t", r"\t": "\t"}.get(wanted.separator or "", wanted.separator)
    dialect = None
    if format == "csv":
        dialect = find_dialect(wanted.input, input_files, separator, header=wanted.header)
    if dialect is not None and wanted.header:
        _check_columns(wanted, [name or f"_c{i}" for i, name in enumerate(dialect.columns)])
    if format == TableFormat.PARQUET:
        column_names(wanted.input)  # refuses columns of one name; Spark would do so after its start
    if wanted.label is None and source:
        raise ConfigError("is missing", key="label", cure="Name the column to predict")
    if wanted.label is None:
        columns = columns_of(wanted.input, dialect, header=wanted.header)
        raise ConfigError("is missing", key="label", cure=f"Name the column to predict: {columns}")
    arguments: dict[str, Any] = {
        "table": "csv",
        "input": wanted.input if source else files.absolute(wanted.input),
        "input_files": input_files,
        "format": format,
        "label": wanted.label,
        "label_type": wanted.label_type,
        "max_vocabulary": wanted.max_vocabulary,
        "drop": list(wanted.drop),
    }
    if wanted.version is not None:
        if not is_lake and not source:
            find_version(wanted.input, TableFormat.PARQUET, wanted.version)
        parse_version(wanted.version)
        arguments["version"] = wanted.version if isinstance(wanted.version, int) else str(wanted.version)
    arguments |= {"clean": True, "keep": list(wanted.keep)} if wanted.clean else {}
    arguments |= {"kinds": wanted.kinds} if wanted.kinds else {}
    split = wanted.split_config
    wanted = replace(
        wanted, split=None, fractions=wanted.fractions or split.fractions, seed=wanted.seed or split.seed
    )
    fractions = list(wanted.fractions or splits.DEFAULT_FRACTIONS)
    if not split.is_default:
        options = split.model_copy(update={"fractions": None, "seed": wanted.seed}).options()
        arguments |= {"split": options, "keep": list(wanted.keep)}
    if not wanted.in_place:
        arguments |= _arguments_of_copy(wanted, fractions, separator, dialect)
    elif wanted.where_train:
        arguments |= {"in_place": True, "where": {str(split): text for split, text in wanted.where.items()}}
    else:
        arguments |= {"in_place": True, "fractions": fractions, "seed": wanted.seed}
    return Request(output=output, arguments=arguments, overwrite=overwrite)


def _check_columns(wanted: CsvOptions, columns: Sequence[str]) -> None:
    """Refuse names of columns that do not exist, before Spark starts."""
    for name in (wanted.label, *wanted.drop, *wanted.keep):
        if name is not None and name not in columns:
            raise DataError(f"{wanted.input} has no column {name!r}. " + suggestion(name, columns))


def _check_in_place(output: str, input: str, format: str) -> None:
    if format not in list(TableFormat):
        raise ConfigError(
            "is for Parquet", key="in_place", cure=f"Leave it out: {input} is {format}, and gets copied"
        )
    there, here = (f"{files.absolute(url).rstrip('/')}/" for url in (input, output))
    if there.startswith(here) or here.startswith(there):
        raise ConfigError(
            f"overlaps with the input {input}",
            key="output",
            value=output,
            cure="Choose another output folder",
        )


def _arguments_of_copy(
    wanted: CsvOptions, fractions: list[float], separator: str | None, dialect: Dialect | None
) -> dict[str, Any]:
    null_values = list(wanted.null_values)
    if wanted.clean and dialect is not None:
        null_values = list(dict.fromkeys([*null_values, *WRITTEN_NULL_VALUES]))
    arguments: dict[str, Any] = {
        "null_values": null_values,
        "separator": separator or (dialect.separator if dialect else ","),
        # None: they depend on the number of rows, which is not known yet.
        "fractions": None if wanted.fractions is None and wanted.clean else fractions,
        "seed": wanted.seed,
        "row_group_rows": wanted.row_group_rows,
    }
    if dialect is not None:
        arguments |= {"encoding": dialect.encoding} if dialect.encoding != UTF_8 else {}
        arguments |= {"many_lines": True} if dialect.many_lines else {}
        arguments |= {} if wanted.header else {"header": False}
    return arguments


def csv(spark: SparkSession, output: str, **options: Any) -> Prepared:
    """Prepare the table at `input`, a CSV with a header or Parquet.

    Text columns become codes by frequency in the training split: 0 is unseen, a missing value is the
    category "". A column is numeric when all its values are; it is standardised with the mean and
    deviation of the training split, and a missing value becomes the mean, with a feature
    `<name>_missing` that is 1.0 there (if the training split has missing values). Lists of numbers
    stay numbers, as an array if all have one length; lists of text become lists of codes, and null
    lists empty ones. Bytes stay bytes. Columns in the names of folders (`country=DE`) are columns.

    In place nothing is copied: `output` gets only `schema.json` and `prepared.json`, and studies encode
    the rows as they read them. The splits are whole row groups, or rows that meet conditions.

    Args:
        output: the folder to write, a local path or fsspec URL.
        options: input (a path or URL, a name in Spark's catalog, or a query); label; format (csv, parquet,
            delta or iceberg; None: found out); version (of a Delta or Iceberg table: a number or a time;
            None: the newest); label_type (auto: class for text and for at most 20 integers, else number);
            null_values; max_vocabulary (the most frequent values of a text column that get a code; others
            count as unseen); drop (columns to leave out); separator (None: detected); header (False: columns
            are column1, column2, ...); clean (leave out useless columns, read dates and numbers that are
            written as text); keep (columns that cleaning leaves alone); categorical, numeric, time and text
            (columns of this kind, whatever they look like); fractions (None: 0.8,0.1,0.1; with clean,
            0.6,0.2,0.2 of fewer than 2,000 rows); seed; row_group_rows; in_place (Parquet only);
            where_train, where_validation and where_test (in place: SQL conditions; all three, or none);
            split (the section `split` of a study file); overwrite.

    Raises:
        ConfigError: an argument is invalid, or `output` is another table.
        DataError: the input is missing, empty or malformed, or the label is missing or has nulls.
    """
    return request(output, **options).fulfil(write, lambda: spark)


def write(spark: SparkSession, request: Request) -> Prepared:
    """Write the requested table, replacing one that is there."""
    arguments = request.arguments
    try:
        with settings(spark, arguments):
            announce(f"reading {request.arguments['input']}")
            table = source_of(arguments)
            frame = _opened(spark, arguments, table)
            named = (
                arguments["label"],
                *arguments["drop"],
                *arguments.get("keep", ()),
                *_of_kinds(arguments),
            )
            unknown = [name for name in named if name not in frame.columns]
            if unknown:
                raise DataError(
                    f"{arguments['input']} has no column {unknown[0]!r}. "
                    + suggestion(unknown[0], frame.columns)
                )
            if arguments.get("in_place"):
                return _describe(frame, table, request)
            with _kept(frame, arguments) as kept:
                return _copy(kept, table, request)
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{arguments['input']}: Spark cannot prepare it: {cause_of(exc)}") from exc


def _opened(spark: SparkSession, arguments: Mapping[str, Any], table: Source) -> DataFrame:
    """Return the input: a path, or a table of Spark's catalog or a query."""
    kind = arguments["format"]
    if kind not in _CATALOG:
        return read(spark, arguments, table)
    try:
        return open_frame(spark, **{kind: arguments["input"]}, version=arguments.get("version"))
    except ConfigError as exc:
        exc.key = "version" if exc.key == "version" else "input"
        raise


def _copy(read: DataFrame, table: Source, request: Request) -> Prepared:
    arguments = request.arguments
    assigned = None
    frame = read
    if "split" in arguments:
        # A Parquet table is split by its original values, as in place.
        is_csv = arguments["format"] == "csv"
        given = original(read, arguments["null_values"]) if is_csv else read
        assigned = _by_columns(given, Source(url=arguments["input"]), arguments)
        frame = assigned.split.frame
    cleaned = _original(frame, arguments, assigned)
    if arguments.get("clean"):
        # Before rows are assigned to splits: rows that differ only in a row number belong into one split.
        cleaned = _clean(cleaned, arguments)
    frame = cleaned.frame
    if assigned is None:
        is_small = 0 < cleaned.rows < splits.FEW_ROWS
        fractions = splits.FRACTIONS_OF_FEW if is_small else splits.DEFAULT_FRACTIONS
        frame = splits.with_split(frame, arguments["fractions"] or fractions, arguments["seed"])
        frame = _without(frame, arguments["drop"])
    analysis = _analyse(frame, arguments)
    schema = replace(
        schema_of(analysis),
        original=original_columns(read, cleaned, analysis, is_typed=arguments["format"] != "csv"),
        null_values=tuple(arguments["null_values"]),
        splits=assigned.where if assigned else {},
        fold_by=assigned.fold_by if assigned else None,
        copied_from=table if table.version is not None else None,
    )
    example = _example(read, schema)
    with request.writing() as folder:
        counts = splits.write(
            encode(frame, analysis),
            folder,
            total_rows=analysis.total_rows,
            row_group_rows=arguments["row_group_rows"],
        )
        return request.finish(folder, schema, counts, remarks=cleaned.remarks, example=example)


def _of_kinds(arguments: Mapping[str, Any]) -> list[str]:
    return [name for names in arguments.get("kinds", {}).values() for name in names]


def _by_columns(frame: DataFrame, table: Source, arguments: Mapping[str, Any]) -> SplitByColumns:
    return split_by_columns(
        frame,
        table,
        split_config(arguments["split"]),
        fractions=arguments["fractions"],
        keep=[arguments["label"], *arguments.get("keep", ()), *arguments.get("kinds", {}).get("text", ())],
        is_copy=not arguments.get("in_place"),
    )


def _example(frame: DataFrame, schema: TableSchema) -> list[Any]:
    """Return the first rows of the original table, without the label, as JSON objects."""
    used = [splits.column(c.name) for c in schema.original if not c.dropped and c.name != schema.label.name]
    row = F.to_json(F.struct(*used), {"ignoreNullFields": "false"})
    return [json.loads(found[0]) for found in frame.select(row).limit(EXAMPLE_ROWS).collect()]


def _describe(frame: DataFrame, table: Source, request: Request) -> Prepared:
    """Write the schema of a table that stays in place."""
    arguments = request.arguments
    assigned = None
    if "split" in arguments:
        assigned = _by_columns(frame, table, arguments)
        split = assigned.split
    elif "where" in arguments:
        split = in_place.by_conditions(frame, table, arguments["where"])
    else:
        split = in_place.by_row_groups(frame, table, arguments["fractions"], arguments["seed"])
    with _kept(split.frame, arguments) as kept:
        cleaned = _original(kept, arguments, assigned)
        if arguments.get("clean"):
            cleaned = _clean(cleaned, arguments)
        analysis = _analyse(cleaned.frame, arguments)
        schema = replace(
            schema_of(analysis, Encoding.RAW),
            sources=split.sources,
            original=original_columns(frame, cleaned, analysis, is_typed=True),
            fold_by=assigned.fold_by if assigned else None,
        )
    with request.writing() as folder:
        return request.finish(folder, schema, split.rows, remarks=cleaned.remarks)


@contextlib.contextmanager
def _kept(frame: DataFrame, arguments: Mapping[str, Any]) -> Iterator[DataFrame]:
    """Keep a small table of many files in memory, because each of the jobs would open all of them."""
    if len(file_sizes(arguments)) <= _MANY_FILES or not is_small(arguments):
        yield frame
        return
    frame = frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()


def _original(frame: DataFrame, arguments: Mapping[str, Any], assigned: SplitByColumns | None) -> Cleaned:
    """Return the original values of the columns to use, before they are cleaned."""
    with _of_table(arguments["input"]):
        values, forms = original_of_kinds(
            frame,
            arguments.get("null_values", DEFAULT_NULL_VALUES),
            arguments.get("kinds", {}),
            in_place=arguments.get("in_place", False),
        )
    unfit = assigned.unfit if assigned else ()
    if arguments.get("clean") or arguments.get("in_place") or assigned:
        values = _without(values, [*arguments["drop"], *unfit])
    return Cleaned(
        values,
        assigned.remarks if assigned else (),
        forms=forms,
        dropped=dict.fromkeys(unfit, "decides the split"),
    )


def _clean(given: Cleaned, arguments: Mapping[str, Any]) -> Cleaned:
    """Leave out useless columns; in a copy, also read dates and numbers that are written as text."""
    frame = given.frame
    label, in_place = arguments["label"], arguments.get("in_place", False)
    announce(f"looking for dates, numbers and useless columns among {len(frame.columns)} columns")
    with _of_table(arguments["input"]):
        cleaned = clean(
            frame,
            label=label,
            keep=[*arguments["keep"], *_of_kinds(arguments), *splits.OWN_COLUMNS],
            keep_texts=[label] if arguments["label_type"] == "class" else [],
            comma_is_decimal=arguments.get("separator") == ";",
            max_vocabulary=arguments["max_vocabulary"],
            is_small=is_small(arguments),
            in_place=in_place,
        )
    return replace(
        cleaned,
        remarks=(*given.remarks, *cleaned.remarks),
        forms={**given.forms, **cleaned.forms},
        dropped={**given.dropped, **cleaned.dropped},
    )


def _without(frame: DataFrame, names: Sequence[str]) -> DataFrame:
    return frame.drop(*(splits.column(name) for name in names))


def _analyse(frame: DataFrame, arguments: Mapping[str, Any]) -> Analysis:
    with _of_table(arguments["input"]):
        return analyse(
            frame,
            label=arguments["label"],
            label_type=arguments["label_type"],
            max_vocabulary=arguments["max_vocabulary"],
            categorical=arguments.get("kinds", {}).get("categorical", ()),
            prose=arguments.get("kinds", {}).get("text", ()),
            in_place=arguments.get("in_place", False),
        )


@contextlib.contextmanager
def _of_table(url: str) -> Iterator[None]:
    """Put the table before the message of a DataError."""
    try:
        yield
    except DataError as exc:
        raise DataError(f"{url}: {exc}", file=exc.file) from exc.__cause__
