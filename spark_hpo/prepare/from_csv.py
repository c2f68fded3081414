"""Any CSV or Parquet table: text becomes codes, numbers are standardised, missing values are filled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from spark_hpo.config.split import split_config
from spark_hpo.config.windows import windows_config
from spark_hpo.data.raw_rows import EXAMPLE_ROWS
from spark_hpo.data.schema import Encoding, Source, TableSchema, Windows
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.prepare import in_place, splits
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.prepare.cleaning import clean
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.column_kinds import original_of_kinds
from spark_hpo.prepare.columns import analyse
from spark_hpo.prepare.csv_request import DEFAULT_NULL_VALUES, request
from spark_hpo.prepare.encode import original_columns, schema_of
from spark_hpo.prepare.output import Prepared, Request
from spark_hpo.prepare.phases import announce
from spark_hpo.prepare.reading import cause_of, has_many_small_files, is_small, read, settings
from spark_hpo.prepare.rows import Cleaned, Rows
from spark_hpo.prepare.spark_rows import SparkRows
from spark_hpo.prepare.split_by_columns import SplitByColumns, split_by_columns
from spark_hpo.prepare.table_files import source_of
from spark_hpo.prepare.windows import form_windows

_CATALOG = ("table", "query")  # formats of inputs that only Spark can read


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
        options: input (a path or URL, a name in Spark's catalog, or a query); label (one or a list); format
            (csv, parquet, delta or iceberg; None: found out); version (of a Delta or Iceberg table: a
            number or a time; None: the newest); label_type (of the first label. auto: class for text and
            for at most 20 integers, else number); null_values; max_vocabulary (the most frequent values of
            a text column that get a code; others count as unseen); drop (columns to leave out); separator
            (None: detected); header (False: columns are column1, column2, ...); clean (leave out useless
            columns, read dates and numbers that are written as text); keep (columns that cleaning leaves
            alone); categorical, numeric, time and text (columns of this kind, whatever they look like);
            fractions (None: 0.8,0.1,0.1; with clean, 0.6,0.2,0.2 of fewer than 2,000 rows); seed;
            row_group_rows; in_place (Parquet only); where_train, where_validation and where_test (in place:
            SQL conditions; all three, or none);
            split and windows (these sections of a study file); overwrite.

    Raises:
        ConfigError: an argument is invalid, or `output` is another table.
        DataError: the input is missing, empty or malformed, or the label is missing or has nulls.
    """
    return request(output, **options).fulfil(write, lambda: spark)


def write(spark: SparkSession | None, request: Request) -> Prepared:
    """Write the requested table, replacing one that is there.

    Args:
        spark: None: in this process. Both write the same table.
    """
    arguments = request.arguments
    announce(f"reading {arguments['input']}")
    if spark is None:
        from spark_hpo.prepare.arrow_source import open_rows, reading

        with reading(arguments["input"]):
            table = source_of(arguments)
            return _write(open_rows(arguments, table), table, request)
    try:
        with settings(spark, arguments):
            table = source_of(arguments)
            frame = _opened(spark, arguments, table)
            return _write(SparkRows(frame, has_many_small_files(arguments)), table, request)
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{arguments['input']}: Spark cannot prepare it: {cause_of(exc)}") from exc


def needs_spark(request: Request) -> bool:
    """Return True for what this process cannot do alone: tables of Spark's catalog, queries and windows."""
    return request.arguments["format"] in _CATALOG or "windows" in request.arguments


def _write(rows: Rows, table: Source, request: Request) -> Prepared:
    arguments = request.arguments
    named = (*_labels(arguments), *arguments["drop"], *arguments.get("keep", ()), *_of_kinds(arguments))
    unknown = [name for name in named if name not in rows.columns]
    if unknown:
        raise DataError(
            f"{arguments['input']} has no column {unknown[0]!r}. " + suggestion(unknown[0], rows.columns)
        )
    if arguments.get("in_place"):
        return _describe(rows, table, request)
    if "windows" in arguments:
        assert isinstance(rows, SparkRows), "the caller has asked `needs_spark`"
        return _copy_windows(rows.frame, table, request)
    with rows.kept() as kept:
        return _copy(kept, table, request)


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


def _copy(read: Rows, table: Source, request: Request) -> Prepared:
    arguments = request.arguments
    assigned = None
    rows = read
    if "split" in arguments:
        # A Parquet table is split by its original values, as in place.
        is_csv = arguments["format"] == "csv"
        given = read.original(arguments["null_values"]) if is_csv else read
        assigned = _by_columns(given, Source(url=arguments["input"]), arguments)
        rows = assigned.split.rows
    cleaned = _original(rows, arguments, assigned)
    if arguments.get("clean"):
        # Before rows are assigned to splits: rows that differ only in a row number belong into one split.
        cleaned = _clean(cleaned, arguments)
    rows = cleaned.rows
    if assigned is None:
        is_small = 0 < cleaned.count < splits.FEW_ROWS
        fractions = splits.FRACTIONS_OF_FEW if is_small else splits.DEFAULT_FRACTIONS
        rows = rows.with_split(arguments["fractions"] or fractions, arguments["seed"])
        rows = rows.without(arguments["drop"])
    analysis = _analyse(rows, arguments)
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
        counts = rows.write(analysis, folder, arguments["row_group_rows"])
        return request.finish(folder, schema, counts, remarks=cleaned.remarks, example=example)


