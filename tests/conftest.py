"""Settings and fixtures of all tests: one Spark session per process, and an MLflow database."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.class_archive import java_options
from tests.support.mlflow_database import write_database

# A shared machine may be slow, so no example has a deadline.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run, so that a failure comes from the change. make fuzz looks for new ones.
settings.register_profile("same", _COMMON, derandomize=True, max_examples=50)
settings.register_profile("fuzz", _COMMON, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
os.environ["PYSPARK_PYTHON"] = sys.executable
# The models are too small for threads. This must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_JVM_OPTIONS = os.environ.setdefault("SPARK_SUBMIT_OPTS", java_options())
# transformers reads it when it is imported. With the Hub out of reach, it would try again for 20 s.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No test needs the job queue of an MLflow server, whose processes take twice as long to start as the server.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
# For executors in local mode too. Removed when the tests end.
os.environ["SPARK_HPO_CACHE_DIR"] = _cache = tempfile.mkdtemp(prefix="spark_hpo-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

ROOT = Path(__file__).parent.parent
# Folders and files whose tests take about a second or more, or start processes.
_MEDIUM = (
    *("integration", "faults/test_quick_faults.py", "contract/test_backends.py"),
    *(
        "contract/test_plugins_contract.py",
        "repo/test_docs_site.py",
        "repo/test_gpu_check.py",
        "repo/test_wheel.py",
    ),
    *("contract/test_contributing.py", "contract/test_limits.py", "contract/test_raw_columns.py"),
    *("unit/porting", "unit/tracking", "unit/doctor", "unit/report/test_report_html.py"),
    *(
        "unit/report/test_pictures.py",
        "unit/driver/test_run.py",
        "unit/driver/test_cross_validation.py",
        "unit/data/test_fold_conditions.py",
        "unit/prepare/test_split_conditions.py",
        "unit/replay",
        "unit/study/test_incumbents.py",
    ),
    *("unit/train/test_store.py", "unit/train/test_watchdog.py", "unit/test_secrets.py"),
)
# Files that together take minutes: every method on Spark, whole applications, the programs of pages, the
# site, trainers of other packages.
_SLOW = (
    "repo/test_docs_site.py",
    *(
        f"integration/test_{name}.py"
        for name in (
            *("methods_on_spark", "porting", "porting_pages", "readme", "python_page", "in_a_notebook"),
            *("transformers", "lightning", "memory", "report_page", "early_jvm", "tensorboard"),
            *("app", "tune_in_a_session", "predict", "serving"),
        )
    ),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without garbage collections, and keep all that was imported out of later ones."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore the files of which `make test` or `make test-slow` runs no test: imports take seconds."""
    selected = config.option.markexpr
    if selected not in ("slow", "not slow") or not collection_path.name.startswith("test_"):
        return None
    is_slow = collection_path in [ROOT / "tests" / name for name in _SLOW]
    if selected == "not slow":
        return is_slow or None
    return None if is_slow or "mark.slow" in collection_path.read_text() else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the files above, and as medium what needs a JVM: `make test-fast` leaves it out."""
    medium = [ROOT / "tests" / name for name in _MEDIUM]
    slow = [ROOT / "tests" / name for name in _SLOW]
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
        if any(item.path.is_relative_to(path) for path in medium):
            item.add_marker(pytest.mark.medium)
        fixtures = getattr(item, "fixturenames", ())
        marks = {mark.name for mark in item.iter_markers()}
        if not marks.isdisjoint({"spark", "cluster"}) or not {"spark", "connect"}.isdisjoint(fixtures):
            item.add_marker(pytest.mark.medium)


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Restore the logging that a command line has set up for the whole process."""
    logger = logging.getLogger("spark_hpo")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture(autouse=True)
def _restored_jvm_options() -> Iterator[None]:
    """Undo that a command line keeps the JVMs quiet that start after it."""
    yield
    os.environ["SPARK_SUBMIT_OPTS"] = _JVM_OPTIONS


@pytest.fixture(autouse=True)
def _restored_mlflow_address() -> Iterator[None]:
    """Undo `mlflow.set_tracking_uri`, which holds for the whole process."""
    yield
    mlflow = sys.modules.get("mlflow.tracking._tracking_service.utils")
    if mlflow is not None and mlflow._tracking_uri is not None:
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for all tests that can share one."""
    return write_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """A local session with two task slots, and the settings of the package's own sessions."""
    from spark_hpo.backend.spark.session import start_session

    session = start_session(
        "tests",
        {"spark.master": "local[2]", "spark.ui.enabled": "false", "spark.log.level": "OFF"},
    )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A session on a Spark Connect server with two task slots."""
    import pyspark

    if pyspark.__version__.startswith("3."):
        pytest.skip("the pyspark of Spark 3.5 brings no Connect server")
    from pyspark.sql.connect.session import SparkSession

    from tests.support.standalone import connect_server

    with connect_server(tmp_path_factory.mktemp("connect"), Path(sys.executable)) as url:
        # pyspark.sql would refuse a second kind of session in this process.
        session = SparkSession.builder.remote(url).create()
        yield session
        # Before its server: at exit, the client of Spark 4.2 would wait for a missing server for minutes.
        session.stop()
