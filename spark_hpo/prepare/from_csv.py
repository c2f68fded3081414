"""Any CSV or Parquet table: text becomes codes, numbers are standardised, nothing is missing any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from spark_hpo.data import files
from spark_hpo.data.schema import Encoding
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare import in_place as places
from spark_hpo.prepare import splits
from spark_hpo.prepare.cleaning import Cleaned, read_words, without_useless
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.columns import analyse
from spark_hpo.prepare.dialect import UTF_8, find_dialect
from spark_hpo.prepare.encode import encode, original, schema_of
from spark_hpo.prepare.output import Prepared, Request, fingerprint
from spark_hpo.prepare.reading import cause_of, columns_of, read, settings
from spark_hpo.suggest import suggestion
from spark_hpo.trial import Split

DEFAULT_NULL_VALUES = ("NaN", "nan", "NULL", "null")  # besides the empty text; the readers' too, in place
WRITTEN_NULL_VALUES = ("NA", "N/A", "n/a", "#N/A", "<NA>", "None", "?")  # besides these, in a CSV


def request(
    output: str,
    *,
    input: str,
    label: str | None = None,
    format: str | None = None,
    label_type: str = "auto",
    null_values: Sequence[str] = DEFAULT_NULL_VALUES,
    max_vocabulary: int = 1000,
    drop: Sequence[str] = (),
    separator: str | None = None,
    header: bool = True,
    clean: bool = False,
    keep: Sequence[str] = (),
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    row_group_rows: int = 16_384,
    in_place: bool = False,
    where_train: str = "",
    where_validation: str = "",
    where_test: str = "",
    overwrite: bool = False,
) -> Request:
    """What `csv` is asked for. The files at `input` are part of it: newer ones are another request."""
    by_size = fractions is None and clean and not in_place  # when the rows are counted
    fractions = splits.DEFAULT_FRACTIONS if fractions is None else fractions
    splits.check_fractions(fractions)
    splits.check_row_group_rows(row_group_rows)
    if max_vocabulary < 1:
        raise ConfigError(f"max_vocabulary is {max_vocabulary}; it must be at least 1")
    if label_type not in ("auto", "class", "number"):
        raise ConfigError(f"label_type is {label_type!r}; it must be auto, class or number")
    if format not in (None, "csv", "parquet"):
        raise ConfigError(f"format is {format!r}; it must be csv or parquet")
    files_found = fingerprint(input)
    if format is None:
        is_parquet = any(name.endswith((".parquet", ".pq")) for name, *_ in files_found)
        format = "parquet" if is_parquet else "csv"
    where = dict(zip(Split, (where_train, where_validation, where_test), strict=True))
    _check_place(output, input, format, where, in_place=in_place)
    dialect = find_dialect(input, files_found, separator, header=header) if format == "csv" else None
    if label is None:
        raise ConfigError(
            f"name the column to predict, with --label: {columns_of(input, dialect, header=header)}"
        )
    if in_place and tuple(null_values) != DEFAULT_NULL_VALUES:
        raise ConfigError(
            f"--null-values is for copies; in place the empty text, {', '.join(DEFAULT_NULL_VALUES)} are "
            "missing: leave it out"
        )
    if any(where.values()) and tuple(fractions) != splits.DEFAULT_FRACTIONS:
        raise ConfigError("both --fractions and conditions (--where-train ...) are given: leave one out")
    arguments: dict[str, Any] = {
        "table": "csv",
        "input": files.absolute(input),
        "input_files": files_found,
        "format": format,
        "label": label,
        "label_type": label_type,
        "max_vocabulary": max_vocabulary,
        "drop": list(drop),
    }
    arguments |= {"clean": True, "keep": list(keep)} if clean else {}
    if not in_place:
        if clean and dialect is not None:
            null_values = tuple(dict.fromkeys([*null_values, *WRITTEN_NULL_VALUES]))
        arguments |= {
            "null_values": list(null_values),
            "separator": separator or (dialect.separator if dialect else ","),
            "fractions": None if by_size else list(fractions),
            "seed": seed,
            "row_group_rows": row_group_rows,
        }
        if dialect is not None:
            arguments |= {"encoding": dialect.encoding} if dialect.encoding != UTF_8 else {}
            arguments |= {"many_lines": True} if dialect.many_lines else {}
            arguments |= {} if header else {"header": False}
    elif where_train:
        arguments |= {"in_place": True, "where": {str(split): text for split, text in where.items()}}
    else:
        arguments |= {"in_place": True, "fractions": list(fractions), "seed": seed}
    return Request(output=output, arguments=arguments, overwrite=overwrite)


def _check_place(output: str, input: str, format: str, where: Mapping[Split, str], *, in_place: bool) -> None:
    """Raises ConfigError when a table cannot be used in place, or is told to be split otherwise."""
    given = [split for split, text in where.items() if text]
    if given and not in_place:
        raise ConfigError(f"--where-{given[0]} is for tables that are read in place: add --in-place")
    if given and len(given) < len(where):
        lacking = ", ".join(f"--where-{split}" for split in where if split not in given)
        raise ConfigError(f"--where-{given[0]} is given without {lacking}: give all three, or none")
    if not in_place:
        return
    if format != "parquet":
        raise ConfigError(
            f"{input}: --in-place is for Parquet, and this is {format}: leave it out, and a copy is made"
        )
    there, here = (f"{files.absolute(url).rstrip('/')}/" for url in (input, output))
    if there.startswith(here) or here.startswith(there):
        raise ConfigError(f"{output}: lies in the table, or the table in it: name another --output")


def csv(spark: SparkSession, output: str, **options: Any) -> Prepared:
    """Prepare the table at `input`, a CSV with a header or Parquet.

    Text columns become codes by frequency in the training split: 0 is unseen, a missing value is the
    category "". A column is numeric when all its values are; it is standardised with the mean and
    deviation of the training split, and a missing value becomes the mean, with a feature
    `<name>_missing` that is 1.0 there (where the training split has missing values). Lists of numbers
    stay numbers, as an array where all have one length; lists of text become lists of codes, and null
    lists empty ones. Bytes stay bytes. Columns in the names of folders (`country=DE`) are columns.

    In place nothing is copied: `output` gets `schema.json` and `prepared.json` alone, and studies encode
    the rows as they read them. Whole row groups are dealt to the splits, or rows by conditions.

    Args:
        output: local path or fsspec URL of the folder to write.
        options: input, label, format (csv or parquet; None: by the ending), label_type (auto: a class
            for text and for at most 20 integers, else a number), null_values, max_vocabulary (codes of
            a text column; rarer values count as unseen), drop (columns to leave out), separator
            (None: found out), header (False: columns are column1, column2, ...), clean (leave out columns
            of no use, read dates and numbers that are written as words), keep (columns that it leaves alone),
            fractions (None: 0.8,0.1,0.1; with clean, 0.6,0.2,0.2 of less than 2,000 rows), seed,
            row_group_rows, in_place (Parquet only), where_train,
            where_validation and where_test (in place: conditions in SQL; all three, or none), overwrite.

    Raises:
        ConfigError: an argument means nothing, or `output` is another table.
        DataError: the input is missing, empty or malformed, the label is missing or has nulls.
    """
    asked = request(output, **options)
    return asked.found() or make(spark, asked)


def make(spark: SparkSession, asked: Request) -> Prepared:
    """Write what is asked for, in place of what is there."""
    arguments = asked.arguments
    try:
        with settings(spark, arguments):
            frame = read(spark, arguments)
            named = (arguments["label"], *arguments["drop"], *arguments.get("keep", ()))
            unknown = [name for name in named if name not in frame.columns]
            if unknown:
                raise DataError(
                    f"{arguments['input']}: there is no column {unknown[0]!r}. "
                    + suggestion(unknown[0], frame.columns)
                )
            return _describe(frame, asked) if arguments.get("in_place") else _copy(frame, asked)
    except (PySparkException, Py4JJavaError) as exc:
        raise DataError(f"{arguments['input']}: Spark cannot prepare it: {cause_of(exc)}") from exc


def _copy(frame: DataFrame, asked: Request) -> Prepared:
    arguments = asked.arguments
    remarks: tuple[str, ...] = ()
    frame = original(frame, arguments["null_values"])
    if arguments.get("clean"):
        # Before rows are dealt: equal ones that differ in their number alone shall fall into one split.
        cleaned = _clean(_without(frame, arguments["drop"]), arguments)
        frame, remarks = cleaned.frame, cleaned.remarks
        is_small = cleaned.rows < splits.FEW_ROWS
        fractions = splits.FRACTIONS_OF_FEW if is_small else splits.DEFAULT_FRACTIONS
        frame = splits.with_split(frame, arguments["fractions"] or fractions, arguments["seed"])
    else:
        frame = splits.with_split(frame, arguments["fractions"], arguments["seed"])
        frame = _without(frame, arguments["drop"])
    analysis = _analyse(frame, arguments, in_place=False)
    schema = schema_of(analysis)
    with asked.writing() as folder:
        counts = splits.write(
            encode(frame, analysis),
            folder,
            total_rows=analysis.total_rows,
            row_group_rows=arguments["row_group_rows"],
        )
        return asked.finish(folder, schema, counts, remarks=remarks)


def _describe(frame: DataFrame, asked: Request) -> Prepared:
    """Write what is to be known of a table that stays where it is."""
    arguments = asked.arguments
    url = arguments["input"]
    if "where" in arguments:
        split = places.by_conditions(frame, url, arguments["where"])
    else:
        split = places.by_row_groups(frame, url, arguments["fractions"], arguments["seed"])
    remarks: tuple[str, ...] = ()
    frame = _without(original(split.frame, DEFAULT_NULL_VALUES), arguments["drop"])
    if arguments.get("clean"):
        cleaned = _clean(frame, arguments)
        frame, remarks = cleaned.frame, cleaned.remarks
    schema = schema_of(_analyse(frame, arguments, in_place=True), Encoding.RAW)
    with asked.writing() as folder:
        return asked.finish(folder, replace(schema, sources=split.sources), split.rows, remarks=remarks)


def _clean(frame: DataFrame, arguments: Mapping[str, Any]) -> Cleaned:
    """What is of no use is left out; in a copy, words that are dates or numbers are read as such."""
    label, keep = arguments["label"], arguments["keep"]
    remarks: tuple[str, ...] = ()
    if not arguments.get("in_place"):
        classes = [label] if arguments["label_type"] == "class" else []
        read = read_words(frame, label=label, keep=[*keep, *classes], comma=arguments["separator"] == ";")
        frame, remarks = read.frame, read.remarks
    found = without_useless(
        frame,
        place=arguments["input"],
        label=label,
        keep=[*keep, splits.SPLIT, splits.ORDER],
        max_vocabulary=arguments["max_vocabulary"],
        may_drop_rows=not arguments.get("in_place"),
    )
    return replace(found, remarks=(*remarks, *found.remarks))


def _without(frame: DataFrame, names: Sequence[str]) -> DataFrame:
    return frame.drop(*(splits.column(name) for name in names))


def _analyse(frame: DataFrame, arguments: Mapping[str, Any], *, in_place: bool) -> Analysis:
    return analyse(
        frame,
        place=arguments["input"],
        label=arguments["label"],
        label_type=arguments["label_type"],
        max_vocabulary=arguments["max_vocabulary"],
        in_place=in_place,
    )
