"""Studies that use a session of the caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.backend.spark.session import start_session
from spark_hpo.config import build_config
from spark_hpo.driver.run import run_study
from tests.support.mlflow_database import write_database

pytestmark = pytest.mark.spark


def test_passed_session_takes_precedence_over_the_active_one(spark: Any) -> None:
    other = spark.newSession()
    assert start_session("mine", {}, spark=other) is other
    assert start_session("mine", {}) is not other


def test_study_leaves_the_settings_of_a_session_unchanged(spark: Any, tmp_path: Path) -> None:
    def train(ctx: Any) -> None:
        ctx.report({"score": 1.0}, resource=ctx.resource.stop)

    session = spark.newSession()
    session.conf.set("spark.sql.shuffle.partitions", "3")
    before = dict(session.sparkContext.getConf().getAll()), session.conf.get("spark.sql.session.timeZone")
    record = {
        "name": "mine",
        "study_dir": str(tmp_path / "study"),
        "task": "train",
        "objective": {"metric": "score", "mode": "max"},
        "space": {"x": {"type": "uniform", "low": 0.0, "high": 1.0}},
        "search": {"scheduler": "full", "max_resource": 1},
        "budget": {"trials": 2},
        "spark": {"spark.sql.shuffle.partitions": "7"},  # for a session that it would have to start
        "mlflow": {"tracking_uri": write_database(tmp_path)},
    }
    run_study(build_config(record, place="test"), task=train, spark=session)
    after = dict(session.sparkContext.getConf().getAll()), session.conf.get("spark.sql.session.timeZone")
    assert after == before
    assert session.conf.get("spark.sql.shuffle.partitions") == "3"
    assert session.range(10).count() == 10
