"""Drivers that are killed, stopped or interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually, stopped
from tests.faults.study_run import StudyRun
from tests.support.standalone import SPARK

NewStudy = Callable[..., StudyRun]

LOCAL = {"spark.master": "local[2]"}
CHECKPOINTS = {"batch_size": 16, "checkpoint_every": {"seconds": 0.3}}


@pytest.mark.parametrize("seed", range(3))
def test_driver_killed_at_random_moments_resumes(
    new_study_anywhere: NewStudy, costs: CostTable, undisturbed: dict[Any, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    study = new_study_anywhere(step_s=0.1, spark=LOCAL, training=CHECKPOINTS)
    for _ in range(2):
        known = study.pids()
        study.start_driver()
        study.wait_for_step(not_by=known)
        time.sleep(rng.uniform(0, 2))
        before, known = study.results(), study.pids()
        study.kill_driver()
        killed = time.time()
        study.assert_consistent(is_finished=False)
        assert before.items() <= study.results().items(), "what was reported stays"
    study.start_driver()
    recovered = study.wait_for_step(not_by=known, after=killed).time
    study.finish_and_check()
    assert study.results() == undisturbed
    costs.add(
        "driver killed at a random moment",
        tries=2,
        repeated_s=study.repeated_s(),
        recovery_s=recovered - killed,
    )


def test_driver_stopped_past_its_lease_is_refused_afterwards(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(step_s=0.1, spark=LOCAL)
    first = study.start_driver(log="first.txt")
    study.wait_for_step(0, step=2)
    began = time.time()
    with stopped(psutil.Process(first.pid)):
        refused = study.start_driver(log="refused.txt")
        assert refused.wait(60) == 1
        assert f"pid {first.pid}" in (study.folder / "refused.txt").read_text()
        lease = study.study_dir / "lease.json"
        eventually(lambda: json.loads(lease.read_text())["expires_at"] < time.time(), "the end of its lease")
        second = study.start_driver()
        recovered = study.wait_for_step(not_by=study.pids()).time
    assert first.wait(120) == 1
    assert "has lost the study" in (study.folder / "first.txt").read_text()
    assert second.wait(120) == 0, study.log[-4000:]
    study.finish_and_check()
    assert study.results() == undisturbed
    costs.add(
        "two drivers, the first stopped past its lease",
        repeated_s=study.repeated_s(),
        recovery_s=recovered - began,
    )


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "spark-submit Ctrl-C", "spark-submit SIGTERM"])
def test_interrupted_study_keeps_its_training_and_resumes(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any], how: str
) -> None:
    study = new_study(step_s=0.2, spark=LOCAL)  # nothing but the interrupt makes it write within a rung
    submit = [str(SPARK / "bin/spark-submit"), "--master", "local[2]"] if "submit" in how else study.command
    process = study.start_driver(command=submit)
    study.wait_for_step(0, step=6)
    interrupted = time.time()
    if "Ctrl-C" in how:  # a terminal sends it to all of the group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    # A JVM that gets the signal prints a message of its own.
    code = 143 if how == "spark-submit SIGTERM" else 130
    assert process.wait(60) == code, study.log[-4000:]
    ended = time.time()
    assert study.events()[-1]["event"] == "closed"
    assert not [e for e in study.of_kind("assigned") if e["time"] > interrupted], "nothing new is started"
    assert "Rerun the same command to resume" in study.log
    study.assert_no_leftovers()
    study.start_driver()
    again = study.wait_for_step(0, after=ended)
    study.finish_and_check()
    assert study.results() == undisturbed
    assert again.step >= 6, "it resumes where it was interrupted"
    assert study.repeated_s() <= 2 * study.step_seconds(), "at most a step of each trial"
    costs.add(f"interrupted once ({how})", repeated_s=study.repeated_s(), recovery_s=again.time - ended)


def test_study_interrupted_twice_ends_at_once(new_study_anywhere: NewStudy, costs: CostTable) -> None:
    study = new_study_anywhere(step_s=0.1, spark=LOCAL)
    process = study.start_driver()
    study.wait_for_step(0, step=3)
    (study.faults / "loop").touch()  # a rank that would not come to a checkpoint
    eventually((study.faults / "loop-met").exists, "a rank in a loop")
    began = time.time()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)  # two presses are two signals, not one
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130, study.log[-4000:]
    took = time.time() - began
    assert "Rerun the same command to resume" in study.log
    study.assert_no_leftovers()
    (study.faults / "loop").unlink()
    study.finish_and_check()
    costs.add("interrupted twice", repeated_s=study.repeated_s(), recovery_s=took)
