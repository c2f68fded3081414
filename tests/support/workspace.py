"""A directory with a study file, in which `jobs/tune.py` runs as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_hpo.cli import tune
from tests.support.command_line import run_in_process
from tests.support.mlflow_database import write_database
from tests.support.tables import write_clusters

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0

CONFIG = """
name: clusters
study_dir: study
seed: 3
task: tabular
data: {path: table, reader: auto}
objective: {metric: accuracy, mode: max}
space:
  learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}
  hidden_units: {type: int, low: 2, high: 16}
search: {sampler: tpe, scheduler: hyperband, max_resource: 9}
budget: {trials: 12, finish: 0}
training: {batch_size: 16}
resources: {world_size: 2, max_concurrent: 1}
spark: {spark.master: "local[2]", spark.ui.enabled: "false"}
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""


class Workspace:
    """A directory with a table and a study file, where `jobs/tune.py` is run."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, **(environment or {})}
        write_clusters(folder / "table")
        write_database(folder)
        (folder / "tune.yaml").write_text(CONFIG)

    def start(self, *overrides: str, log: str = "log.txt") -> subprocess.Popen[bytes]:
        return self.popen(
            [sys.executable, str(ROOT / "jobs/tune.py"), "--config", "tune.yaml", *overrides], log
        )

    def popen(self, command: Sequence[str], log: str = "log.txt") -> subprocess.Popen[bytes]:
        with (self.folder / log).open("wb") as out:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def run(self, *overrides: str, code: int = 0) -> dict[str, Any]:
        process = self.start(*overrides)
        assert process.wait(LIMIT_S) == code, self.log[-4000:]
        return self.answer if code == 0 else {}

    def run_in_process(self, *overrides: str) -> dict[str, Any]:
        """Run the study in this process, with its Spark session if it has one."""
        done = run_in_process(tune, ["--config", "tune.yaml", *overrides], self.folder)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def answer(self) -> dict[str, Any]:
        """Return the job's last line of JSON. The JVM may write further lines after it."""
        answers = [line for line in self.log.splitlines() if line.startswith('{"study"')]
        return json.loads(answers[-1])

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def events(self, study: str = "study") -> list[dict[str, Any]]:
        lines = []
        for file in sorted((self.folder / study / "journal").glob("*.jsonl")):
            lines += [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        return lines

    def reported(self, study: str = "study") -> list[dict[str, Any]]:
        return [e for e in self.events(study) if e["event"] == "reported" and e["split"] == "validation"]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.02)
