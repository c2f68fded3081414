"""Studies of catalog tables, queries and DataFrames, on a real Spark."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_hpo import prepare, tune
from spark_hpo.cli import main
from spark_hpo.config import StudyConfig, load_config
from spark_hpo.data.table import open_table
from spark_hpo.doctor import Status, examine
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.prepare.catalog import open_frame
from spark_hpo.snapshots.frame_identity import identify
from spark_hpo.snapshots.snapshot_folder import Snapshot
from spark_hpo.starter import start_study
from spark_hpo.study_dir.storage import Storage
from tests.support.documents import blocks
from tests.support.standalone import connect_server
from tests.support.tables import clusters_study

pytestmark = pytest.mark.spark

SPACE = {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}}


def clouds(rows: int = 600, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    side = rng.integers(0, 2, rows)
    x = rng.normal(size=rows) * 0.8 + side * 2 - 1
    names = np.array(["left", "right"])[side]
    day = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(rows), unit="h")
    return pd.DataFrame({"x": x, "y": rng.normal(size=rows), "day": day, "side": names})


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Parquet folder, which is also the table `clouds` and the temporary view `clouds_view`."""
    folder = str(tmp_path_factory.mktemp("tables") / "lake")
    spark.createDataFrame(clouds()).write.parquet(folder)
    spark.sql(f"CREATE TABLE clouds USING parquet LOCATION '{folder}'")
    spark.read.parquet(folder).createOrReplaceTempView("clouds_view")
    yield folder
    spark.sql("DROP TABLE IF EXISTS clouds")
    spark.catalog.dropTempView("clouds_view")


@pytest.fixture
def moving_lake(spark: SparkSession, tmp_path: Path, lake: str) -> Iterator[str]:
    """A copy of the lake that a test may change. It is also the table `moving`."""
    folder = shutil.copytree(lake, tmp_path / "moving")
    spark.sql(f"CREATE TABLE moving USING parquet LOCATION '{folder}'")
    yield str(folder)
    spark.sql("DROP TABLE IF EXISTS moving")


def study(folder: Path, name: str, mlflow_uri: str, *, trials: int = 2, **data: Any) -> StudyConfig:
    return clusters_study(
        folder,
        name=name,
        study_dir=str(folder / "studies" / name),
        data={"label": "side", **data},
        budget={"trials": trials},
        search={"max_resource": 1},
        mlflow={"tracking_uri": mlflow_uri, "promote": "never"},
    )


def gc(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gc", *arguments])
    assert ended.value.code in (0, None)


def snapshot_of(config: StudyConfig) -> Snapshot:
    snapshot = Snapshot.of_study(Storage(config.study_dir))
    assert snapshot is not None
    return snapshot


def test_studies_of_one_query_share_a_snapshot_to_which_a_resume_keeps(
    spark: SparkSession, tmp_path: Path, moving_lake: str, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    query = "SELECT x, y, side FROM moving WHERE y > -3"
    first, second = (study(tmp_path, name, mlflow_uri, query=query) for name in ("first", "second"))
    for config in (first, second):
        assert run_study(config, spark=spark).best.metrics["accuracy"] > 0.8
    snapshot = snapshot_of(first)
    assert snapshot_of(second) == snapshot
    assert snapshot.folder == str(tmp_path / "studies/.snapshots")
    assert len(list(Path(snapshot.folder, snapshot.key).glob("data-*"))) == 1

    # The table moves on: the resumed study says so, and reads the same rows.
    spark.createDataFrame(clouds(50, seed=6)).write.mode("append").parquet(moving_lake)
    spark.catalog.refreshTable("moving")
    rows = open_table(f"{first.study_dir}/table").rows
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        run_study(study(tmp_path, "first", mlflow_uri, query=query, trials=3), spark=spark)
    assert "data.query has changed since the study began" in caplog.text
    assert open_table(f"{first.study_dir}/table").rows == rows == snapshot.rows
    third = study(tmp_path, "third", mlflow_uri, query=query)
    run_study(third, spark=spark)
    assert snapshot_of(third).rows > snapshot.rows

    # Not even the end of the table ends the study.
    spark.sql("DROP TABLE moving")
    shutil.rmtree(moving_lake)
    result = run_study(study(tmp_path, "first", mlflow_uri, query=query, trials=4), spark=spark)
    assert result.study.progress.replayed == 3

    # Each snapshot goes with its last study.
    Storage(third.study_dir).remove()
    gc(first.study_dir)
    assert [path.name for path in Path(snapshot.folder).iterdir()] == [snapshot.key]
    Storage(first.study_dir).remove()
    Storage(second.study_dir).remove()
    gc("--snapshots", snapshot.folder)
    assert list(Path(snapshot.folder).iterdir()) == []


def test_a_temporary_view_is_a_table(spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str) -> None:
    config = study(tmp_path, "named", mlflow_uri, table="clouds_view", drop=["day"])
    assert run_study(config, spark=spark).best.metrics["accuracy"] > 0.8
    assert {f.name for f in open_table(f"{config.study_dir}/table").schema.features} == {"x", "y"}


def call(folder: Path, frame: Any, mlflow_uri: str, **settings: Any) -> Any:
    return tune(
        "tabular",
        SPACE,
        metric="accuracy",
        mode="max",
        data=frame,
        trials=settings.pop("trials", 1),
        max_resource=1,
        storage=folder / "studies/framed",
        backend="inline",
        mlflow={"tracking_uri": mlflow_uri, "promote": "never"},
        **settings,
    )


def test_tune_takes_a_spark_dataframe_and_resumes_without_it(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str
) -> None:
    frame = spark.table("clouds").where("y < 3").withColumn("xy", F.col("x") * F.col("y"))
    call(tmp_path, frame, mlflow_uri, label="side")
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(tmp_path / "studies/framed"), "budget.trials=2"])
    assert ended.value.code in (0, None)
    result = call(tmp_path, frame, mlflow_uri, label="side", trials=3)
    assert result.study.progress.replayed == 2
    stored = pq.read_table(snapshot_of(result.config).url)
    assert stored.schema.field("day").type == pa.timestamp("us", tz="UTC")
    assert stored.num_rows == frame.count()


