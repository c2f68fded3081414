"""A study directory that fills up, takes its time, or must not be written to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spark_hpo.errors import StorageError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import checkpoint
from tests.faults.disk import SmallDisk, can
from tests.faults.family import eventually
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy

Live = Callable[..., LiveStudy]

LOCAL = {"spark.master": "local[2]"}
# A superuser may write wherever he likes, unless this is taken from him.
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.fixture
def disk(small_disk: Callable[[int], SmallDisk]) -> SmallDisk:
    return small_disk(512)


def test_a_full_disk_pauses_a_study_which_goes_on_when_there_is_room(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any], disk: SmallDisk
) -> None:
    study = disk.hold(live(step_s=0.1, spark=LOCAL, study_dir="disk/study"))
    process = study.begin()
    eventually(lambda: len(study.reported()) >= 1, "a report")
    before = study.results()
    disk.fill()
    filled = time.time()
    assert process.wait(120) == 1, study.log[-4000:]
    took = time.time() - filled
    assert "No space left on device" in study.log
    assert "disk/study" in study.log
    study.assert_nothing_is_left()
    study.assert_sound(is_finished=False)
    disk.make_room()
    study.begin()
    study.finish_soundly()
    assert study.results() == undisturbed
    assert before.items() <= study.results().items()
    ledger.add("storage full", repeated_s=study.repeated_s(), recovery_s=took)


def test_a_disk_that_must_not_be_written_to_is_refused_in_a_sentence(
    live: Live, ledger: Ledger, disk: SmallDisk
) -> None:
    study = disk.hold(live(step_s=0.0, backend="inline", study_dir="disk/study", budget={"trials": 1}))
    disk.remount("ro")
    process = study.begin()
    assert process.wait(60) == 1, study.log[-4000:]
    assert "Read-only file system" in study.log
    assert "Traceback" not in study.log
    disk.remount("rw")
    study.begin()
    study.finish_soundly()
    ledger.add("storage read-only")


def test_permissions_that_are_removed_pause_a_study(
    live: Live, ledger: Ledger, undisturbed: dict[Any, Any]
) -> None:
    if os.geteuid() == 0 and not can(*AS_ANYBODY, "true"):
        pytest.skip("gives up the rights of a superuser, which takes setpriv")
    study = live(step_s=0.1, spark=LOCAL)
    if os.geteuid() == 0:
        study.command = (*AS_ANYBODY, *study.command)
    process = study.begin()
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
    study.assert_nothing_is_left()
    study.begin()
    study.finish_soundly()
    assert study.results() == undisturbed
    assert before.items() <= study.results().items()
    ledger.add("permissions removed", repeated_s=study.repeated_s(), recovery_s=took)


def test_a_slow_disk_only_takes_its_time(live: Live, ledger: Ledger, undisturbed: dict[Any, Any]) -> None:
    study = live(step_s=0.0, spark=LOCAL, hurt={"SLOW_FSYNC_S": "0.5"})
    study.finish_soundly()
    assert study.lost() == []
    assert study.results() == undisturbed
    ledger.add("storage slow (0.5 s a sync)")


@pytest.mark.quick
def test_on_a_disk_of_64_kilobytes_the_old_checkpoint_stays_whole(
    small_disk: Callable[[int], SmallDisk],
) -> None:
    storage = Storage(small_disk(64).seen_from_here)
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
