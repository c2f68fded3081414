"""What tests share: one Spark session, small tables, where the real data lies."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast a shared machine is says nothing about a test.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run: what a change breaks is the change's. New ones are looked for by make fuzz.
settings.register_profile("same", _COMMON, derandomize=True)
settings.register_profile("fuzz", _COMMON, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
os.environ["PYSPARK_PYTHON"] = sys.executable
# The models here are tiny: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No JVM of a test lives long enough for what its second compiler would find.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# Executors of local mode see it too; it goes when the tests end.
os.environ["SPARK_HPO_CACHE_DIR"] = _cache = tempfile.mkdtemp(prefix="spark_hpo-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Command lines set up logging for a whole process; here the next test is in the same one."""
    logger = logging.getLogger("spark_hpo")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for all tests to whom it does not matter which one: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """A local session with two task slots, set up as the package sets up its own."""
    from spark_hpo.backend.spark.session import start_session

    session = start_session(
        "tests",
        {"spark.master": "local[2]", "spark.ui.enabled": "false", "spark.log.level": "OFF"},
    )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A session on a Connect server with two task slots."""
    import pyspark

    if pyspark.__version__.startswith("3."):
        pytest.skip("the pyspark of Spark 3.5 brings no Connect server")
    from pyspark.sql.connect.session import SparkSession

    from tests.support.standalone import connect_server

    with connect_server(tmp_path_factory.mktemp("connect"), Path(sys.executable)) as url:
        # Not through pyspark.sql: a process has one kind of session there, and this one has the other.
        session = SparkSession.builder.remote(url).create()
        yield session
        # Before its server: at the exit of Python, Spark 4.2's client asks for minutes a server that is gone.
        session.stop()
