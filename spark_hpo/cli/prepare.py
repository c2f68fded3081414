"""`spark-hpo prepare`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spark_hpo.cli.command import Command, CommandGroup, json_option, parsed_mapping, verbose_option
from spark_hpo.cli.console import diagnostics, say, say_json
from spark_hpo.cli.prepare_display import PrepareDisplay

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.prepare import Prepared

T = TypeVar("T")
_Function = Callable[..., Any]

_STOP_LIMIT_S = 20.0
_SPLIT_KEYS = ("key", "group", "time", "column", "values", "stratify")
_REFRESH_S = 0.25


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 0.8,0.1,0.1") from None


def _names(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _values(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Parse `train:0,train:1,validation:2,test:3`."""
    if text is None:
        return None
    values: dict[str, Any] = {}
    for part in text.split(","):
        side, separator, value = part.partition(":")
        if not separator:
            raise click.BadParameter(f"{part!r} is not SPLIT:VALUE, such as train:0,validation:1,test:2")
        values.setdefault(side.strip(), []).append(int(value) if value.lstrip("-").isdigit() else value)
    return values


_SPLIT_OPTIONS = (
    click.option(
        "--split-key", callback=_names, metavar="A,B", help="Split by a hash of these columns alone."
    ),
    click.option(
        "--split-group", callback=_names, metavar="A,B", help="Keep the rows of a group in one split."
    ),
    click.option(
        "--split-time",
        metavar="COLUMN",
        help="Column of times: the newest rows are test, those before validation.",
    ),
    click.option(
        "--split-column",
        metavar="COLUMN",
        help="Column that names the split of each row: train, validation or test.",
    ),
    click.option(
        "--split-values",
        callback=_values,
        metavar="SPLIT:VALUE,..",
        help="The values of that column, if they are others: train:0,train:1,validation:2,test:3.",
    ),
    click.option(
        "--split-stratify",
        metavar="COLUMN",
        help="Column, usually the label, each of whose values is split by the fractions.",
    ),
)
_OUTPUT_OPTIONS = (
    click.option("--output", required=True, metavar="DIR", help="The folder to write: a path or fsspec URL."),
    click.option(
        "--fractions",
        callback=_numbers,
        metavar="A,B,C",
        help="Shares of train, validation and test.  [default: 0.8,0.1,0.1; csv: 0.6,0.2,0.2 of a copy of "
        "fewer than 2,000 rows]",
    ),
    click.option("--seed", type=int, help="Seed of the split, and of synthetic rows.  [default: 0]"),
    click.option("--row-group-rows", type=int, metavar="N", help="Rows in each Parquet row group."),
    click.option("--overwrite", is_flag=True, help="Replace another prepared table at the output."),
    json_option,
    verbose_option,
)


def _with_output_options(function: _Function) -> _Function:
    return _with_options(function, _OUTPUT_OPTIONS)


def _with_split_options(function: _Function) -> _Function:
    return _with_options(function, _SPLIT_OPTIONS)


def _with_options(function: _Function, options: Sequence[_Function]) -> _Function:
    for option in reversed(options):
        function = option(function)
    return function


@click.group(
    "prepare",
    cls=CommandGroup,
    examples=[
        "spark-hpo prepare csv --input adult.csv --label income --output data/adult",
        "spark-hpo prepare csv --input s3a://lake/sales --label returned --in-place --output data/sales",
    ],
)
def command() -> None:
    """Prepare a table for studies from CSV, Parquet, Delta or Iceberg.

    Writes train, validation and test as Parquet, and schema.json. If an earlier command with the same options
    has written the table, nothing is done.
    """


