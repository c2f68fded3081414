"""The study under examination, and the results of earlier checks that later ones need."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spark_hpo.backend.spark.cluster import Cluster
from spark_hpo.config import StudyConfig
from spark_hpo.data.table import Table
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.study.search import Search

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(kw_only=True)
class Context:
    """One study. `Check.needs` makes sure that a field is set before a check reads it."""

    study_file: str
    overrides: Sequence[str] = ()
    spark: SparkSession | None = None  # the caller's, or the one that a check started
    table: Table | None = None  # None: the study has none, or it is not prepared yet
    config: StudyConfig = field(init=False)
    plan: StudyPlan = field(init=False)
    search: Search = field(init=False)
    cluster: Cluster = field(init=False)
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
