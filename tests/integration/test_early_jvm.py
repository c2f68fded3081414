"""Spark's JVM starts while the driver imports its modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tables import write_clusters
from tests.support.workspace import CONFIG, ROOT

pytestmark = pytest.mark.spark

# The JVM writes to the same pipe: the process is at its end when that one is.
_START = """
import json, os, sys, threading
from spark_hpo.backend.spark.session import start_jvm
start_jvm(json.loads(sys.argv[1]), is_databricks="DATABRICKS_RUNTIME_VERSION" in os.environ)
begun = [thread for thread in threading.enumerate() if thread.name == "spark_hpo-jvm"]
for thread in begun:
    thread.join(60)
from pyspark import SparkContext
print(json.dumps([len(begun), SparkContext._gateway is not None]))
"""
_FAIL = """
from spark_hpo.backend.spark.session import start_session
from spark_hpo.errors import ConfigError
try:
    start_session("fails", {"spark.master": "local[1]"})
except ConfigError as exc:
    print(exc)
"""
_RUN = """
import sys
from spark_hpo.backend.spark import session
def start_jvm(settings, *, is_databricks):
    print(settings["spark.master"], "torch" in sys.modules, "mlflow" in sys.modules)
    sys.exit(7)
session.start_jvm = start_jvm
from spark_hpo.cli import main
main()
"""


def python(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != "PYSPARK_GATEWAY_PORT"}
    return subprocess.run(
        [sys.executable, "-c", *words],
        cwd=folder,
        env={**known, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )


def test_early_jvm_starts_beside_the_driver_and_ends_with_it(tmp_path: Path) -> None:
    assert json.loads(python(_START, "{}", folder=tmp_path).stdout.splitlines()[-1]) == [1, True]


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"spark.remote": "sc://elsewhere"}, {}),
        ({}, {"SPARK_REMOTE": "sc://elsewhere"}),
        ({}, {"PYSPARK_GATEWAY_PORT": "1"}),  # of spark-submit
        ({}, {"DATABRICKS_RUNTIME_VERSION": "17.3"}),
        ({}, {"JAVA_HOME": "/nowhere"}),  # who starts the session says so
    ],
)
def test_early_jvm_is_not_started_if_no_session_would_use_it(
    tmp_path: Path, settings: dict[str, str], environment: dict[str, str]
) -> None:
    done = python(_START, json.dumps(settings), folder=tmp_path, **environment)
    assert json.loads(done.stdout) == [0, False]


@pytest.mark.parametrize("words", [["run", "tune.yaml"], ["resume", "tune.yaml"]])
def test_run_starts_the_jvm_before_heavy_imports(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "tune.yaml").write_text(CONFIG)
    write_clusters(tmp_path / "table")
    done = python(_RUN, *words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (7, "local[2] False False\n")
    done = python(_RUN, *words, "--sync", folder=tmp_path)
    assert done.returncode == 2, "there is no study to write about, and no Spark for it"


def test_session_that_does_not_start_says_the_reason_of_spark(tmp_path: Path) -> None:
    said = python(_FAIL, folder=tmp_path, SPARK_LOCAL_IP="no-such-host.invalid").stdout
    assert "UnknownHostException: no-such-host.invalid" in said
    assert "/etc/hosts" in said
    assert "JAVA_HOME" not in said, "Java is not to blame"
