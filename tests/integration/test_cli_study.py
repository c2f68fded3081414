"""The commands of `spark-hpo` on finished, running and killed studies, without Spark."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from spark_hpo import cli
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.predictor import Predictor
from tests.support.command_line import Done, run_in_process
from tests.support.mlflow_database import write_database
from tests.support.tables import write_clusters
from tests.support.workspace import LIMIT_S, wait_for

SPARK_HPO = [sys.executable, "-m", "spark_hpo"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "120",
}

COMMON = """
objective: {metric: accuracy, mode: max}
space:
  learning_rate: {type: loguniform, low: 1e-4, high: 1e-1}
search: {sampler: random, max_resource: 3}
backend: inline
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""
CLUSTERS = """
name: clusters
study_dir: studies/clusters
task: my_task.py:MyTask
data: {path: table}
budget: {trials: 4}
training: {batch_size: 16}
"""
TASK = """
from spark_hpo.train.tasks.tabular import TabularTask

class MyTask(TabularTask):
    pass
"""
SLOW = """
name: slow
study_dir: studies/slow
task: slow.py:train
budget: {trials: 6}
"""
# Its third call waits while there is a file `hold` beside it.
SLOW_LOOP = """
import pathlib, time

def train(ctx):
    folder = pathlib.Path(__file__).parent
    with (folder / "calls").open("a") as calls:
        calls.write(".")
    while (folder / "hold").exists() and (folder / "calls").stat().st_size > 2:
        time.sleep(0.05)
    for epoch in range(*ctx.resource):
        ctx.report({"accuracy": 1 - ctx.params["learning_rate"] / (epoch + 1)}, checkpoint={})
"""


