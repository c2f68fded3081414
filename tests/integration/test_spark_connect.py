"""A study on a Spark Connect server: no JVM, no SparkContext, and executors that cannot reach the driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.standalone import bare_python, connect_server
from tests.support.workspace import Workspace

pytestmark = pytest.mark.cluster

TASK = """
import os, pathlib
import spark_hpo
from spark_hpo.train.tasks.tabular import TabularTask

class Noted(TabularTask):
    def build_optimizer(self, model):
        (pathlib.Path(__file__).parent / "imported").touch()
        assert "spark_hpo.zip" in spark_hpo.__file__, spark_hpo.__file__
        return super().build_optimizer(model)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose executors cannot import the package."""
    folder = tmp_path_factory.mktemp("connect")
    with connect_server(folder, bare_python(folder / "python")) as url:
        yield url


def client(folder: Path, server: str) -> Workspace:
    # Without Java: a study that reached for a JVM could not start one.
    return Workspace(folder, {"SPARK_REMOTE": server, "JAVA_HOME": "/nonexistent"})


@pytest.mark.slow
def test_study_of_two_ranks_runs_on_a_connect_server(tmp_path: Path, server: str) -> None:
    workspace = client(tmp_path, server)
    (tmp_path / "noted.py").write_text(TASK)
    answer = workspace.run(
        *("spark={}", "task=noted.py:Noted", "budget.trials=3", "search.max_resource=3"),
        "search.scheduler=full",
    )
    assert answer["trials"]["completed"] == 3
    assert answer["segments"]["failed"] == 0
    assert answer["model"]["version"] == "1"
    assert "executors do not have spark_hpo; sending it to them" in workspace.log
    assert "slots for trials: 1" in workspace.log
    assert not (tmp_path / "imported").exists(), "the module came to the server as an artifact"


def test_connect_refuses_a_rendezvous_on_the_driver(tmp_path: Path, server: str) -> None:
    workspace = client(tmp_path, server)
    workspace.run("spark={}", "resources.rendezvous=driver", code=2)
    assert "resources.rendezvous" in workspace.log
    assert "(got 'driver')" in workspace.log


def test_missing_connect_server_gets_a_message_of_one_line(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, {"JAVA_HOME": "/nonexistent"})
    workspace.run('spark={spark.remote: "sc://127.0.0.1:1"}', "resources.slot_timeout_s=2", code=1)
    assert "sc://127.0.0.1:1: " in workspace.log
    assert "Traceback" not in workspace.log
