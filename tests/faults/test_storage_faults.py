"""Study directories that are full, slow or read-only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually
from tests.faults.small_disk import SmallDisk, can
from tests.faults.study_run import StudyRun

NewStudy = Callable[..., StudyRun]

LOCAL = {"spark.master": "local[2]"}
# With these capabilities, the superuser could write anywhere.
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.fixture
def disk(small_disk: Callable[[int], SmallDisk]) -> SmallDisk:
    return small_disk(512)


def test_full_disk_pauses_the_study_until_there_is_room(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any], disk: SmallDisk
) -> None:
    study = disk.attach(new_study(step_s=0.1, spark=LOCAL, study_dir="disk/study"))
    process = study.start_driver()
    eventually(lambda: len(study.reported()) >= 1, "a report")
    before = study.results()
    disk.fill()
    filled = time.time()
    assert process.wait(120) == 1, study.log[-4000:]
    took = time.time() - filled
    assert "No space left on device" in study.log
    assert "disk/study" in study.log
    study.assert_no_leftovers()
    study.assert_consistent(is_finished=False)
    disk.make_room()
    study.start_driver()
    study.finish_and_check()
    assert study.results() == undisturbed
    assert before.items() <= study.results().items()
    costs.add("storage full", repeated_s=study.repeated_s(), recovery_s=took)


def test_read_only_disk_is_refused_without_a_traceback(
    new_study: NewStudy, costs: CostTable, disk: SmallDisk
) -> None:
    study = disk.attach(new_study(step_s=0.0, backend="inline", study_dir="disk/study", budget={"trials": 1}))
    disk.remount("ro")
    process = study.start_driver()
    assert process.wait(60) == 1, study.log[-4000:]
    assert "Read-only file system" in study.log
    assert "Traceback" not in study.log
    disk.remount("rw")
    study.start_driver()
    study.finish_and_check()
    costs.add("storage read-only")


def test_removed_permissions_pause_the_study(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    if os.geteuid() == 0 and not can(*AS_ANYBODY, "true"):
        pytest.skip("gives up the rights of a superuser, which takes setpriv")
    study = new_study(step_s=0.1, spark=LOCAL)
    if os.geteuid() == 0:
        study.command = (*AS_ANYBODY, *study.command)
    process = study.start_driver()
    eventually(lambda: len(study.reported()) >= 1, "a report")
    before = study.results()
    folders = [study.study_dir / "checkpoints", *(study.study_dir / "checkpoints").iterdir()]
    for folder in folders:
        folder.chmod(0o500)
    removed = time.time()
    try:
        assert process.wait(120) == 1, study.log[-4000:]
        took = time.time() - removed
    finally:
        for folder in folders:
            folder.chmod(0o700)
    assert "Permission denied" in study.log
    assert "study/checkpoints/" in study.log
    study.assert_no_leftovers()
    study.start_driver()
    study.finish_and_check()
    assert study.results() == undisturbed
    assert before.items() <= study.results().items()
    costs.add("permissions removed", repeated_s=study.repeated_s(), recovery_s=took)


def test_slow_disk_changes_no_results(
    new_study: NewStudy, costs: CostTable, undisturbed: dict[Any, Any]
) -> None:
    study = new_study(step_s=0.0, spark=LOCAL, injected={"SLOW_FSYNC_S": "0.5"})
    study.finish_and_check()
    assert study.lost() == []
    assert study.results() == undisturbed
    costs.add("storage slow (0.5 s a sync)")
