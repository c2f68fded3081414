"""Drivers that are killed, doubled, stopped and interrupted."""

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

from tests.faults.checker import read_journal
from tests.faults.family import eventually, stopped
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy
from tests.support.standalone import SPARK

Live = Callable[..., LiveStudy]

LOCAL = {"spark.master": "local[2]"}
CHECKPOINTS = {"batch_size": 16, "checkpoint_every": {"seconds": 0.3}}


@pytest.mark.quick
@pytest.mark.timeout(900)  # a dozen drivers, one after the other
def test_a_driver_killed_at_one_write_of_the_journal_after_another(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    """The nth driver dies at its nth write: before it, in the middle of it, or after it."""
    study = live(step_s=0.0, backend="inline")
    number, before = 0, []
    for number in range(1, 12):
        how = ("before", "torn", "after")[number % 3]
        process = study.begin(environment={"DIE_AT_WRITE": str(number), "DIE_HOW": how})
        if process.wait(120) == 0:
            break
        assert process.returncode == -signal.SIGKILL, study.log[-3000:]
        study.assert_sound(is_finished=False)
        records = [r for r in read_journal(study.study_dir / "journal") if r["event"] == "reported"]
        assert records[: len(before)] == before, "what was reported stays"
        before = records
    study.finish_soundly()
    assert number >= 4
    assert study.results() == undisturbed
    ledger.add("driver killed at a write of the journal", tries=number, repeated_s=study.repeated_s())


@pytest.mark.parametrize("seed", range(3))
def test_a_driver_killed_at_random_moments_goes_on(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    study = live(step_s=0.1, spark=LOCAL, training=CHECKPOINTS)
    for _ in range(2):
        known = study.pids()
        study.begin()
        study.wait_for_step(not_by=known)
        time.sleep(rng.uniform(0, 2))
        before, known = study.results(), study.pids()
        study.kill_driver()
        killed = time.time()
        study.assert_sound(is_finished=False)
        assert before.items() <= study.results().items(), "what was reported stays"
    study.begin()
    recovered = study.wait_for_step(not_by=known, after=killed).time
    study.finish_soundly()
    assert study.results() == undisturbed
    ledger.add(
        "driver killed at a random moment",
        tries=2,
        repeated_s=study.repeated_s(),
        recovery_s=recovered - killed,
    )


@pytest.mark.quick
def test_of_two_drivers_that_start_together_one_is_refused(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    study = live(step_s=0.02, backend="inline")
    processes = [study.begin(log=f"{name}.txt") for name in ("first", "second")]
    codes = sorted(process.wait(120) for process in processes)
    logs = [(study.folder / f"{name}.txt").read_text() for name in ("first", "second")]
    assert codes == [0, 1], logs
    assert sum("writes this study" in log or "has just started on this study" in log for log in logs) == 1
    study.finish_soundly()
    assert study.results() == undisturbed
    ledger.add("two drivers, started together", repeated_s=study.repeated_s())


def test_a_driver_that_was_stopped_past_its_lease_is_refused_when_it_comes_back(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    study = live(step_s=0.1, spark=LOCAL)
    first = study.begin(log="first.txt")
    study.wait_for_step(0, step=2)
    began = time.time()
    with stopped(psutil.Process(first.pid)):
        refused = study.begin(log="refused.txt")
        assert refused.wait(60) == 1
        assert f"the driver with pid {first.pid}" in (study.folder / "refused.txt").read_text()
        lease = study.study_dir / "lease.json"
        eventually(lambda: json.loads(lease.read_text())["expires_at"] < time.time(), "the end of its lease")
        second = study.begin()
        recovered = study.wait_for_step(not_by=study.pids()).time
    assert first.wait(120) == 1
    assert "has lost the study" in (study.folder / "first.txt").read_text()
    assert second.wait(120) == 0, study.log[-4000:]
    study.finish_soundly()
    assert study.results() == undisturbed
    ledger.add(
        "two drivers, the first stopped past its lease",
        repeated_s=study.repeated_s(),
        recovery_s=recovered - began,
    )


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "spark-submit Ctrl-C", "spark-submit SIGTERM"])
def test_an_interrupted_study_keeps_what_it_has_trained_and_goes_on(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any], how: str
) -> None:
    study = live(step_s=0.2, spark=LOCAL)  # nothing but the interrupt makes it write within a rung
    submit = [str(SPARK / "bin/spark-submit"), "--master", "local[2]"] if "submit" in how else study.command
    process = study.begin(command=submit)
    study.wait_for_step(0, step=6)
    interrupted = time.time()
    if "Ctrl-C" in how:  # a terminal sends it to all of the group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    # A JVM that is told to end says so itself, whatever its Python says.
    code = 143 if how == "spark-submit SIGTERM" else 130
    assert process.wait(60) == code, study.log[-4000:]
    ended = time.time()
    assert study.events()[-1]["event"] == "closed"
    assert not [e for e in study.of_kind("assigned") if e["time"] > interrupted], "nothing new is started"
    assert "The same command goes on" in study.log
    study.assert_nothing_is_left()
    study.begin()
    again = study.wait_for_step(0, after=ended)
    study.finish_soundly()
    assert study.results() == undisturbed
    assert again.step >= 6, "it goes on from where it was interrupted"
    assert study.repeated_s() <= 2 * study.step_seconds(), "at most a step of each trial"
    ledger.add(f"interrupted once ({how})", repeated_s=study.repeated_s(), recovery_s=again.time - ended)


def test_interrupted_twice_a_study_ends_at_once(live: Live, ledger: Ledger) -> None:
    study = live(step_s=0.1, spark=LOCAL)
    process = study.begin()
    study.wait_for_step(0, step=3)
    (study.faults / "loop").touch()  # a rank that would not come to a checkpoint
    eventually((study.faults / "loop-met").exists, "a rank in a loop")
    began = time.time()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)  # two presses are two signals, not one
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130, study.log[-4000:]
    took = time.time() - began
    assert "The same command goes on" in study.log
    study.assert_nothing_is_left()
    (study.faults / "loop").unlink()
    study.finish_soundly()
    ledger.add("interrupted twice", repeated_s=study.repeated_s(), recovery_s=took)