def test_the_first_study_of_a_dataframe_is_as_its_page_says(
    spark: SparkSession, tmp_path: Path, lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = [block for block in blocks("docs/first-study.md") if block.run_by]
    program = block.text.replace('mode="max",', 'mode="max", trials=1, max_resource=1, backend="inline",')
    orders = spark.table("clouds").withColumnRenamed("side", "returned")
    names: dict[str, Any] = {"orders": orders}
    exec(program, names)
    assert names["result"].best.metrics["accuracy"] > 0.6


def test_tune_takes_a_pandas_dataframe(spark: SparkSession, tmp_path: Path, mlflow_uri: str) -> None:
    frame = clouds()
    frame["size"] = pd.Categorical(["small", "large"] * 300)
    result = call(tmp_path, {"dataframe": frame, "label": "side", "drop": ["day"]}, mlflow_uri)
    schema = open_table(str(tmp_path / "studies/framed/table")).schema
    assert {feature.name for feature in schema.features} == {"x", "y", "size"}
    key = snapshot_of(result.config).key
    assert identify(frame.copy(), "frame").key == key
    frame.loc[3, "x"] = 100.0
    assert identify(frame, "frame").key != key


@pytest.fixture(scope="module")
def connect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_server(tmp_path_factory.mktemp("connect"), Path(sys.executable)) as url:
        yield url


def changing(spark: SparkSession) -> dict[str, Callable[[], DataFrame]]:
    table = spark.table("clouds")
    return {
        "rand": lambda: table.withColumn("r", F.rand()),
        "rand with a seed": lambda: table.withColumn("r", F.rand(3)),
        "the time": lambda: table.withColumn("now", F.current_timestamp()),
        "numbered rows": lambda: table.withColumn("id", F.monotonically_increasing_id()),
        "limit": lambda: table.limit(5),
        "sql limit": lambda: spark.sql("SELECT * FROM (SELECT x FROM clouds LIMIT 3) WHERE x > 0"),
        "rows of this process": lambda: spark.createDataFrame([(1, 2)], "a int, b int"),
        "values": lambda: spark.sql("SELECT * FROM VALUES (1), (2) AS t(a)"),
        "python": lambda: table.mapInPandas(lambda batches: batches, table.schema),
        "udf": lambda: table.withColumn("z", F.udf(lambda x: x + 1, "double")("x")),
    }


def steady(spark: SparkSession, lake: str) -> dict[str, Callable[[], DataFrame]]:
    return {
        "path": lambda: spark.read.parquet(lake),
        "view": lambda: spark.table("clouds_view"),
        "aggregate": lambda: spark.sql("SELECT side, count(*) AS n, avg(x) AS x FROM clouds GROUP BY side"),
        "join": lambda: spark.sql("SELECT a.x, b.y FROM clouds a JOIN clouds_view b USING (day)"),
        "with": lambda: spark.sql("WITH a AS (SELECT * FROM clouds) SELECT * FROM a JOIN a b USING (day)"),
        "subquery": lambda: spark.sql("SELECT * FROM clouds WHERE x > (SELECT avg(x) FROM clouds_view)"),
        "exists": lambda: spark.sql("SELECT * FROM clouds WHERE day IN (SELECT day FROM clouds_view)"),
        "order": lambda: spark.sql("SELECT * FROM clouds ORDER BY day LIMIT 5"),
        "window": lambda: spark.sql(
            "SELECT x, sum(y) OVER (PARTITION BY side ORDER BY day) AS s FROM clouds"
        ),
        "union": lambda: spark.table("clouds").union(spark.table("clouds")).distinct(),
        "range": lambda: spark.range(10).toDF("n"),
        "many columns": lambda: spark.table("clouds").select(*(F.col("x").alias(f"c{i}") for i in range(60))),
    }


def test_identify_gives_equal_plans_over_equal_files_one_key(
    spark: SparkSession, lake: str, moving_lake: str
) -> None:
    keys = {}
    for name, frame in steady(spark, lake).items():
        first, second = identify(frame(), name), identify(frame(), name)
        assert (first.changing, second.changing) == ("", ""), name
        assert first.key == second.key, name
        keys[name] = first.key
    assert len(set(keys.values())) == len(keys)
    columns = [F.col("x").alias(f"c{i}") for i in range(60)]
    other = spark.table("clouds").select(*columns[:-1], F.col("y").alias("c59"))
    assert identify(other, "other").key != keys["many columns"]

    before = identify(spark.read.parquet(moving_lake), "path")
    spark.createDataFrame(clouds(3)).write.mode("append").parquet(moving_lake)
    assert identify(spark.read.parquet(moving_lake), "path").key != before.key


def test_identify_says_why_rows_may_change(spark: SparkSession, lake: str) -> None:
    for name, frame in changing(spark).items():
        first, second = identify(frame(), name), identify(frame(), name)
        assert first.changing, name
        assert first.key != second.key, name


def test_identify_sees_the_version_of_a_delta_table(spark: SparkSession, moving_lake: str) -> None:
    before = identify(spark.read.parquet(moving_lake), "delta")
    log = Path(moving_lake, "_delta_log")
    log.mkdir()
    (log / f"{4:020}.json").write_text("{}")
    after = identify(spark.read.parquet(moving_lake), "delta")
    assert after.source["versions"] == {moving_lake: 4}
    assert after.key != before.key
    assert "version" in "; ".join(after.differences(before.source))


def test_a_changing_dataframe_has_a_snapshot_for_each_study(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    query = "SELECT *, rand() AS noise FROM clouds"
    configs = [study(tmp_path, name, mlflow_uri, query=query, trials=1) for name in ("first", "second")]
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        for config in configs:
            run_study(config, spark=spark)
    assert "rand()" in caplog.text
    first, second = map(snapshot_of, configs)
    assert first.url != second.url
    run_study(study(tmp_path, "first", mlflow_uri, query=query), spark=spark)
    assert snapshot_of(configs[0]) == first


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"table": "no_such_table"}, "data.table"),
        ({"query": "SELEKT 1"}, "data.query"),
        ({"query": "SELECT * FROM no_such_table"}, "data.query"),
        ({"table": "clouds", "label": "sides"}, "data.label"),
        ({"table": "clouds", "drop": ["z"]}, "data.drop"),
        ({"table": "clouds", "version": 3}, "data.version"),
    ],
)
def test_wrong_settings_of_a_snapshot_are_named(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str, data: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_study(study(tmp_path, "wrong", mlflow_uri, **data), spark=spark)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM clouds WHERE x > 1000",
        "SELECT x, x, side FROM clouds",
        "SELECT CAST(side AS INT) AS x, side FROM clouds",
    ],
    ids=["no rows", "a column twice", "a cast that fails"],
)
def test_rows_that_cannot_be_stored_are_one_error(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str, query: str
) -> None:
    config = study(tmp_path, "wrong", mlflow_uri, query=query)
    spark.conf.set("spark.sql.ansi.enabled", "true")
    try:
        with pytest.raises(DataError) as caught:
            run_study(config, spark=spark)
    finally:
        spark.conf.unset("spark.sql.ansi.enabled")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "studies").rglob("*.parquet")) == []


