"""`tune` in a Spark session of the caller, which it leaves unchanged."""

from __future__ import annotations

import doctest
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from spark_hpo import tune, tuning
from spark_hpo.errors import ConfigError
from tests.support.tables import write_clusters
from tests.support.workspace import wait_for

pytestmark = pytest.mark.spark

LOGGER = logging.getLogger("spark_hpo")
SPACE = {"x": {"type": "uniform", "low": -1, "high": 1}}


def type_of(java_object: Any) -> str:
    return str(java_object.getClass().getName())


def state_of(spark: SparkSession) -> dict[str, Any]:
    """Return the state of a session and its process that a study could change."""
    context = spark.sparkContext
    jvm_context = context._jsc.sc()
    log4j = context._jvm.org.apache.logging.log4j.LogManager
    return {
        "settings of the application": dict(context.getConf().getAll()),
        "settings of the session": {row.key: row.value for row in spark.sql("SET").collect()},
        "local properties": jvm_context.getLocalProperties().toString(),
        "tags": set(context.getJobTags()),
        "log level": log4j.getRootLogger().getLevel().toString(),
        "listeners": sorted(type_of(each) for each in jvm_context.listenerBus().listeners()),
        "files": jvm_context.addedFiles().toString(),
        "streams": len(spark.streams.active),
        "views": {table.name for table in spark.catalog.listTables()},
        "persisted": jvm_context.getPersistentRDDs().size(),
        "active session": SparkSession.getActiveSession(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "working directory": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": [
            (logger.level, list(logger.handlers)) for logger in map(logging.getLogger, (None, "spark_hpo"))
        ],
    }


def test_application_that_does_not_start_says_the_innermost_reason(spark: SparkSession) -> None:
    from spark_hpo.backend.spark.start_errors import explained_start

    java: Any = spark.sparkContext._jvm
    failing = {
        "UnknownHostException: a.invalid": lambda: java.java.net.InetAddress.getByName("a.invalid"),
        "NumberFormatException: For": lambda: java.org.apache.spark.util.Utils.parseHostPort("a:x"),
    }
    for reason, fail in failing.items():
        with pytest.raises(ConfigError, match=reason) as refused, explained_start():
            fail()
        assert "JAVA_HOME" not in str(refused.value)


@pytest.mark.parametrize("passed", [True, False], ids=["passed", "found"])
def test_tune_leaves_a_session_unchanged(
    spark: SparkSession, tmp_path: Path, mlflow_uri: str, passed: bool
) -> None:
    def train(ctx: Any) -> None:
        ctx.report({"loss": ctx.params["x"] ** 2}, resource=ctx.resource.stop)

    context = spark.sparkContext
    context.setLocalProperty("spark.scheduler.pool", "mine")
    context.addJobTag("mine")
    spark.conf.set("spark.sql.shuffle.partitions", "3")
    try:
        # Spark makes listeners of its own at the first jobs of a kind, and when it is asked for its streams.
        state_of(spark)
        assert context.parallelize(range(4), 2).barrier().mapPartitions(lambda rows: rows).count() == 4
        assert spark.range(100).mapInPandas(lambda rows: rows, "id long").count() == 100
        before = state_of(spark)
        result = tune(
            train,
            SPACE,
            metric="loss",
            mode="min",
            trials=3,
            world_size=2,
            storage=tmp_path / "study",
            mlflow={"tracking_uri": mlflow_uri},
            spark=spark if passed else None,
        )
        assert len(result.trials) == 3
        wait_for(lambda: not context.statusTracker().getActiveJobsIds(), "the end of the study's jobs")
        after = state_of(spark)
        for what, value in before.items():
            assert after[what] == value, what
        assert spark.range(100).repartition(4).count() == 100
        assert context.parallelize(range(10), 2).map(lambda number: number + 1).sum() == 55
    finally:
        context.setLocalProperty("spark.scheduler.pool", None)
        context.removeJobTag("mine")
        spark.conf.unset("spark.sql.shuffle.partitions")


@pytest.mark.cluster
def test_tune_leaves_a_connect_session_unchanged(connect: Any, tmp_path: Path, mlflow_uri: str) -> None:
    def state() -> Any:
        return {row.key: row.value for row in connect.sql("SET").collect()}, connect.getTags()

    connect.addTag("mine")
    before = state()
    result = tune(
        lambda ctx: {"loss": ctx.params["x"] ** 2},
        SPACE,
        metric="loss",
        mode="min",
        trials=2,
        storage=tmp_path / "study",
        mlflow={"tracking_uri": mlflow_uri},
        spark=connect,
    )
    assert len(result.trials) == 2
    assert state() == before
    assert connect.range(100).count() == 100
    connect.removeTag("mine")


def test_tune_trains_a_task_of_this_process_and_loads_its_model(
    spark: SparkSession, tmp_path: Path, mlflow_uri: str
) -> None:
    import pandas as pd

    from spark_hpo.train.tasks.tabular import TabularTask

    class Mine(TabularTask):
        pass

    write_clusters(tmp_path / "table")
    result = tune(
        Mine,
        {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        metric="accuracy",
        mode="max",
        data=tmp_path / "table",
        trials=2,
        max_resource=2,
        storage=tmp_path / "study",
        training={"batch_size": 16},
        mlflow={"tracking_uri": mlflow_uri},
        spark=spark,
    )
    assert type(result.best_model().task) is Mine
    rows = pd.read_parquet(tmp_path / "table/test")
    answers = result.best_model().predict(rows)["prediction"]
    assert (answers == rows["side"]).mean() == pytest.approx(result.test["accuracy"])


def test_example_in_the_docstring_of_tune_runs(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    found = doctest.DocTestFinder(recurse=False).find(tuning.tune, "tune")
    assert sum(len(test.examples) for test in found) == 4
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.failures == 0


def test_tune_needs_a_storage_that_executors_elsewhere_can_reach(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    search: Callable[..., Any] = tune
    monkeypatch.setattr("spark_hpo.backend.spark.session.is_local", lambda cluster: False)
    with pytest.raises(ConfigError, match=r"storage is missing.*studies/train"):
        search(train_nothing, SPACE, metric="loss", mode="min", name="train")


def train_nothing(ctx: Any) -> None:
    ctx.report({"loss": 0.0}, resource=ctx.resource.stop)
