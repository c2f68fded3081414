"""Fault tests that run with all other tests, because they need no Spark; the rest: `make test-faults`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spark_hpo.errors import StorageError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from tests.faults.checker import read_journal
from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually
from tests.faults.small_disk import SmallDisk
from tests.faults.study_run import StudyRun

NewStudy = Callable[..., StudyRun]


@pytest.mark.slow
@pytest.mark.timeout(900)  # several drivers, one after the other
def test_driver_killed_at_a_journal_write_loses_nothing(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    """The nth driver dies at its nth write. tests/unit/study kills a study at each, in one process."""
    study = new_study(step_s=0.0, backend="inline")
    before: list[Any] = []
    for number, how in enumerate(("torn", "after", "before"), 1):
        process = study.start_driver(environment={"DIE_AT_WRITE": str(number), "DIE_HOW": how})
        assert process.wait(120) == -signal.SIGKILL, study.log[-3000:]
        study.assert_consistent(is_finished=False)
        records = [r for r in read_journal(study.study_dir / "journal") if r["event"] == "reported"]
        assert records[: len(before)] == before, "what was reported stays"
        before = records
    study.finish_and_check()
    assert study.results() == undisturbed
    costs.add("driver killed at a write of the journal", tries=3, repeated_s=study.repeated_s())


@pytest.mark.slow
def test_second_of_two_simultaneous_drivers_is_refused(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(step_s=0.02, backend="inline")
    processes = [study.start_driver(log=f"{name}.txt") for name in ("first", "second")]
    codes = sorted(process.wait(120) for process in processes)
    logs = [(study.folder / f"{name}.txt").read_text() for name in ("first", "second")]
    assert codes == [0, 1], logs
    assert sum("the study is locked" in log or "has just started on this study" in log for log in logs) == 1
    study.finish_and_check()
    assert study.results() == undisturbed
    costs.add("two drivers, started together", repeated_s=study.repeated_s())


FOLDS = {"resource": "folds", "max_resource": 3, "epochs": 2, "scheduler": "full"}


@pytest.mark.slow
def test_cross_validation_killed_in_a_fold_resumes_with_that_fold(
    new_study: NewStudy, costs: CostTable
) -> None:
    calm = new_study("calm", step_s=0.0, backend="inline", search=FOLDS, budget={"trials": 2})
    calm.finish_and_check(rows=None)
    study = new_study(step_s=0.05, backend="inline", search=FOLDS, budget={"trials": 2})
    study.start_driver()
    eventually(lambda: len(study.of_kind("fold")) == 1, "the first fold")
    study.wait_for_step(0, after=study.of_kind("fold")[0]["time"])
    study.kill_driver()  # the process of the rank: this backend trains in the driver
    before = study.of_kind("fold")
    study.finish_and_check(rows=None)

    folds = study.of_kind("fold")
    assert folds[: len(before)] == before
    assert [(e["trial_id"], e["fold"]) for e in folds] == [
        (trial, fold) for trial in (0, 1) for fold in (1, 2, 3)
    ]
    assert [(e["trial_id"], e["fold"], e["attempt"]) for e in folds if e["attempt"] > 1] == [(0, 2, 2)]
    assert study.results() == calm.results()
    costs.add("driver killed in a fold of a cross-validation", repeated_s=study.repeated_s())


def test_full_disk_leaves_the_old_checkpoint_intact(
    small_disk: Callable[[int], SmallDisk],
) -> None:
    storage = Storage(small_disk(64).host_path)
    old = torch.arange(8000, dtype=torch.int32)  # half of the disk: there is no room for another one
    checkpoint.save(storage, "trial/1.pt", {"model": old})
    before = storage.read("trial/1.pt")
    with pytest.raises(StorageError, match=r"trial/2\.pt: No space left on device"):
        checkpoint.save(storage, "trial/2.pt", {"model": old + 1})
    with pytest.raises(StorageError, match=r"trial/1\.pt: No space left on device"):
        checkpoint.save(storage, "trial/1.pt", {"model": old + 1})
    assert storage.read("trial/1.pt") == before
    assert torch.equal(checkpoint.load(storage, "trial/1.pt")["model"], old)
    assert storage.names("trial", hidden=True) == ["1.pt"], "nothing of the others is left"
