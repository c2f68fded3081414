"""The section `data.prepare`, and its old form, the arguments of a command line."""

from __future__ import annotations

import logging
import shlex
from typing import Annotated, Any, Literal

import yaml
from pydantic import model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.section import (
    FromList,
    NonNegativeNumber,
    PositiveInt,
    PositiveNumber,
    Section,
    Url,
    divide_labels,
)
from spark_hpo.config.split import SplitConfig
from spark_hpo.config.windows import WindowsConfig

logger = logging.getLogger(__name__)

_Names = Annotated[tuple[str, ...] | None, FromList]

_CSV_OPTIONS = frozenset(
    (
        *(
            "input",
            "label",
            "extra_labels",
            "label_type",
            "format",
            "version",
            "null_values",
            "max_vocabulary",
            "drop",
            "keep",
            "clean",
        ),
        *("separator", "header", "in_place", "where_train", "where_validation", "where_test", "split"),
        *("categorical", "numeric", "time", "text", "windows"),
    )
)
_SYNTHETIC_OPTIONS = frozenset(("rows", "columns", "teacher", "label_type", "noise"))
_OPTIONS = {"csv": _CSV_OPTIONS, "digits": frozenset[str](), "synthetic": _SYNTHETIC_OPTIONS}
_REQUIRED_OPTIONS = {"csv": ("input",), "digits": (), "synthetic": ("rows", "columns")}

_FLAGS: dict[str, tuple[str, bool] | None] = {
    "as-is": ("clean", False),
    "no-header": ("header", False),
    "in-place": ("in_place", True),
    "overwrite": ("overwrite", True),
    "json": None,
}
_LISTS = ("drop", "keep", "null_values", "fractions")
_NUMBERS = ("fractions", "seed", "row_group_rows", "max_vocabulary", "rows", "columns", "noise")


