"""What tests share: one Spark session, small tables, where the real data lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["PYSPARK_PYTHON"] = sys.executable
# The models here are tiny: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """A local session with two task slots, set up as the package sets up its own."""
    from spark_hpo.backend.session import start_session

    session = start_session(
        "tests",
        {"spark.master": "local[2]", "spark.ui.enabled": "false", "spark.log.level": "OFF"},
    )
    yield session
    session.stop()
