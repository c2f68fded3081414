"""The section `data` of a study file: the table, its columns, and how it is read."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from spark_hpo.config.messages import mistake
from spark_hpo.config.prepare import PrepareConfig, section_of_words
from spark_hpo.config.section import FromList, PositiveInt, PositiveNumber, Section, Url, divide_labels
from spark_hpo.config.split import SplitConfig
from spark_hpo.config.windows import WindowsConfig


def _as_text(value: Any) -> Any:
    """Convert a date or time, which YAML recognises, back to text."""
    return value.isoformat() if isinstance(value, date) else value


_Names = Annotated[tuple[str, ...], FromList]
_SOURCES = ("path", "table", "query", "dataframe")
# Settings that describe the columns and splits of a table that is not prepared.
DESCRIPTION = ("label", "label_type", "drop", "categorical", "numeric", "time", "text", "split", "windows")


class CacheConfig(Section):
    """The cache of decoded columns on the local disk of each machine. All ranks and trials there share it."""

    enabled: bool = True
    """`false` reads and decodes the files in each epoch."""
    folder: str | None = None
    """A local path that exists on every machine. Default: Spark's first local directory, or the system's
    temporary directory."""
    max_gb: PositiveNumber | None = None
    """Disk space that the cache may use on each machine. Default: half of what is free."""


class DataConfig(Section):
    """The table: one of `path`, `table` and `query`, or a DataFrame that is passed to `tune`. A table that is
    not prepared needs `label`; the study derives the encoding of its columns when it begins."""

    path: Url | None = None
    """Local path or any fsspec URL: a table that `spark-hpo prepare` wrote; a Parquet, Delta or Iceberg
    table, which is read in place; or a CSV, which is copied into the study directory. A table in place with
    fewer than 20 row groups is copied too, unless columns decide its split."""
    table: str | None = None
    """Name of a table or view in Spark's catalog: `main.sales.orders`. The study reads a snapshot of it."""
    query: str | None = None
    """SQL query whose rows are the table. The study reads a snapshot of them."""
    dataframe: bool = False
    """Set by `tune` for a DataFrame. The study reads a snapshot of its rows."""
    version: Annotated[int | str | None, BeforeValidator(_as_text)] = None
    """Version of a Delta or Iceberg table: a number, or a time such as `2026-01-31 12:00`. Default: the
    newest when the study begins, to which the study then keeps."""
    snapshots: Url | None = None
    """Folder for snapshots, on storage that driver and executors can reach. Default: `.snapshots`, beside the
    study directory."""
    label: str | None = None
    """The column to predict, of a table that is not prepared. A list names several: `[price, sold]`. Of a
    prepared table, a list selects the labels: its own, and columns of categories (classes) or numbers."""
    extra_labels: _Names = ()
    """The further columns to predict, if `label` is not a list."""
    label_type: Literal["auto", "class", "number"] = "auto"
    """`class` or `number`, for the first label. `auto`: a class if it is text, or an integer with at most 20
    values. All further labels are `auto`, unless they are in `categorical` or `numeric`."""
    weight: str | None = None
    """The column of numbers that weights each row in the loss and in means over rows, on all splits. It is
    not a feature."""
    drop: _Names = ()
    """Columns to leave out."""
    categorical: _Names = ()
    """Columns whose values are categories, even if they are numbers."""
    numeric: _Names = ()
    """Columns whose values are numbers, even if they are text."""
    time: _Names = ()
    """Columns whose values are dates or times, even if they are text."""
    text: _Names = ()
    """Columns of texts that the task reads, such as `task: text`, instead of categories."""
    split: SplitConfig = SplitConfig()
    """How to divide the rows of a table that is not prepared: `{time: day}`, `{group: customer_id}`."""
    windows: WindowsConfig | None = None
    """How to form windows from the steps of series, for `task: forecast`: `{time: day, series: shop, history:
    28, horizon: 7}`. The table is copied to the study directory."""
    prepare: Annotated[PrepareConfig | None, BeforeValidator(section_of_words)] = None
    """How to create the table if it does not exist: `{source: csv, input: sales.csv, label: returned}`."""
    where: str = ""
    """SQL condition that selects rows of all splits: `country = 'DE' and day >= '2026-01-01'`. It compares
    columns with values, and may contain `in`, `between`, `is null`, `and`, `or` and `not`."""
    nulls: dict[str, Literal["refuse", "fill"]] = {}
    """How to treat nulls, by column; `*` stands for all other columns: `{age: fill, "*": refuse}`. `fill`
    replaces a null by the mean, by the code of an empty text, by zeros or by an empty list, depending on the
    column. Overrides `schema.json`."""
    truncate: dict[str, PositiveInt] = {}
    """Maximum length of a list, by column: `{words: 128}` keeps the first 128 elements. Without it, a list
    that is longer than `schema.json` says is an error. Of a text, it is the number of bytes to keep, by
    default at most 4096."""
    transforms: dict[str, str] = {}
    """Functions that decode columns of bytes, by column, as `module:function` or `path/to/file.py:function`.
    Each takes bytes and returns an array of floats."""
    trust_petastorm_metadata: bool = False
    """`true` unpickles what Petastorm has written about the table's columns. Unpickling can run code:
    enable it only for tables whose source you trust."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What to do about a file that is damaged, changed or missing: `fail` ends the study; `skip` continues
    without the file, and logs how many rows are left out."""
    reader: str = "auto"
    """`arrow`, `petastorm`, or a reader from a plugin. `auto` uses Petastorm where it is installed."""
    shuffle_window: PositiveInt = 100_000
    """Rows that each rank holds in memory and shuffles together."""
    cache: CacheConfig = CacheConfig()

    @property
    def place(self) -> str:
        """The table as messages name it."""
        if self.path is not None:
            return self.path
        return self.table or ("data.query" if self.query else "the DataFrame")

    @property
    def may_have_several_labels(self) -> bool:
        """False if the settings name one label; a prepared table may have several."""
        if self.prepare is not None:
            return bool(self.extra_labels or self.prepare.extra_labels)
        return self.label is None or bool(self.extra_labels)

    @property
    def is_snapshot(self) -> bool:
        """True if Spark writes the rows to a snapshot, because there are no files that ranks could read."""
        return self.path is None

    @model_validator(mode="before")
    @classmethod
    def _several_labels(cls, record: Any) -> Any:
        return divide_labels(record, mistake) if isinstance(record, dict) else record

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = [key for key in _SOURCES if getattr(self, key)]
        if not given:
            raise mistake("is missing", key="path", cure="Set data.path, data.table or data.query")
        if len(given) > 1:
            raise mistake(
                f"cannot be combined with data.{given[0]}", key=given[1], cure="Set only one of them"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_the_source(self) -> DataConfig:
        described = [key for key in DESCRIPTION if getattr(self, key) != type(self).model_fields[key].default]
        if self.prepare is not None:
            for key in ("table", "query", "dataframe", "version", *described):
                if key in described or getattr(self, key):
                    raise mistake(
                        "is for a table that is not prepared, and data.prepare prepares it",
                        key=key,
                        cure=f"Set data.prepare.{key} instead" if key in described else "Remove one of them",
                    )
        if self.is_snapshot and self.label is None:
            raise mistake("is missing", key="label", cure="Name the column to predict")
        if self.version is not None and (self.query or self.dataframe):
            raise mistake(
                "is for data.path and data.table",
                key="version",
                value=self.version,
                cure="Read that version in the query: SELECT ... FROM name VERSION AS OF 12",
            )
        return self

    @model_validator(mode="after")
    def _columns_have_one_role(self) -> DataConfig:
        roles = {} if self.label is None else {self.label: "label"}
        for name in self.extra_labels:
            if name in (self.label, self.weight, *self.drop):
                raise mistake(f"contains {name!r}, which has another role in data", key="extra_labels")
        if self.weight is not None and self.weight in (self.label, *self.drop):
            key = "label" if self.weight == self.label else "drop"
            raise mistake(f"is in data.{key} as well", key="weight", value=self.weight)
        for key in ("drop", "categorical", "numeric", "time", "text"):
            for name in getattr(self, key):
                if roles.setdefault(name, key) != key:
                    raise mistake(f"contains {name!r}, which is in data.{roles[name]} as well", key=key)
        return self