def test_a_snapshot_that_was_deleted_is_named(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str
) -> None:
    config = study(tmp_path, "gone", mlflow_uri, table="clouds", trials=1)
    run_study(config, spark=spark)
    snapshot = snapshot_of(config)
    Storage(snapshot.url).remove()
    with pytest.raises(DataError, match=snapshot.key):
        run_study(study(tmp_path, "gone", mlflow_uri, table="clouds"), spark=spark)


@pytest.mark.parametrize("table", ["default.clouds", "SELECT * FROM clouds"])
def test_init_and_doctor_take_what_spark_can_read(
    spark: SparkSession, tmp_path: Path, lake: str, mlflow_uri: str, table: str
) -> None:
    start = start_study(
        table, label="side", study_dir=str(tmp_path / "studies/begun"), tracking_uri=mlflow_uri
    )
    assert start.config.name == ("clouds" if table == "default.clouds" else "query")
    assert table in (start.config.data.table, start.config.data.query)
    file = tmp_path / "study.yaml"
    file.write_text(start.text)
    [found] = [finding for finding in examine(str(file), spark=spark) if finding.check == "table"]
    assert found.status is Status.OK, found
    quick = ["backend=inline", "budget.trials=1", "search={max_resource: 1}", "mlflow.promote=never"]
    config = load_config(file, [*quick, "search.enqueue=[]"])
    assert run_study(config, spark=spark).best.metrics["accuracy"] > 0.6