def _copy_windows(read: DataFrame, table: Source, request: Request) -> Prepared:
    arguments = request.arguments
    windows = windows_config(arguments["windows"])
    announce("forming windows")
    with _of_table(arguments["input"]):
        formed = form_windows(
            read,
            windows,
            value=arguments["label"],
            drop=arguments["drop"],
            null_values=arguments["null_values"],
            fractions=arguments["fractions"] or splits.DEFAULT_FRACTIONS,
            seed=arguments["seed"],
        )
    try:
        options = {"label": formed.label, "label_type": "number", "kinds": {"categorical": windows.series}}
        windowed = SparkRows(formed.frame)
        analysis = _analyse(windowed, {**arguments, **options})
        rows = windowed.without(splits.OWN_COLUMNS)
        schema = replace(
            schema_of(analysis),
            original=original_columns(rows, Cleaned(rows, ()), analysis, is_typed=True),
            null_values=tuple(arguments["null_values"]),
            copied_from=table if table.version is not None else None,
            windows=Windows(
                value=arguments["label"],
                history=windows.history,
                horizon=windows.horizon,
                season=windows.season,
                known=windows.known,
                time=windows.time,
                series=windows.series,
            ),
        )
        with request.writing() as folder:
            counts = windowed.write(analysis, folder, arguments["row_group_rows"])
            example = _example(rows, schema)
            return request.finish(folder, schema, counts, remarks=formed.remarks, example=example)
    finally:
        formed.kept.unpersist()


def _labels(arguments: Mapping[str, Any]) -> list[str]:
    return [arguments["label"], *arguments.get("extra_labels", ())]


def _of_kinds(arguments: Mapping[str, Any]) -> list[str]:
    return [name for names in arguments.get("kinds", {}).values() for name in names]


def _by_columns(rows: Rows, table: Source, arguments: Mapping[str, Any]) -> SplitByColumns:
    return split_by_columns(
        rows,
        table,
        split_config(arguments["split"]),
        fractions=arguments["fractions"],
        keep=[*_labels(arguments), *arguments.get("keep", ()), *arguments.get("kinds", {}).get("text", ())],
        is_copy=not arguments.get("in_place"),
    )


def _example(rows: Rows, schema: TableSchema) -> list[Any]:
    """Return the first rows of the original table, without the labels, as JSON objects."""
    labels = {label.name for label in schema.labels}
    used = [c.name for c in schema.original if not c.dropped and c.name not in labels]
    return rows.examples(used, EXAMPLE_ROWS)


def _describe(rows: Rows, table: Source, request: Request) -> Prepared:
    """Write the schema of a table that stays in place."""
    arguments = request.arguments
    assigned = None
    if "split" in arguments:
        assigned = _by_columns(rows, table, arguments)
        split = assigned.split
    elif "where" in arguments:
        split = in_place.by_conditions(rows, table, arguments["where"])
    else:
        split = in_place.by_row_groups(rows, table, arguments["fractions"], arguments["seed"])
    with split.rows.kept() as kept:
        cleaned = _original(kept, arguments, assigned)
        if arguments.get("clean"):
            cleaned = _clean(cleaned, arguments)
        analysis = _analyse(cleaned.rows, arguments)
        schema = replace(
            schema_of(analysis, Encoding.RAW),
            sources=split.sources,
            original=original_columns(rows, cleaned, analysis, is_typed=True),
            fold_by=assigned.fold_by if assigned else None,
        )
    with request.writing() as folder:
        return request.finish(folder, schema, split.counts, remarks=cleaned.remarks)


def _original(rows: Rows, arguments: Mapping[str, Any], assigned: SplitByColumns | None) -> Cleaned:
    """Return the original values of the columns to use, before they are cleaned."""
    with _of_table(arguments["input"]):
        values, forms = original_of_kinds(
            rows,
            arguments.get("null_values", DEFAULT_NULL_VALUES),
            arguments.get("kinds", {}),
            in_place=arguments.get("in_place", False),
        )
    unfit = assigned.unfit if assigned else ()
    if arguments.get("clean") or arguments.get("in_place") or assigned:
        values = values.without([*arguments["drop"], *unfit])
    return Cleaned(
        values,
        assigned.remarks if assigned else (),
        forms=forms,
        dropped=dict.fromkeys(unfit, "decides the split"),
    )


def _clean(given: Cleaned, arguments: Mapping[str, Any]) -> Cleaned:
    """Leave out useless columns; in a copy, also read dates and numbers that are written as text."""
    label, *others = _labels(arguments)
    kinds, in_place = arguments.get("kinds", {}), arguments.get("in_place", False)
    as_text = [name for name in others if name in kinds.get("categorical", ())]
    announce(f"looking for dates, numbers and useless columns among {len(given.rows.columns)} columns")
    with _of_table(arguments["input"]):
        cleaned = clean(
            given.rows,
            labels=[label, *others],
            keep=[*arguments["keep"], *_of_kinds(arguments), *splits.OWN_COLUMNS],
            keep_texts=[*([label] if arguments["label_type"] == "class" else []), *as_text],
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


def _analyse(rows: Rows, arguments: Mapping[str, Any]) -> Analysis:
    kinds = arguments.get("kinds", {})
    named = {"categorical": "class", "numeric": "number"}
    extra = {
        name: next((type for kind, type in named.items() if name in kinds.get(kind, ())), "auto")
        for name in arguments.get("extra_labels", ())
    }
    with _of_table(arguments["input"]):
        return analyse(
            rows,
            label=arguments["label"],
            label_type=arguments["label_type"],
            extra_labels=extra,
            max_vocabulary=arguments["max_vocabulary"],
            categorical=kinds.get("categorical", ()),
            prose=kinds.get("text", ()),
            in_place=arguments.get("in_place", False),
        )


@contextlib.contextmanager
def _of_table(url: str) -> Iterator[None]:
    """Put the table before the message of a DataError."""
    try:
        yield
    except DataError as exc:
        raise DataError(f"{url}: {exc}", file=exc.file) from exc.__cause__
