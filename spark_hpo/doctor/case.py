"""The study that is examined, and what earlier checks have found out about it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spark_hpo.backend.spark.cluster import Cluster
from spark_hpo.config import StudyConfig
from spark_hpo.data.table import Table
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.study.search import Search

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass
class Case:
    """One study, as its file says it. Checks fill in what others need."""

    place: str  # of the study file
    overrides: Sequence[str] = ()
    spark: SparkSession | None = None  # the caller's, or the one that was started; None: there is none yet
    _config: StudyConfig | None = None
    table: Table | None = None
    _plan: StudyPlan | None = None
    _search: Search | None = None
    _cluster: Cluster | None = None
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def config(self) -> StudyConfig:
        assert self._config is not None, "checks that need it come after the one that reads it"
        return self._config

    @config.setter
    def config(self, config: StudyConfig) -> None:
        self._config = config
        self._undo.callback(_remove_empty_folders, _missing_folders(config.study_dir))

    @property
    def plan(self) -> StudyPlan:
        assert self._plan is not None, "checks that need it come after the one of the code"
        return self._plan

    @property
    def search(self) -> Search:
        assert self._search is not None, "checks that need it come after the one of the code"
        return self._search

    def planned(self, plan: StudyPlan, search: Search) -> None:
        """Keep the plan for later checks."""
        self._plan, self._search = plan, search

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "checks that need it come after the one that starts Spark"
        return self._cluster

    @cluster.setter
    def cluster(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def afterwards(self, undo: Callable[[], object]) -> None:
        """What is done when the examination ends, the last one first."""
        self._undo.callback(undo)

    def close(self) -> None:
        """Leave nothing behind."""
        self._undo.close()


def _missing_folders(url: str) -> list[Path]:
    """The local folders that a study directory would need and that are not there, the innermost first."""
    if "://" in url and not url.startswith("file://"):
        return []
    folder = Path(os.path.abspath(url.removeprefix("file://")))
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            folder.rmdir()