def test_prepare_takes_what_spark_can_read(spark: SparkSession, tmp_path: Path, lake: str) -> None:
    source = "SELECT * FROM clouds"
    prepared = prepare.csv(spark, str(tmp_path / "out"), input=source, label="side", clean=True)
    assert sum(prepared.rows.values()) == 600
    assert {f.source for f in open_table(prepared.output).schema.features} == {"x", "y", "day"}
    assert not prepare.csv(spark, str(tmp_path / "out"), input=source, label="side", clean=True).fresh
    with pytest.raises(ConfigError) as caught:
        prepare.csv(spark, str(tmp_path / "other"), input="default.no_such_table", label="side")
    assert caught.value.key == "input"


def test_open_frame_reads_tables_and_queries(spark: SparkSession, lake: str) -> None:
    assert open_frame(spark, table="clouds").columns == ["x", "y", "day", "side"]
    assert open_frame(spark, query="SELECT 1 AS one").columns == ["one"]


CONNECT_PROGRAM = """
import sys
from pyspark.sql import SparkSession
from spark_hpo import prepare, tune
from spark_hpo.snapshots.frame_identity import identify

spark = SparkSession.builder.getOrCreate()

def run(trials):
    frame = spark.read.parquet(sys.argv[1]).where("y < 3")
    result = tune(
        *("tabular", {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}}),
        metric="accuracy", mode="max", data=frame, label="side", trials=trials, max_resource=1,
        storage=sys.argv[2], mlflow={"tracking_uri": sys.argv[3], "promote": "never"},
    )
    return frame, result

frame, _ = run(1)
assert identify(frame, "frame").key == identify(spark.read.parquet(sys.argv[1]).where("y < 3"), "frame").key
assert identify(spark.createDataFrame([(1, 2)], "a int, b int"), "frame").changing
_, result = run(2)
assert result.study.progress.replayed == 1
"""


@pytest.mark.slow
def test_tune_takes_a_dataframe_of_spark_connect(tmp_path: Path, mlflow_uri: str, connect_url: str) -> None:
    table = pa.Table.from_pandas(clouds().drop(columns="day"), preserve_index=False)
    pq.write_table(table, tmp_path / "clouds.parquet")
    arguments = [tmp_path / "clouds.parquet", tmp_path / "studies/connected", mlflow_uri]
    # Without Java: a study that reached for a JVM could not start one.
    environment = {**os.environ, "SPARK_REMOTE": connect_url, "JAVA_HOME": "/nonexistent"}
    command = [sys.executable, "-c", CONNECT_PROGRAM, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    snapshot = Snapshot.of_study(Storage(tmp_path / "studies/connected"))
    assert snapshot is not None
    assert snapshot.rows == 600