@command.command(
    "csv",
    cls=Command,
    examples=[
        "spark-hpo prepare csv --input adult.csv --label income --drop fnlwgt --output data/adult",
        "spark-hpo prepare csv --input main.sales.orders --label returned --output data/orders",
        "spark-hpo prepare csv --input s3a://lake/sales --label returned --in-place --output data/sales",
    ],
)
@click.option(
    "--input",
    required=True,
    metavar="PATH",
    help="A file, folder or URL; a table in Spark's catalog; or a query.",
)
@click.option(
    "--label",
    multiple=True,
    callback=lambda context, parameter, names: list(names) or None,
    metavar="COLUMN",
    help="The column to predict. Repeat it for several.",
)
@click.option(
    "--label-type",
    type=click.Choice(["auto", "class", "number"]),
    help="Type of the first label. auto: class for text, and for integers with at most 20 values, else "
    "number.  [default: auto]",
)
@click.option(
    "--format",
    type=click.Choice(["csv", "parquet", "delta", "iceberg"]),
    help="Format of the input.  [default: detected]",
)
@click.option(
    "--version",
    metavar="N|TIME",
    help="Version of a Delta table or id of an Iceberg snapshot, or a time.  [default: the newest]",
)
@click.option(
    "--null-values",
    callback=_names,
    metavar="A,B",
    help="Texts that mean missing, besides the empty text, NaN, nan, NULL and null; in a CSV, unless "
    "--as-is, also NA, N/A, n/a, #N/A, <NA>, None and ?.",
)
@click.option(
    "--max-vocabulary",
    type=int,
    metavar="N",
    help="How many values of a text column get a code.  [default: 1000]",
)
@click.option("--drop", callback=_names, metavar="A,B", help="Columns to leave out.")
@click.option("--keep", callback=_names, metavar="A,B", help="Columns to leave as they are.")
@click.option("--categorical", callback=_names, metavar="A,B", help="Columns of categories, even if numbers.")
@click.option("--numeric", callback=_names, metavar="A,B", help="Columns of numbers, even if text.")
@click.option("--time", callback=_names, metavar="A,B", help="Columns of dates or times, even if text.")
@click.option("--text", callback=_names, metavar="A,B", help="Columns of texts that the task reads.")
@click.option(
    "--as-is",
    is_flag=True,
    help="Leave all columns as they are. Otherwise ids, constants and copies of the label are left out, "
    "dates and numbers that are text are parsed, and rows without a label are left out.",
)
@click.option("--separator", metavar="CHAR", help="Separator of the fields of a CSV.  [default: detected]")
@click.option("--no-header", is_flag=True, help="The CSV has no header: columns are column1, column2, ...")
@click.option(
    "--in-place",
    is_flag=True,
    help="Parquet: write only schema.json, and let studies read the table where it is.",
)
@click.option(
    "--where-train", metavar="SQL", help="In place: the condition of training rows. Set all three, or none."
)
@click.option(
    "--where-validation", metavar="SQL", help="In place: of validation rows, such as \"day >= '2026-01-01'\"."
)
@click.option(
    "--where-test", metavar="SQL", help="In place: of test rows. Without conditions, row groups are split."
)
@click.option(
    "--windows",
    callback=parsed_mapping,
    metavar="KEY: VALUE,..",
    help="For forecasts: form rows from steps of series: 'time: day, series: shop, history: 28, horizon: 7'.",
)
@_with_split_options
@_with_output_options
def csv(as_is: bool, no_header: bool, in_place: bool, **options: Any) -> None:
    """Prepare any CSV (with a header), Parquet, Delta or Iceberg table.

    Text becomes codes, numbers are standardised, missing values are filled and marked.
    """
    options |= {"clean": False} if as_is else {}
    options |= {"header": False} if no_header else {}
    split = {name: options.pop(f"split_{name}") for name in _SPLIT_KEYS}
    options["split"] = {name: value for name, value in split.items() if value is not None} or None
    _prepare("csv", {**options, "in_place": in_place})


@command.command("digits", cls=Command, examples=["spark-hpo prepare digits --output data/digits"])
@_with_output_options
def digits(**options: Any) -> None:
    """Prepare scikit-learn's 1,797 handwritten digits."""
    _prepare("digits", options)


@command.command(
    "synthetic",
    cls=Command,
    examples=["spark-hpo prepare synthetic --rows 1000000 --columns 33 --output data/synthetic"],
)
@click.option("--rows", type=int, required=True, metavar="N")
@click.option("--columns", type=int, required=True, metavar="N")
@click.option("--teacher", type=click.Choice(["linear", "product"]), help="[default: linear]")
@click.option("--label-type", type=click.Choice(["class", "number"]), help="[default: class]")
@click.option(
    "--noise", type=float, help="Share of flipped classes, or deviation of the noise.  [default: 0.1]"
)
@_with_output_options
def synthetic(**options: Any) -> None:
    """Prepare standard normal numbers whose best score is known."""
    _prepare("synthetic", options)


def _interruptible(
    work: Callable[[], T], stop: Callable[[], None], refresh: Callable[[], None] = lambda: None
) -> T:
    """Run work on Spark so that Ctrl-C ends it. Meanwhile, call `refresh` several times per second.

    It runs in a thread of its own: a signal handler that interrupts a call to the JVM leaves its connection
    unusable, and then Spark cannot be stopped.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as exc:  # passed on to the caller, whatever it is
            outcome.set_exception(exc)

    thread = Thread(target=run, name="spark_hpo-prepare", daemon=True)
    try:
        thread.start()
        while not wait([outcome], _REFRESH_S).done:
            refresh()
        return outcome.result()
    except KeyboardInterrupt:
        stop()
        thread.join(_STOP_LIMIT_S)  # it removes what it has written
        raise


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-").replace(".", "-")


def _prepare(source: str, options: dict[str, Any]) -> None:
    from spark_hpo.backend.spark.session import has_java, is_spark_at_hand
    from spark_hpo.data.table import open_table
    from spark_hpo.pitfalls import find_pitfalls
    from spark_hpo.prepare.sources import own_session, prepare, with_keys  # loads Spark

    output, as_json = options.pop("output"), options.pop("as_json")
    # Options that are not set are not passed on: the functions have the defaults.
    given = {name: value for name, value in options.items() if value is not None}
    with contextlib.ExitStack() as stack, with_keys(_flag):
        display = stack.enter_context(PrepareDisplay(None if as_json else diagnostics()))

        def work() -> Prepared:
            def start() -> SparkSession:
                return display.watch(stack.enter_context(own_session()))

            # Without Java, this process does what it can.
            return prepare(source, output, given, start, on_spark=has_java() or is_spark_at_hand({}))

        prepared = _interruptible(
            work,
            stack.close,
            display.refresh,
        )
    for remark in prepared.remarks:
        say(f"note: {remark}", diagnostics())
    warnings = [str(pitfall) for pitfall in find_pitfalls(open_table(prepared.output))]
    for warning in warnings:
        say(f"warning: {warning}", diagnostics())
    if as_json:
        answer = {"output": prepared.output, "rows": dict(prepared.rows), "fresh": prepared.fresh}
        say_json({**answer, "remarks": list(prepared.remarks), "warnings": warnings})
        return
    counts = ", ".join(f"{split} {rows:,}" for split, rows in prepared.rows.items())
    say(f"{prepared.output}: {counts} rows{'' if prepared.fresh else ' (existed already)'}")
