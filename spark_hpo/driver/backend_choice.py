"""Chooses the backend of a study, without importing torch or Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_hpo.backend.spark.session import is_spark_at_hand
from spark_hpo.config import StudyConfig
from spark_hpo.config.databricks import is_runtime

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def with_backend(config: StudyConfig, spark: SparkSession | None = None) -> StudyConfig:
    """Return the configuration with the backend that `auto` stands for.

    Args:
        config: the study.
        spark: the caller's session.
    """
    if config.backend != "auto":
        return config
    data = config.data
    needs_spark = data is not None and bool(data.table or data.query)  # only Spark can read them
    has_spark = spark is not None or is_runtime() or needs_spark or is_spark_at_hand(config.spark)
    return config.model_copy(update={"backend": "spark" if has_spark else "local"})
