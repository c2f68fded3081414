"""Executors that are killed, and one that resumes after it was declared lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually, executor_of, stopped
from tests.faults.study_run import StudyRun

NewStudy = Callable[..., StudyRun]

LAST_STEP = 3 * 8 - 1  # of three epochs


def test_executor_killed_in_the_lowest_rung_costs_one_attempt(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(step_s=0.1, training={"batch_size": 16, "checkpoint_every": {"seconds": 0.5}})
    study.start_driver()
    victim = study.wait_for_step(0, step=10)
    executor_of(victim.pid).kill()
    killed = time.time()
    again = study.wait_for_step(0, after=killed, not_by={victim.pid})
    study.finish_and_check()

    assert study.lost() == [(0, 1)]
    assert study.results() == undisturbed
    assert 0 < again.step <= victim.step + 3, "it resumes from a checkpoint within the rung"
    assert study.repeated_s() < 2.0
    costs.add("executor killed in rung 0", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def test_executor_killed_while_saving_leaves_the_last_checkpoint_intact(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(step_s=0.05)
    (study.faults / "hold-writes").touch()
    study.start_driver()
    eventually((study.faults / "held").exists, "a checkpoint that is being written")
    pid = int((study.faults / "held").read_text())
    trial = study.trial_of(pid)
    half = list((study.study_dir / f"checkpoints/trial-{trial:06d}").glob(".tmp-*"))
    assert len(half) == 1, "it is killed between writing and renaming"
    executor_of(pid).kill()
    killed = time.time()
    (study.faults / "hold-writes").unlink()
    again = study.wait_for_step(trial, after=killed, not_by={pid})
    study.finish_and_check()

    assert study.lost() == [(trial, 1)]
    assert study.results() == undisturbed
    costs.add(
        "executor killed in mid-checkpoint", repeated_s=study.repeated_s(), recovery_s=again.time - killed
    )


def test_writes_of_a_lost_executor_are_ignored(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    # Its Python continues while its JVM is stopped, and ends when another attempt has started.
    study = new_study(step_s=0.6, spark={"spark.master": "local-cluster[3,1,1024]"}, budget={"trials": 2})
    study.start_driver()
    victim = study.wait_for_step(0, step=2)
    with stopped(executor_of(victim.pid)):
        began = time.time()
        again = study.wait_for_step(0, after=began, not_by={victim.pid})
        study.wait_for_step(0, step=LAST_STEP, by={victim.pid})
        late = study.study_dir / "checkpoints/trial-000000/000003-1.pt"
        study.wait_for_step(0, step=LAST_STEP, not_by={victim.pid})
        assert not late.exists(), "the fence keeps it out"
    study.finish_and_check()

    assert study.lost() == [(0, 1)]
    assert [e["attempt"] for e in study.reported() if e["trial_id"] == 0] == [2]
    assert set(study.results()) == {(0, 3), (1, 3)}
    assert study.results().items() <= undisturbed.items()
    costs.add("zombie executor", repeated_s=study.repeated_s(), recovery_s=again.time - began)
