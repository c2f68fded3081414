"""The command line of preparing: `prepare_data.py digits | csv | synthetic`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from pyspark import SparkContext
from pyspark.sql import SparkSession

from spark_hpo.backend.spark.java import java_is_needed
from spark_hpo.errors import ConfigError, SparkHpoError
from spark_hpo.prepare import from_csv, from_digits, from_synthetic
from spark_hpo.prepare.output import Prepared, Request
from spark_hpo.trial import Split

_TABLES: dict[str, tuple[Callable[..., Request], Callable[[SparkSession, Request], Prepared]]] = {
    "digits": (from_digits.request, from_digits.make),
    "csv": (from_csv.request, from_csv.make),
    "synthetic": (from_synthetic.request, from_synthetic.make),
}


def main(argv: Sequence[str], *, program: str = "prepare_data.py") -> int:
    """Prepare a table, and say in one line what came out. An equal table that is there is kept.

    Args:
        program: what was called, for its help.

    Returns:
        The exit code: 0 done, 2 an argument is wrong, 3 the input is.
    """
    try:
        with contextlib.ExitStack() as stack:
            options = _options(argv, program)
            prepared = _prepare(options, lambda: stack.enter_context(_session()))
    except SparkHpoError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    for remark in prepared.remarks:
        print(f"note: {remark}", file=sys.stderr)
    if options.get("json"):
        answer = {"output": prepared.output, "rows": dict(prepared.rows), "fresh": prepared.fresh}
        print(json.dumps({**answer, "remarks": list(prepared.remarks)}))
        return 0
    counts = ", ".join(f"{split} {rows:,}" for split, rows in prepared.rows.items())
    print(f"{prepared.output}: {counts} rows{'' if prepared.fresh else ' (there already)'}")
    return 0


def prepare(argv: Sequence[str], start_spark: Callable[[], SparkSession]) -> Prepared:
    """Prepare a table, with the arguments of the command line. An equal table that is there is kept.

    Args:
        start_spark: called only when there is something to do.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the input is.
    """
    return _prepare(_options(argv), start_spark)


def found(argv: Sequence[str]) -> Prepared | None:
    """The table that these arguments have made already; None: it is not there. Raises as `prepare`."""
    asked, _ = _asked(_options(argv))
    return asked.found()


def _options(argv: Sequence[str], program: str = "prepare_data.py") -> dict[str, Any]:
    return vars(_parser(program).parse_args(argv))


def _prepare(options: Mapping[str, Any], start_spark: Callable[[], SparkSession]) -> Prepared:
    asked, make = _asked(options)
    return asked.found() or make(start_spark(), asked)


def _asked(options: Mapping[str, Any]) -> tuple[Request, Callable[[SparkSession, Request], Prepared]]:
    request, make = _TABLES[options["table"]]
    return request(**{name: value for name, value in options.items() if name not in ("table", "json")}), make


@contextlib.contextmanager
def _session() -> Iterator[SparkSession]:
    """The session that runs, left as it is, or one of our own: what spark-submit was told holds there."""
    if _is_running():
        yield SparkSession.builder.getOrCreate()
        return
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or Spark takes any python3 on the path
    builder: Any = SparkSession.builder
    builder = builder.appName("prepare_data").config("spark.log.level", "ERROR")
    with java_is_needed():
        spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def _is_running() -> bool:
    """Whether a session is somebody else's: of a notebook, or of all tasks of a Databricks job."""
    return SparkSession.getActiveSession() is not None or SparkContext._active_spark_context is not None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as an error of ours: the arguments may stand in a study file."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; {self.prog} --help shows what there is")


def _parser(program: str) -> argparse.ArgumentParser:
    # An option that is not given is not passed on: the defaults are those of the functions.
    parser = _Parser(
        prog=program,
        description="Write a table as train, validation and test Parquet, with schema.json beside them.",
    )
    tables = parser.add_subparsers(dest="table", required=True)
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--output", required=True, help="the folder to write: a path or an fsspec URL")
    common.add_argument(
        "--fractions", type=_floats, help="of train,validation,test (0.8,0.1,0.1; of a small CSV 0.6,0.2,0.2)"
    )
    common.add_argument("--seed", type=int, help="of the split, and of synthetic rows (0)")
    common.add_argument("--row-group-rows", type=int, help="rows in a Parquet row group")
    common.add_argument("--json", action="store_true", help="say what came out as JSON")
    common.add_argument("--overwrite", action="store_true", help="replace what is there")

    def table(name: str, text: str) -> argparse.ArgumentParser:
        return tables.add_parser(
            name, help=text, description=text, parents=[common], argument_default=argparse.SUPPRESS
        )

    table("digits", "scikit-learn's 1,797 handwritten digits")

    csv = table("csv", "any CSV (with a header) or Parquet table")
    csv.add_argument("--input", required=True, help="file, folder or URL")
    csv.add_argument("--label", help="the column to predict")
    csv.add_argument("--label-type", choices=("auto", "class", "number"))
    csv.add_argument("--format", choices=("csv", "parquet"), help="otherwise by the ending")
    csv.add_argument(
        "--null-values",
        type=_null_values,
        metavar="A,B",
        help="texts that mean missing, besides the empty one and " + ", ".join(from_csv.DEFAULT_NULL_VALUES),
    )
    csv.add_argument("--max-vocabulary", type=int, help="values of a text column that get a code (1000)")
    csv.add_argument("--drop", type=_names, metavar="A,B", help="columns to leave out")
    csv.add_argument("--keep", type=_names, metavar="A,B", help="columns to leave as they are")
    csv.add_argument(
        "--as-is",
        dest="clean",
        action="store_false",
        default=True,
        help="leave all columns as they are: otherwise ids, constants and copies of the label are left out, "
        "dates and numbers that are written as words are read, and rows without a label are left out",
    )
    csv.add_argument("--separator", type=_separator, help="between the fields of a CSV (found out)")
    csv.add_argument(
        "--no-header",
        dest="header",
        action="store_false",
        default=argparse.SUPPRESS,
        help="of a CSV without names: columns are column1, column2, ...",
    )
    csv.add_argument(
        "--in-place", action="store_true", help="Parquet: write schema.json alone, and read the table itself"
    )
    for split in Split:
        csv.add_argument(
            f"--where-{split}",
            metavar="CONDITION",
            help=f"in place: the rows of {split}, such as \"day < '2026-01-01'\"; otherwise whole row groups",
        )

    synthetic = table("synthetic", "standard normal numbers with a known answer")
    synthetic.add_argument("--rows", type=int, required=True)
    synthetic.add_argument("--columns", type=int, required=True)
    synthetic.add_argument("--teacher", choices=("linear", "product"))
    synthetic.add_argument("--label-type", choices=("class", "number"))
    synthetic.add_argument("--noise", type=float, help="share of flipped classes, or deviation (0.1)")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _separator(text: str) -> str:
    return {r"\t": "\t", "tab": "\t"}.get(text, text)


def _null_values(text: str) -> list[str]:
    return [*from_csv.DEFAULT_NULL_VALUES, *_names(text)]


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
