"""Faults in the reserve: while one of the best trials is trained to the end, after the search."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually
from tests.faults.study_run import StudyRun

NewStudy = Callable[..., StudyRun]

# The scheduler promotes one of the three trials: the reserve trains the second best on from 1 epoch.
SETTINGS: dict[str, Any] = {
    "search": {"sampler": "random", "scheduler": "asha", "reduction_factor": 4, "max_resource": 5},
    "budget": {"trials": 3, "finish": 2},
    "training": {"batch_size": 16, "checkpoint_every": {"seconds": 0.3}},
    "resources": {"world_size": 2, "rank_timeout_s": 20, "slot_timeout_s": 60},
}


@pytest.fixture(scope="module")
def calm_results() -> dict[Any, Any]:
    """The results of an undisturbed study, once there is one."""
    return {}


def results_of(new_study: NewStudy, calm_results: dict[Any, Any]) -> dict[Any, Any]:
    if not calm_results:
        calm = new_study("calm", step_s=0.0, **SETTINGS)
        calm.finish_and_check()
        assert len(calm.of_kind("reserve")) == 1
        calm_results |= calm.results()
    return calm_results


def wait_for_the_reserve(study: StudyRun) -> int:
    """Wait until a trial is trained on, and return its number."""
    eventually(lambda: bool(study.of_kind("reserve")), "the reserve")
    plan = study.of_kind("reserve")[0]
    (trial_id,) = plan["trials"]
    study.wait_for_step(trial_id, after=plan["time"])
    return int(trial_id)


def check(study: StudyRun, trial_id: int, expected: dict[Any, Any]) -> None:
    """Nothing is lost, and nothing is trained twice."""
    study.finish_and_check()
    assert study.results() == expected
    reported = [e for e in study.of_kind("reported") if e["split"] == "validation"]
    assert sorted((e["trial_id"], e["resource"]) for e in reported) == sorted(expected)
    finishes = [e for e in study.of_kind("assigned") if e.get("purpose") == "finish"]
    assert {(e["trial_id"], e["resource_from"], e["resource_to"]) for e in finishes} == {(trial_id, 1, 5)}
    assert len(finishes) >= 2, "another attempt, which resumes"


def test_driver_killed_in_the_reserve_resumes_it(
    new_study_anywhere: NewStudy, costs: CostTable, calm_results: dict[Any, Any]
) -> None:
    expected = results_of(new_study_anywhere, calm_results)
    study = new_study_anywhere(step_s=0.1, **SETTINGS)
    study.start_driver()
    trial_id = wait_for_the_reserve(study)
    known = study.pids()
    study.kill_driver()
    killed = time.time()
    study.assert_consistent(is_finished=False)
    study.start_driver()
    again = study.wait_for_step(trial_id, after=killed, not_by=known)
    check(study, trial_id, expected)
    assert len(study.of_kind("reserve")) == 1, "the decision is that of the first driver"
    costs.add("driver killed in the reserve", repeated_s=study.repeated_s(), recovery_s=again.time - killed)


def test_rank_killed_in_the_reserve_is_retried(
    new_study_anywhere: NewStudy, costs: CostTable, calm_results: dict[Any, Any]
) -> None:
    expected = results_of(new_study_anywhere, calm_results)
    study = new_study_anywhere(step_s=0.1, **SETTINGS)
    study.start_driver()
    trial_id = wait_for_the_reserve(study)
    began = study.of_kind("reserve")[0]["time"]
    ranks = {}

    def has_both() -> bool:
        ranks.update({s.rank: s.pid for s in study.steps_of(trial_id) if s.time > began})
        return len(ranks) == 2

    eventually(has_both, "both ranks")
    psutil.Process(ranks[1]).kill()
    killed = time.time()
    again = study.wait_for_step(trial_id, after=killed, not_by=set(ranks.values()))
    check(study, trial_id, expected)
    assert trial_id in [trial for trial, _ in study.lost()]
    costs.add("rank killed in the reserve", repeated_s=study.repeated_s(), recovery_s=again.time - killed)