class PrepareConfig(Section):
    """How to create the table: the options of `spark-hpo prepare SOURCE`, whose defaults apply."""

    source: Literal["csv", "digits", "synthetic"]
    """`csv`: a CSV or Parquet table; `digits`: scikit-learn's images; `synthetic`: random numbers."""
    fractions: Annotated[tuple[PositiveNumber, ...] | None, FromList] = None
    """Shares of train, validation and test: `[0.8, 0.1, 0.1]`."""
    seed: int | None = None
    """Seed of the split, and of synthetic rows."""
    row_group_rows: PositiveInt | None = None
    """Rows in each Parquet row group."""
    overwrite: bool | None = None
    """`true` replaces another prepared table at `data.path`."""
    input: Url | None = None
    """csv: a file or folder, as a local path or fsspec URL; a name in Spark's catalog; or a query."""
    label: str | None = None
    """csv: the column to predict. A list names several: `[price, sold]`."""
    extra_labels: _Names = None
    """csv: the further columns to predict, if `label` is not a list."""
    label_type: Literal["auto", "class", "number"] | None = None
    """csv, synthetic: whether the (first) label is a class or a number."""
    format: Literal["csv", "parquet", "delta", "iceberg"] | None = None
    """csv: the format of the input. Default: detected."""
    version: int | str | None = None
    """csv: version of a Delta table, id of an Iceberg snapshot, or a time. Default: the newest when the table
    is prepared."""
    null_values: _Names = None
    """csv: texts that mean missing, in addition to the empty text, NaN, nan, NULL and null; and, in a CSV
    that is cleaned, NA, N/A, n/a, #N/A, <NA>, None and ?."""
    max_vocabulary: PositiveInt | None = None
    """csv: how many values of a text column get a code."""
    drop: _Names = None
    """csv: columns to leave out."""
    keep: _Names = None
    """csv: columns to leave as they are."""
    clean: bool | None = None
    """csv: whether to leave out useless columns, and to parse dates and numbers in text. Default: true."""
    separator: str | None = None
    """csv: the separator between fields. Default: detected."""
    header: bool | None = None
    """csv: whether the first line has names; otherwise columns are column1, column2, ... Default: true."""
    in_place: bool | None = None
    """csv: whether to write only `schema.json`, and read a Parquet table where it is."""
    where_train: str | None = None
    """csv, in place: an SQL condition for the training rows. Set all three conditions, or none."""
    where_validation: str | None = None
    """csv, in place: a condition for the validation rows."""
    where_test: str | None = None
    """csv, in place: a condition for the test rows."""
    categorical: _Names = None
    """csv: columns whose values are categories, even if they are numbers."""
    numeric: _Names = None
    """csv: columns whose values are numbers, even if they are text. Other texts count as missing."""
    time: _Names = None
    """csv: columns whose values are dates or times, even if they are text."""
    text: _Names = None
    """csv: columns of texts that the task reads, instead of categories."""
    split: SplitConfig | None = None
    """csv: the columns that decide the split."""
    windows: WindowsConfig | None = None
    """csv: how to form windows from the steps of series, for `task: forecast`."""
    rows: PositiveInt | None = None
    """synthetic: the number of rows."""
    columns: PositiveInt | None = None
    """synthetic: the number of features."""
    teacher: Literal["linear", "product"] | None = None
    """synthetic: the function that gives the label."""
    noise: NonNegativeNumber | None = None
    """synthetic: the share of flipped classes, or the standard deviation of the noise."""

    def options(self) -> dict[str, Any]:
        """The options that are set, without the source."""
        options = self.model_dump(exclude_none=True, exclude={"source"})
        options |= {"split": self.split.options()} if self.split else {}
        return options | {"windows": self.windows.options()} if self.windows else options

    @model_validator(mode="before")
    @classmethod
    def _several_labels(cls, record: Any) -> Any:
        return divide_labels(record, mistake) if isinstance(record, dict) else record

    @model_validator(mode="after")
    def _options_of_the_source(self) -> PrepareConfig:
        foreign = frozenset().union(*_OPTIONS.values()) - _OPTIONS[self.source]
        for key in sorted(self.options().keys() & foreign):
            raise mistake(f"is not an option of source: {self.source}", key=key)
        for key in _REQUIRED_OPTIONS[self.source]:
            if getattr(self, key) is None:
                raise mistake("is missing", key=key, cure=f"source: {self.source} needs it")
        return self


def section_of_words(value: Any) -> Any:
    """Return the section that the arguments mean; a value of any other type stays as it is.

    A trace: ["csv", "--input", "a.csv", "--label", "y", "--drop", "id,name", "--as-is"]
        -> {"source": "csv", "input": "a.csv", "label": "y", "drop": ["id", "name"], "clean": False}

    Raises:
        ValueError: an option has no value, or a value no option.
    """
    if isinstance(value, str):
        value = shlex.split(value)
    if not isinstance(value, list | tuple):
        return value
    source, *words = [str(word) for word in value] or [""]
    section: dict[str, Any] = {"source": source}
    while words:
        option, separator, text = words.pop(0).partition("=")
        if not option.startswith("--"):
            raise ValueError(f"{option!r} is not an option of prepare; write data.prepare as a section")
        name = option.removeprefix("--")
        if name in _FLAGS:
            section |= dict([flag]) if (flag := _FLAGS[name]) else {}
            continue
        if not separator:
            if not words:
                raise ValueError(f"{option} has no value; write data.prepare as a section")
            text = words.pop(0)
        key = name.replace("-", "_")
        items = [_number(item) if key in _NUMBERS else item for item in text.split(",") if item]
        if key == "label" and key in section:
            section[key] = [*([section[key]] if isinstance(section[key], str) else section[key]), text]
            continue
        section[key] = items if key in _LISTS else _number(text) if key in _NUMBERS else text
    shown = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=1_000_000).strip()
    logger.warning("data.prepare is a command line, which is deprecated. Write it as a section: %s", shown)
    return section


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