def spark_hpo(*arguments: str, folder: Path, code: int = 0) -> Done:
    """Run a command in this process."""
    done = run_in_process(cli.main, arguments, folder)
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def spark_hpo_process(*arguments: str, folder: Path, code: int = 0, **environment: str) -> Done:
    """Run a command in a new process."""
    done = subprocess.run(
        [*SPARK_HPO, *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def last_json(done: Done) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a study of the clusters has run."""
    folder = tmp_path_factory.mktemp("command_line")
    write_clusters(folder / "table")
    write_database(folder)
    (folder / "my_task.py").write_text(TASK)
    (folder / "clusters.yaml").write_text(CLUSTERS + COMMON)
    told = spark_hpo_process("run", "clusters.yaml", "training.batch_size=32", folder=folder).stdout
    (folder / "told.txt").write_text(told)
    return folder


@pytest.fixture(scope="module")
def answer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of the study as JSON, by its directory and from another folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    answer = last_json(spark_hpo("resume", str(folder / "studies/clusters"), "--json", folder=elsewhere))
    assert list(elsewhere.iterdir()) == [], "the study's paths begin where it was started"
    return answer


@pytest.fixture
def elsewhere(tmp_path: Path, answer: Any) -> Path:
    """Another working directory."""
    return tmp_path


def test_run_prints_the_result_for_people_or_as_json(folder: Path, answer: Any) -> None:
    told = (folder / "told.txt").read_text()
    best = answer["best"]
    epochs = f"{best['resource']} epoch{'s' if best['resource'] > 1 else ''}"
    assert f"best: trial {best['trial']} after {epochs}, accuracy {best['value']:.4g}" in told
    assert f"learning_rate={best['params']['learning_rate']:.4g}" in told
    assert "{" not in told


def test_resume_continues_a_study_by_its_directory(folder: Path, answer: Any, elsewhere: Path) -> None:
    assert answer["segments"]["run"] == 0
    assert answer["trials"].keys() <= {"completed", "stopped"}
    assert answer["model"]["version"] == "1"
    study = str(folder / "studies/clusters")
    refused = spark_hpo("resume", study, "training.batch_size=64", folder=elsewhere, code=2)
    assert re.search(r"training\.batch_size .*\b32\b.*\(got 64\)", refused.stderr)
    refused = spark_hpo("resume", "clusters.yaml", folder=folder, code=2)
    assert re.search(r"training\.batch_size .*\b32\b.*\(got 16\)", refused.stderr)


def test_status_shows_a_finished_study(folder: Path, answer: Any, elsewhere: Path) -> None:
    study = str(folder / "studies/clusters")
    status = last_json(spark_hpo("status", study, "--json", folder=elsewhere))
    assert (status["state"], status["ended_by"]) == ("finished", "trials")
    assert {key: status["best"][key] for key in answer["best"]} == answer["best"]
    assert status["test"] == answer["test"]
    assert status["trials"] == answer["trials"]
    assert status["budget"] == {"trials": {"spent": 4.0, "limit": 4.0}}
    assert status["driver"]["alive"] is False
    shown = spark_hpo("status", study, folder=elsewhere).stdout
    assert "clusters  finished" in shown
    assert f"trial {answer['best']['trial']} after" in shown


def test_report_is_written_to_the_given_file(folder: Path, elsewhere: Path) -> None:
    study = str(folder / "studies/clusters")
    done = spark_hpo("report", study, "--output", "pages/mine.html", folder=elsewhere)
    page = elsewhere / "pages/mine.html"
    assert done.stdout.strip() == str(page)
    assert "clusters" in page.read_text()
    assert last_json(spark_hpo("report", study, "--json", folder=elsewhere)) == {
        "report": f"{study}/report.html"
    }
    # BROWSER is how Python's webbrowser is told which one to start.
    opened = spark_hpo_process("report", study, "--open", folder=elsewhere, BROWSER="echo opened %s")
    assert f"opened file://{study}/report.html" in opened.stdout


def test_export_chooses_the_format_by_the_suffix(folder: Path, answer: Any, elsewhere: Path) -> None:
    study = str(folder / "studies/clusters")
    for name in ("trials.csv", "trials.parquet", "trials.json"):
        spark_hpo("export", study, "--what", "trials", "--output", name, folder=elsewhere)
    frames = [
        pd.read_csv(elsewhere / "trials.csv"),
        pd.read_parquet(elsewhere / "trials.parquet"),
        pd.read_json(elsewhere / "trials.json"),
    ]
    for frame in frames:
        assert len(frame) == 4
        best = frame.iloc[0]
        assert best["trial"] == answer["best"]["trial"]
        assert best["learning_rate"] == pytest.approx(answer["best"]["params"]["learning_rate"], rel=1e-12)
    curves = spark_hpo("export", study, "--what", "curves", folder=elsewhere).stdout.splitlines()
    assert curves[0].startswith("trial,resource,time,seconds,rows,accuracy")
    assert len(curves) == 1 + answer["resource_spent"]
    refused = spark_hpo(
        "export", study, "--what", "trials", "--output", "trials.xls", folder=elsewhere, code=2
    )
    assert ".csv, .parquet, .json" in refused.stderr


def test_export_prints_the_best_parameters_as_yaml(folder: Path, answer: Any, elsewhere: Path) -> None:
    done = spark_hpo("export", str(folder / "studies/clusters"), "--what", "best", folder=elsewhere)
    assert done.stdout.startswith(f"# clusters: trial {answer['best']['trial']} after")
    assert yaml.safe_load(done.stdout) == answer["best"]["params"]


def test_export_writes_the_best_model_as_folder_or_file_without_mlflow(
    folder: Path, answer: Any, elsewhere: Path
) -> None:
    study = str(folder / "studies/clusters")
    spark_hpo("export", study, "--what", "model", "--output", "model", folder=elsewhere)
    sys.path.insert(0, str(elsewhere / "model"))  # its task's code lies there
    try:
        predictor = Predictor.load(elsewhere / "model")
    finally:
        sys.path.pop(0)
    rows = pd.read_parquet(folder / "table/test")
    found = predictor.predict(rows[["x", "y"]])["prediction"].to_numpy()
    assert (found == rows["side"].to_numpy()).mean() == pytest.approx(answer["test"]["accuracy"], abs=1e-9)
    refused = spark_hpo("export", study, "--what", "model", "--output", "model", folder=elsewhere, code=2)
    assert "not empty" in refused.stderr
    spark_hpo("export", study, "--what", "model", "--output", "best.pt", folder=elsewhere)
    state = torch.load(elsewhere / "best.pt", weights_only=True)
    whole = torch.load(elsewhere / "model/weights.pt", weights_only=True)["model"]
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in state)


def test_export_of_the_journal_has_the_valid_events_only(folder: Path, elsewhere: Path) -> None:
    study = folder / "studies/clusters"
    done = spark_hpo("export", str(study), "--what", "journal", "--output", "all.jsonl", folder=elsewhere)
    events = [json.loads(line) for line in Path(done.stdout.strip()).read_text().splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["event"] == "opened"
    assert {"assigned", "reported", "settled", "closed"} <= {event["event"] for event in events}
    first = json.loads((study / "journal/000001.jsonl").read_text().splitlines()[1])
    assert events[1] == first


def test_gc_deletes_unneeded_files_and_prints_their_size(folder: Path, answer: Any, elsewhere: Path) -> None:
    study = folder / "studies/clusters"
    rubbish = study / "checkpoints/trial-000000/partial-7.pt"
    rubbish.write_bytes(b"x" * 1000)
    planned = last_json(spark_hpo("gc", str(study), "--dry-run", "--json", folder=elsewhere))
    assert planned["bytes"] == 1000
    assert rubbish.exists()
    said = spark_hpo("gc", str(study), "--older-than", "0s", folder=elsewhere).stdout
    assert "freed 1 files, 1 kB" in said
    assert not rubbish.exists()
    assert list((study / f"checkpoints/trial-{answer['best']['trial']:06d}").glob("*.pt"))


class Terminal:
    """A command in its own terminal."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*SPARK_HPO, *arguments], cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def read(self) -> str:
        """Return all output so far."""
        with contextlib.suppress(OSError):  # there is no more when the command has ended
            while select.select([self._master], [], [], 0.05)[0]:
                if not (data := os.read(self._master, 65536)):
                    break
                self.text += data.decode(errors="replace")
        return self.text

    def wait(self) -> int:
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text[-3000:]
            self.read()
        self.read()
        return self.process.returncode


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A running study: two trials have ended, and the next one never ends."""
    write_database(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW_LOOP)
    (tmp_path / "slow.yaml").write_text(SLOW + COMMON)
    (tmp_path / "hold").touch()
    study = tmp_path / "studies/slow"
    with (tmp_path / "log.txt").open("wb") as log:
        driver = subprocess.Popen(
            [*SPARK_HPO, "run", "slow.yaml"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def reported() -> int:
        assert driver.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        journal = study / "journal/000001.jsonl"
        return journal.read_text().count('"event":"reported"') if journal.exists() else 0

    wait_for(lambda: reported() >= 2, "two reports")
    try:
        yield tmp_path, driver
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait()


@pytest.mark.timeout(600)  # six processes, one after the other, each of which may wait for a busy machine
def test_watch_follows_a_study_and_reports_its_killed_driver(
    slow: tuple[Path, subprocess.Popen[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, driver = slow
    study, elsewhere = str(folder / "studies/slow"), tmp_path_factory.mktemp("elsewhere")
    watch = Terminal("watch", study, "--interval", "0.2", folder=elsewhere)
    wait_for(lambda: "running" in watch.read() and "best" in watch.text, "the board")
    assert "the driver with pid" in watch.text
    status = StudyStatus.read(Storage(study)).to_json()
    assert (status["state"], status["driver"]["pid"]) == ("running", driver.pid)
    assert len(status["running"]) == 1
    limited = spark_hpo("watch", study, "--limit", "0.5", folder=elsewhere, code=1)
    assert "it is still running after the --limit of 0.5 s" in limited.stdout
    assert driver.poll() is None
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert watch.wait() == 1
    assert f"the driver with pid {driver.pid}" in watch.text
    assert "died (killed" in watch.text
    assert f"spark-hpo resume {study}" in watch.text.replace("\r\n", "")
    assert StudyStatus.read(Storage(study)).state is StudyState.DEAD

    (folder / "hold").unlink()
    answer = last_json(spark_hpo("resume", study, "--json", folder=elsewhere))
    assert answer["segments"]["replayed"] >= 2
    assert sum(answer["trials"].values()) == 6
    told = spark_hpo("watch", study, folder=elsewhere).stdout.splitlines()
    assert told[0].endswith("driver 1 opened the study")
    assert sum(line.endswith("opened the study") for line in told) == 2
    assert (
        sum(": accuracy " in line and " after " in line for line in told)
        == answer["segments"]["run"] + (answer["segments"]["replayed"])
    )
    assert "finished" in told[-1]
