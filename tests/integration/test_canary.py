"""A study with credentials in every place that can have one, and a task that prints them: none is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mlflow_database import write_database
from tests.support.mlflow_server import Server
from tests.support.workspace import Workspace

CANARY = "c4n4ry-Sup3r-S3cret"
NAMED = "c4n4ry-by-its-name"  # known from the name of the variable alone

TASK = """
import logging, os
from spark_hpo.train.tasks.tabular import TabularTask

class Spilling(TabularTask):
    def build_model(self):
        logging.getLogger("spark_hpo.spilling").warning("key %s", os.environ["HF_TOKEN"])
        if self.params["hidden_units"] > 4:
            raise OSError(f"403 at s3://me:c4n4ry-Sup3r-S3cret@bucket: {os.environ['HF_TOKEN']}")
        return super().build_model()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """An MLflow server without authentication, which a proxy would add."""
    (tmp_path / "served").mkdir()
    server = Server(write_database(tmp_path / "served"), tmp_path / "served/artifacts")
    server.start()
    yield server
    server.kill()


def test_study_with_credentials_everywhere_stores_and_shows_none(tmp_path: Path, server: Server) -> None:
    secrets = {"HF_TOKEN": NAMED, "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_ACCESS_KEY_ID": CANARY}
    work = Workspace(tmp_path, secrets)
    (tmp_path / "spilling.py").write_text(TASK)
    result = work.run(
        "--log-file=events.txt",
        "backend=inline",
        "task=spilling.py:Spilling",
        "resources.world_size=1",
        "search.max_resource=1",
        "search.scheduler=full",
        "search.enqueue=[{learning_rate: 0.01, hidden_units: 3}, {learning_rate: 0.01, hidden_units: 9}]",
        "budget.trials=4",
        f"mlflow.tracking_uri=http://ann:{CANARY}@127.0.0.1:{server.port}",
        f"spark={{spark.hadoop.fs.s3a.secret.key: {CANARY}, spark.executorEnv.HF_TOKEN: {NAMED}}}",
    )
    assert result["trials"].get("failed"), "some have spilled it"
    assert result["model"], "and one is registered"
    assert "key ***" in (tmp_path / "events.txt").read_text()
    assert any((event.get("failure") or {}).get("message") for event in work.reported())
    looked_at = 0
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.name != "spilling.py" and "__pycache__" not in file.parts:
            data = file.read_bytes()
            # The model carries its code along, and this task's code has it.
            if b"class Spilling" not in data:
                assert CANARY.encode() not in data, file
            assert NAMED.encode() not in data, file
            looked_at += 1
    assert looked_at > 50, "journal, log, database and artifacts of MLflow"
