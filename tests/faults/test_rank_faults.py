"""Ranks that are killed, run out of memory, stop, loop endlessly, or leave child processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually, stopped
from tests.faults.study_run import StudyRun

NewStudy = Callable[..., StudyRun]

TWO_RANKS = {"world_size": 2, "rank_timeout_s": 6, "slot_timeout_s": 60}
PEER_LIMIT_S = 10.0


def test_peer_of_a_killed_rank_ends_and_both_are_retried(
    new_study_anywhere: NewStudy, costs: CostTable
) -> None:
    study = new_study_anywhere(step_s=0.1, resources=TWO_RANKS, budget={"trials": 2})
    study.start_driver()
    first = study.wait_for_step(0, step=3)
    eventually(lambda: len({s.rank for s in study.steps_of(0)}) == 2, "both ranks")
    ranks = {s.rank: s.pid for s in study.steps_of(0)}
    psutil.Process(ranks[1]).kill()
    killed = time.time()
    eventually(lambda: not psutil.pid_exists(ranks[0]), "the peer's end", limit_s=PEER_LIMIT_S)
    again = study.wait_for_step(0, after=killed, not_by={ranks[0]})
    study.finish_and_check()

    assert study.lost() == [(0, 1)]
    assert study.of_kind("lost")[0]["failure"]["kind"] == "infrastructure"
    assert set(study.results()) == {(0, 3), (1, 3)}
    assert first.step >= 3
    costs.add("rank killed, one of two", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def test_fold_of_a_killed_rank_is_retried_alone_and_resumed(
    new_study_anywhere: NewStudy, costs: CostTable
) -> None:
    folds = {"resource": "folds", "max_resource": 3, "epochs": 2, "scheduler": "full"}
    study = new_study_anywhere(step_s=0.1, resources=TWO_RANKS, search=folds, budget={"trials": 1})
    study.start_driver()
    study.wait_for_step(0, step=3)
    eventually(lambda: len({s.rank for s in study.steps_of(0)}) == 2, "both ranks")
    psutil.Process(next(s.pid for s in study.steps_of(0) if s.rank == 1)).kill()
    eventually(lambda: bool(study.of_kind("fold")), "the end of a fold")
    study.kill_driver()
    study.finish_and_check(rows=None)

    told = [(e["trial_id"], e["fold"]) for e in study.of_kind("fold")]
    assert sorted(told) == [(0, 1), (0, 2), (0, 3)]  # others run while the lost one waits
    assert ("infrastructure", 1) in [(e["failure"]["kind"], e["fold"]) for e in study.of_kind("lost")]
    assert set(study.results()) == {(0, 3)}
    costs.add("rank killed in a fold, then the driver", repeated_s=study.repeated_s())


def test_stopped_rank_is_cancelled_and_retried(new_study_anywhere: NewStudy, costs: CostTable) -> None:
    study = new_study_anywhere(step_s=0.1, resources=TWO_RANKS, budget={"trials": 1})
    study.start_driver()
    study.wait_for_step(0, step=3)
    eventually(lambda: len({s.rank for s in study.steps_of(0)}) == 2, "both ranks")
    ranks = {s.rank: s.pid for s in study.steps_of(0)}
    with stopped(psutil.Process(ranks[1])):
        began = time.time()
        again = study.wait_for_step(0, after=began + 1, not_by={ranks[0]})
        eventually(lambda: not psutil.pid_exists(ranks[1]), "the stopped rank's end")
    study.finish_and_check()

    assert study.lost() == [(0, 1)]
    assert "resources.rank_timeout_s" in study.log
    costs.add("rank stopped (SIGSTOP)", repeated_s=study.repeated_s(), recovery_s=again.time - began)


def test_endless_loop_is_detected_and_its_stack_trace_logged(
    new_study_anywhere: NewStudy, costs: CostTable
) -> None:
    study = new_study_anywhere(step_s=0.1, resources={"rank_timeout_s": 6}, budget={"trials": 2})
    study.start_driver()
    study.wait_for_step(0, step=3)
    (study.faults / "loop").touch()
    eventually((study.faults / "loop-met").exists, "a rank that goes in circles")
    began = time.time()
    (study.faults / "loop").unlink()
    answer = study.finish_and_check()

    ((trial, attempt),) = study.lost()
    again = next(s for s in study.steps_of(trial) if s.time > began)
    assert (attempt, answer["segments"]["failed"]) == (1, 0)
    assert "resources.rank_timeout_s" in study.log
    assert "_linger" in study.log, "where it was"
    costs.add("rank in an endless loop", repeated_s=study.repeated_s(), recovery_s=again.time - began)


def test_cancelled_job_leaves_no_child_processes(new_study_anywhere: NewStudy, costs: CostTable) -> None:
    study = new_study_anywhere(
        space={"fate": {"type": "choice", "options": ["child"]}, **_rate()},
        resources={"rank_timeout_s": 6, "max_infra_retries": 0},
        budget={"trials": 1},
    )
    study.start_driver()
    eventually(lambda: bool(study.children()), "a child")
    began = time.time()
    (child,) = study.children()
    study.finish(code=4)
    assert not psutil.pid_exists(child), "it went with its rank"
    study.assert_no_leftovers()
    costs.add("cancelled job leaves children", recovery_s=time.time() - began)


def test_trial_out_of_memory_fails_without_a_retry(new_study_anywhere: NewStudy, costs: CostTable) -> None:
    study = new_study_anywhere(
        space={"fate": {"type": "choice", "options": ["memory", "fine"]}, **_rate()},
        search={"sampler": "grid", "scheduler": "full", "max_resource": 3},
        budget={"trials": 2},
    )
    answer = study.finish_and_check()
    (failed,) = [e for e in study.reported() if e["failure"]]
    assert answer["trials"] == {"completed": 1, "failed": 1}
    assert failed["attempt"] == 1
    assert failed["failure"]["kind"] == "memory"
    costs.add("rank out of memory (rlimit)")


def _rate() -> dict[str, Any]:
    return {"learning_rate": {"type": "choice", "options": [0.01]}, "hidden_units": 4}
