"""Machines that are taken away: with checkpoints on S3, and with notice."""

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
from tests.faults.family import eventually, executor_of
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy
from tests.support.s3_server import s3_server

s3fs = pytest.importorskip("s3fs")

Live = Callable[..., LiveStudy]

pytestmark = pytest.mark.timeout(900)

# Nothing is hung here: no limit has to be short, and a machine may be slow.
PATIENT = {"slot_timeout_s": 240, "rank_timeout_s": 60}
CALM = {"spark.network.timeout": "60s"}
OFTEN = {"batch_size": 16, "checkpoint_every": {"seconds": 0.5}}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The variables of a server with one bucket, which this process has too."""
    with s3_server(secret="key-of-the-fault-tests") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("lake")
        yield variables
        s3fs.S3FileSystem.clear_instance_cache()


class Mirror:
    """A study directory on S3 as the checker reads one: local, with the journal's logs as files."""

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


def test_an_executor_lost_with_its_checkpoints_on_s3_costs_what_came_after_the_last(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any], s3: dict[str, str], tmp_path: Path
) -> None:
    url = "s3://lake/study"
    study = live(
        step_s=0.1,
        hurt=s3,  # for the driver and the executors
        study_dir=url,
        spark=CALM,
        resources=PATIENT,
        training=OFTEN,
    )
    mirror = Mirror(url, tmp_path / "mirror")
    study.study_dir = mirror.folder
    study.begin()
    victim = study.wait_for_step(step=10)
    mirror.refresh()
    trial = study.trial_of(victim.pid)
    executor_of(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(trial, after=killed, not_by={victim.pid})
    study.finish()
    mirror.refresh()
    study.assert_sound()
    study.assert_nothing_is_left()

    assert study.lost() == [(trial, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 6, "it goes on from a checkpoint within the rung"
    assert study.repeated_s() < 2.0
    assert not (study.folder / "study").exists()
    ledger.add("executor killed, S3", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def slots(study: LiveStudy) -> int:
    """As the study has said last."""
    return int([0, *re.findall(r"slots for trials: (\d+)", study.log)][-1])


def test_an_executor_lost_after_notice_costs_no_more(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    study = live(
        step_s=0.3,
        spark={
            **CALM,
            "spark.master": "local-cluster[2,1,1024]",
            "spark.decommission.enabled": "true",
        },
        training=OFTEN,
        resources=PATIENT,
    )
    study.begin()
    victim = study.wait_for_step(0, step=5)
    eventually(lambda: slots(study) == 2, "all executors")
    executor = executor_of(victim.pid)
    executor.send_signal(signal.SIGPWR)  # as Kubernetes' hook does
    eventually(lambda: slots(study) == 1, "the driver to know that it will go")
    executor.kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by=study.pids())
    study.finish_soundly()

    assert study.lost() == [(0, 1)], "the next attempt is the study's, not Spark's"
    assert study.results() == undisturbed
    assert again.step > 0, "it goes on from a checkpoint within the rung"
    ledger.add(
        "executor decommissioned and lost",
        repeated_s=study.repeated_s(),
        recovery_s=again.time - killed,
    )


def test_a_session_that_repeats_tasks_repeats_none_of_a_study(
    live: Live, undisturbed: dict[Any, Any]
) -> None:
    """One that somebody else has started, with Spark's own default."""
    study = live(
        step_s=0.1,
        spark={**CALM, "spark.master": "local[2,4]", "spark.task.maxFailures": "4"},
        resources=PATIENT,
        training=OFTEN,
    )
    study.begin()
    victim = study.wait_for_step(0, step=10)
    psutil.Process(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by={victim.pid})
    study.finish_soundly()
    assert study.lost() == [(0, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 6
    [line] = [json.dumps(event) for event in study.of_kind("lost")]
    assert "Spark ran the task once more" in line
