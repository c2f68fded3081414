"""Finds the table of a study: one that is prepared, or one that is described in the study directory.

A table that is not prepared is described once, when the study begins: `<study_dir>/table/schema.json` has the
encoding of its columns and the rows of each split. Later drivers read that file, and so the same rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spark_hpo.config import DataConfig, StudyConfig, defaults
from spark_hpo.data import files
from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.plan.footers import column_names, read_footers
from spark_hpo.data.plan.listing import relative
from spark_hpo.data.plan.row_group_split import in_share
from spark_hpo.data.table import SCHEMA_FILE, read_schema
from spark_hpo.driver.table_columns import COLUMN_LISTS, check_columns, listed
from spark_hpo.driver.table_snapshot import check_snapshot, take_snapshot
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.definition import Definition

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.snapshots.frames import Frame

logger = logging.getLogger(__name__)

_PARQUET, _JSON = b"PAR1", ".json"  # the first bytes of Parquet; the ending of Iceberg's metadata
_MIN_ROW_GROUPS = 20  # fewer are copied, because their splits would differ too much from their shares
_FRACTIONS = (0.8, 0.1, 0.1)  # as in `prepare`


def schema_folder(config: StudyConfig) -> str:
    """Return the folder with the `schema.json` of a study's table, which may not exist yet."""
    data = _data(config)
    if data.path is not None and (data.prepare is not None or _has_schema(files.absolute(data.path))):
        return files.absolute(data.path)
    return _description(config)


def is_ready(config: StudyConfig, known: Definition | None) -> bool:
    """Return True if the table is prepared, or if an earlier driver described it with the same settings.

    Args:
        known: the definition of the study; None: there is no study yet.
    """
    if _data(config).prepare is not None:
        return False  # whether it exists with the same options is the business of `prepare`
    folder = schema_folder(config)
    if folder != _description(config):
        return True
    now = config.model_dump(mode="json")
    return known is not None and known.agrees(now, "data.", defaults=defaults()) and _has_schema(folder)


def check_source(config: StudyConfig, known: Definition | None) -> None:
    """Check the settings of a table, as far as its footers tell.

    Args:
        known: as for `is_ready`.

    Raises:
        ConfigError: the label or a column is missing, or a setting does not fit a prepared table.
        DataError: the table does not exist, or cannot be read.
    """
    data = _data(config)
    if data.path is None:
        check_snapshot(config)
        return
    if data.prepare is not None:
        return
    if is_ready(config, known):
        if schema_folder(config) != _description(config):
            _check_prepared(data)
        return
    if not files.exists(files.absolute(data.path)):
        raise DataError(
            f"{data.path} does not exist. Check data.path, or create the table: spark-hpo prepare"
        )
    if files.is_csv(data.path):
        if data.label is None:
            raise ConfigError("is missing", key="data.label", cure="Name the column to predict")
        return
    _check_is_parquet(data.path)
    names = list(column_names(data.path, data.version))
    if data.label is None:
        raise ConfigError(
            f"is missing, because {data.path} is not a prepared table",
            key="data.label",
            cure=f"Name the column to predict: {listed(names)}",
        )
    check_columns(data, names)


def describe(
    config: StudyConfig,
    start: Callable[[], SparkSession],
    frame: Frame | None = None,
    *,
    on_spark: bool = True,
) -> None:
    """Describe a table in the study directory.

    Parquet is described in place, and so is the snapshot of a catalog table, a query or a DataFrame. A CSV is
    copied, and so is a table with so few row groups that they cannot be divided into splits, unless its
    columns decide the split. Windows are formed in a copy.

    Args:
        start: returns a Spark session.
        frame: the DataFrame that was passed to `tune`.
        on_spark: False: use Spark only for what this process cannot do.

    Raises:
        ConfigError: a setting does not fit the table.
        DataError: the table cannot be used.
    """
    from spark_hpo.prepare.sources import prepare, with_keys

    data = _data(config)
    path = take_snapshot(config, start, frame).url if data.path is None else data.path
    is_copied = files.is_csv(path) or data.windows is not None
    in_place = not is_copied and (not data.split.is_default or row_groups_divide(path, data))
    options = {"input": path, "in_place": in_place, "overwrite": True, **_options(data)}
    with with_keys(lambda option: f"data.{'path' if option in ('input', 'output') else option}"):
        prepared = prepare("csv", _description(config), options, start, on_spark=on_spark)
    logger.info("%s: described %d rows", data.place, sum(prepared.rows.values()))
    for remark in prepared.remarks:
        logger.info("%s: %s", data.place, remark)


def row_groups_divide(path: str, data: DataConfig) -> bool:
    """Return True if a split of the table by row groups gives each split some."""
    format = table_format(path)
    version = None if data.is_snapshot else find_version(path, format, data.version)
    found = read_footers(path, format, version)
    train, validation, _ = data.split.fractions or _FRACTIONS
    shares = [(0.0, train), (train, round(train + validation, 12)), (round(train + validation, 12), 1.0)]
    groups = [
        (relative(file.path, found.root), index)
        for file, footer in zip(found.files, found.footers, strict=True)
        for index in range(len(footer.row_groups))
    ]
    return len(groups) >= _MIN_ROW_GROUPS and all(
        any(in_share(name, index, share, data.split.seed) for name, index in groups) for share in shares
    )


def _options(data: DataConfig) -> dict[str, Any]:
    """Return the settings that describe the columns, without defaults, as options of `prepare`."""
    fields = type(data).model_fields
    names = (
        *(() if data.is_snapshot else ("version",)),
        "label",
        "label_type",
        "split",
        "windows",
        *COLUMN_LISTS,
    )
    chosen = {name: getattr(data, name) for name in names if getattr(data, name) != fields[name].default}
    if data.extra_labels:
        chosen["label"] = [data.label, *data.extra_labels]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def _check_prepared(data: DataConfig) -> None:
    """Refuse settings that a prepared table cannot follow."""
    for key in _options(data):
        if key == "label" and data.label in (None, read_schema(files.absolute(str(data.path))).label.name):
            continue
        raise ConfigError(
            f"is for tables that are not prepared, but {data.path} has a {SCHEMA_FILE}",
            key=f"data.{key}",
            value=getattr(data, key),
            cure="Remove it, or use the path of the original table",
        )


def _has_schema(folder: str) -> bool:
    return files.exists(files.join(folder, SCHEMA_FILE))


def _check_is_parquet(path: str) -> None:
    """Refuse a file of another format. What a folder holds is seen when it is listed."""
    fs, file = files.filesystem(files.absolute(path))
    with files.accessing(path):
        if fs.isfile(file) and not file.endswith(_JSON) and fs.cat_file(file, 0, len(_PARQUET)) != _PARQUET:
            raise ConfigError("must be a prepared table, Parquet or a CSV", key="data.path", value=path)


def _description(config: StudyConfig) -> str:
    return files.join(files.absolute(config.study_dir), layout.TABLE)


def _data(config: StudyConfig) -> DataConfig:
    assert config.data is not None, "the caller has checked that the study has a table"
    return config.data
