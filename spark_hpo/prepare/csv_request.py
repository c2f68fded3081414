"""The arguments of `prepare csv`, checked without Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from spark_hpo.config.section import divide_labels
from spark_hpo.config.split import SplitConfig, split_config
from spark_hpo.config.windows import WindowsConfig, windows_config
from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.lake.table_version import parse_version
from spark_hpo.data.plan.footers import column_names
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import ConfigError, DataError, suggestion
from spark_hpo.prepare import splits
from spark_hpo.prepare.column_kinds import KINDS, check_kinds
from spark_hpo.prepare.dialect import UTF_8, Dialect, find_dialect
from spark_hpo.prepare.output import Request, fingerprint
from spark_hpo.prepare.reading import columns_of
from spark_hpo.trial import Split

DEFAULT_NULL_VALUES = ("NaN", "nan", "NULL", "null")  # and the empty text; in place, readers use the same
WRITTEN_NULL_VALUES = ("NA", "N/A", "n/a", "#N/A", "<NA>", "None", "?")  # of a CSV that is cleaned, as well
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "label_type": ("auto", "class", "number"),
    "format": (None, "csv", *TableFormat),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """The arguments of `csv`, which documents them."""

    input: str
    label: str | None = None
    extra_labels: Sequence[str] = ()
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
    windows: WindowsConfig | Mapping[str, Any] | None = None

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
        self._check_windows()
        self._check_labels()
        check_kinds(self.kinds, self.label, self.extra_labels)
        if self.in_place and tuple(self.null_values) != DEFAULT_NULL_VALUES:
            raise ConfigError(
                f"is not available in place, where '', {', '.join(DEFAULT_NULL_VALUES)} mean missing",
                key="null_values",
                cure="Leave it out, or prepare a copy",
            )

    def _check_labels(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError("must name different columns", key="label", value=list(self.labels))
        for name in self.labels:
            if name in self.drop:
                raise ConfigError(f"contains the label {name!r}", key="drop")
        if self.extra_labels and self.windows_config is not None:
            raise ConfigError(
                "and windows exclude each other, because a forecast is of one column",
                key="label",
                value=list(self.labels),
                cure="Name one label",
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

    def _check_windows(self) -> None:
        """Windows of series are copied, and split by their time."""
        if (windows := self.windows_config) is None:
            return
        split = self.split_config
        if self.in_place:
            raise ConfigError("is not available in place", key="windows", cure="Leave in_place out")
        if not split.model_copy(update={"time": None}).is_default:
            raise ConfigError("and windows exclude each other", key="split", cure="Windows are split by time")
        if split.time not in (None, windows.time):
            raise ConfigError("must be the time of windows", key="split.time", value=split.time)
        if self.kinds:
            raise ConfigError("and windows exclude each other", key=next(iter(self.kinds)))
        if self.label in windows.columns:
            raise ConfigError(f"contain the label {self.label!r}", key="windows")

    @property
    def labels(self) -> tuple[str, ...]:
        return (*(() if self.label is None else (self.label,)), *self.extra_labels)

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The columns whose kind is named, by kind."""
        return {kind: list(getattr(self, kind)) for kind in KINDS if getattr(self, kind)}

    @property
    def split_config(self) -> SplitConfig:
        return self.split if isinstance(self.split, SplitConfig) else split_config(self.split or {})

    @property
    def windows_config(self) -> WindowsConfig | None:
        given = self.windows
        return given if isinstance(given, WindowsConfig | None) else windows_config(given)

    @property
    def where(self) -> dict[Split, str]:
        return dict(zip(Split, (self.where_train, self.where_validation, self.where_test), strict=True))


def request(output: str, *, overwrite: bool = False, **options: Any) -> Request:
    """Check the arguments of `csv`. The files at the input belong to the request: new files, new table.

    Raises:
        ConfigError: an argument is invalid.
        DataError: the input is missing, or no text.
    """
    wanted = CsvOptions(**divide_labels(options, ConfigError))
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
    arguments |= {"extra_labels": list(wanted.extra_labels)} if wanted.extra_labels else {}
    if wanted.version is not None:
        if not is_lake and not source:
            find_version(wanted.input, TableFormat.PARQUET, wanted.version)
        parse_version(wanted.version)
        arguments["version"] = wanted.version if isinstance(wanted.version, int) else str(wanted.version)
    arguments |= {"clean": True, "keep": list(wanted.keep)} if wanted.clean else {}
    arguments |= {"kinds": wanted.kinds} if wanted.kinds else {}
    split = wanted.split_config
    if (windows := wanted.windows_config) is not None:
        arguments["windows"] = windows.options()
        split = split.model_copy(update={"time": None})
    wanted = replace(
        wanted,
        split=None,
        windows=None,
        fractions=wanted.fractions or split.fractions,
        seed=wanted.seed or split.seed,
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
    windows = wanted.windows_config
    for name in (*wanted.labels, *wanted.drop, *wanted.keep, *(windows.columns if windows else ())):
        if name not in columns:
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
