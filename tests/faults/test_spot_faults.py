"""Spot machines that are lost: with checkpoints on S3, and after a notice."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from spark_hpo.study_dir.storage import Storage
from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually, executor_of
from tests.faults.study_run import StudyRun
from tests.support.s3_server import s3_server

s3fs = pytest.importorskip("s3fs")

NewStudy = Callable[..., StudyRun]

pytestmark = pytest.mark.timeout(900)

# Nothing hangs here, so limits can be long enough for a slow machine.
PATIENT = {"slot_timeout_s": 240, "rank_timeout_s": 60}
CALM = {"spark.network.timeout": "60s"}
OFTEN = {"batch_size": 16, "checkpoint_every": {"seconds": 0.5}}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Start an S3 server with one bucket, and set its variables in this process too."""
    with s3_server(secret="key-of-the-fault-tests") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("lake")
        yield variables
        s3fs.S3FileSystem.clear_instance_cache()


class Mirror:
    """A local copy of a study directory on S3, with the logs of the journal as files, for the checker."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.folder = folder

    def refresh(self) -> None:
        store, storage = s3fs.S3FileSystem(), Storage(self._url)
        store.invalidate_cache()
        root = self._url.removeprefix("s3://")
        there = {path.removeprefix(f"{root}/") for path in store.find(root)}
        logs = {name.split("/")[1] for name in there if name.startswith("journal/")}
        for log in logs:
            self._write(f"journal/{log}.jsonl", b"".join(storage.log(f"journal/{log}").lines()))
        others = {name for name in there if not name.startswith("journal/")}
        for name in others:
            self._write(name, storage.read(name) or b"")
        for file in [path for path in self.folder.rglob("*") if path.is_file()]:
            name = str(file.relative_to(self.folder))
            if name not in others and not name.startswith("journal/"):
                file.unlink()

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_lost_executor_resumes_from_its_checkpoint_on_s3(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any], s3: dict[str, str], tmp_path: Path
) -> None:
    url = "s3://lake/study"
    study = new_study(
        step_s=0.1,
        injected=s3,  # for the driver and the executors
        study_dir=url,
        spark=CALM,
        resources=PATIENT,
        training=OFTEN,
    )
    mirror = Mirror(url, tmp_path / "mirror")
    study.study_dir = mirror.folder
    study.start_driver()
    victim = study.wait_for_step(step=10)
    mirror.refresh()
    trial = study.trial_of(victim.pid)
    executor_of(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(trial, after=killed, not_by={victim.pid})
    study.finish()
    mirror.refresh()
    study.assert_consistent()
    study.assert_no_leftovers()

    assert study.lost() == [(trial, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 6, "it resumes from a checkpoint within the rung"
    assert study.repeated_s() < 2.0
    assert not (study.folder / "study").exists()
    costs.add("executor killed, S3", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def slots(study: StudyRun) -> int:
    """Return the last number of slots in the log."""
    return int([0, *re.findall(r"slots for trials: (\d+)", study.log)][-1])


def test_decommissioned_executor_resumes_from_its_checkpoint(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(
        step_s=0.3,
        spark={
            **CALM,
            "spark.master": "local-cluster[2,1,1024]",
            "spark.decommission.enabled": "true",
        },
        training=OFTEN,
        resources=PATIENT,
    )
    study.start_driver()
    victim = study.wait_for_step(0, step=5)
    eventually(lambda: slots(study) == 2, "all executors")
    executor = executor_of(victim.pid)
    executor.send_signal(signal.SIGPWR)  # as Kubernetes' hook does
    eventually(lambda: slots(study) == 1, "the driver to know that it will go")
    executor.kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by=study.pids())
    study.finish_and_check()

    assert study.lost() == [(0, 1)], "the next attempt is the study's, not Spark's"
    assert study.results() == undisturbed
    assert again.step > 0, "it resumes from a checkpoint within the rung"
    costs.add(
        "executor decommissioned and lost",
        repeated_s=study.repeated_s(),
        recovery_s=again.time - killed,
    )


def test_session_with_task_retries_does_not_retry_a_trial(
    new_study: NewStudy, undisturbed: dict[Any, Any]
) -> None:
    """With Spark's default number of retries, as in a session of the caller."""
    study = new_study(
        step_s=0.1,
        spark={**CALM, "spark.master": "local[2,4]", "spark.task.maxFailures": "4"},
        resources=PATIENT,
        training=OFTEN,
    )
    study.start_driver()
    victim = study.wait_for_step(0, step=10)
    psutil.Process(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by={victim.pid})
    study.finish_and_check()
    assert study.lost() == [(0, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 6
    [line] = [json.dumps(event) for event in study.of_kind("lost")]
    assert "Spark restarted the task" in line
