"""The snapshot of a study: the rows of a catalog table, a query or a DataFrame when the study began."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from spark_hpo.config import DataConfig, StudyConfig
from spark_hpo.data import files
from spark_hpo.driver.table_columns import check_columns
from spark_hpo.errors import ConfigError, DataError, SparkHpoError, within
from spark_hpo.snapshots.snapshot_folder import Snapshot, SnapshotFolder, default_folder
from spark_hpo.study_dir.storage import Storage

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.snapshots.frame_identity import FrameIdentity
    from spark_hpo.snapshots.frames import Frame

logger = logging.getLogger(__name__)


def take_snapshot(config: StudyConfig, start: Callable[[], SparkSession], frame: Frame | None) -> Snapshot:
    """Write the rows of a study's table, query or DataFrame, unless a snapshot of the same rows is there.

    Args:
        start: returns a Spark session.
        frame: the DataFrame that was passed to `tune`.

    Raises:
        ConfigError: there is no such table, the query is wrong, or a column is missing.
        DataError: the rows cannot be computed, there are none, or the snapshot cannot be written.
    """
    from spark_hpo.snapshots.write import write_frame

    data, storage = _data(config), Storage(config.study_dir)
    known = Snapshot.of_study(storage)
    if data.dataframe and frame is None:
        if known is None:
            raise ConfigError(
                "was not written before the study was interrupted",
                key="data.dataframe",
                cure="Call tune again with the DataFrame",
            )
        return known
    source, identity = _identified(data, start, frame)
    check_columns(data, [str(name) for name in source.columns])
    if identity.changing:
        if known is not None and known.source.get("plan") == identity.source.get("plan"):
            return known  # of a driver that was killed before it could use it
        logger.warning(
            "%s may give other rows each time, because %s. This study keeps to its own snapshot",
            data.place,
            identity.changing,
        )
    folder = SnapshotFolder(data.snapshots or default_folder(config.study_dir))

    def write(url: str) -> int:
        began = time.monotonic()
        rows = write_frame(source, url, data.place)
        logger.info("%s: wrote %d rows to %s in %.1f s", data.place, rows, url, time.monotonic() - began)
        return rows

    snapshot = folder.obtain(identity.key, identity.source, storage, write)
    snapshot.write_record(storage)
    return snapshot


def check_snapshot(config: StudyConfig) -> None:
    """Check that the snapshot of a study is still there, if the study has one.

    Raises:
        DataError: somebody has deleted it.
    """
    snapshot = Snapshot.of_study(Storage(config.study_dir))
    if snapshot is not None and not files.exists(snapshot.url):
        raise DataError(
            f"{snapshot.url}, the snapshot that this study reads, no longer exists. Restore it, or begin a "
            "study in another study_dir"
        )


def check_frame(data: DataConfig, spark: SparkSession) -> str:
    """Check a catalog table or a query without reading its rows. Return why the rows may change, or "".

    Raises:
        ConfigError: there is no such table, the query is wrong, or a column is missing.
    """
    source, identity = _identified(data, lambda: spark, None)
    check_columns(data, [str(name) for name in source.columns])
    return identity.changing


def keep_snapshot(config: StudyConfig, session: SparkSession | None, frame: Frame | None) -> None:
    """Note that the study uses its snapshot, and log how the source has changed since.

    Args:
        session: the running session; None: the source is not looked at.
        frame: the DataFrame that was passed to `tune`.
    """
    data, storage = _data(config), Storage(config.study_dir)
    snapshot = Snapshot.of_study(storage)
    if snapshot is None:
        return
    SnapshotFolder(snapshot.folder).add_user(snapshot.key, storage)
    if session is None or (data.dataframe and frame is None):
        return
    try:
        _, identity = _identified(data, lambda: session, frame)
    except SparkHpoError as exc:
        logger.warning(
            "%s cannot be compared with its snapshot, which the study keeps to: %s", data.place, exc
        )
        return
    if identity.key != snapshot.key and not identity.changing:
        changes = "; ".join(identity.differences(snapshot.source))
        logger.warning(
            "%s has changed since the study began. The study keeps to its snapshot of %d rows. Changes: %s",
            data.place,
            snapshot.rows,
            changes,
        )


def _identified(
    data: DataConfig, start: Callable[[], SparkSession], frame: Frame | None
) -> tuple[Frame, FrameIdentity]:
    from spark_hpo.prepare.catalog import open_frame
    from spark_hpo.snapshots.frame_identity import identify

    if frame is None:
        with within("data"):
            frame = open_frame(start(), table=data.table, query=data.query, version=data.version)
    return frame, identify(frame, data.place)


def _data(config: StudyConfig) -> DataConfig:
    assert config.data is not None, "the caller has checked that the study has a table"
    return config.data
