import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spark_hpo.driver.cleanup import clean_snapshots, clean_study
from spark_hpo.errors import ConfigError, LeaseError
from spark_hpo.objective import Mode, Objective
from spark_hpo.snapshots.snapshot_folder import SnapshotFolder, default_folder
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.written_studies import StudyWriter


class Files:
    """Checkpoints of a study that is written by hand, ten bytes each."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def save(self, name: str) -> str:
        self.storage.write(name, b"x" * 10)
        return name

    def checkpoint(self, trial: int, resource: int) -> str:
        return self.save(layout.checkpoint(trial, resource, 1))

    @property
    def left(self) -> set[str]:
        return {
            f"checkpoints/{folder}/{name}"
            for folder in self.storage.names("checkpoints")
            for name in self.storage.names(f"checkpoints/{folder}", hidden=True)
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(Storage(tmp_path / "study"))


def write(pen: StudyWriter, files: Files) -> dict[int, str]:
    """Trial 0 is the best, 1 waits for a promotion, 2 is out, 3 has failed half way, 4 was running."""
    saved = {trial: files.checkpoint(trial, 1) for trial in (0, 1, 2)}
    for trial, value in {0: 0.9, 1: 0.8, 2: 0.1}.items():
        pen.start(trial).end(trial, value=value, checkpoint=saved[trial])
    pen.settle(TrialState.COMPLETED, 0).settle(TrialState.STOPPED, 2)
    pen.start(3).end(3, value=None, failure=Failure(kind=FailureKind.TRIAL, message="no"))
    saved[3] = files.save(layout.partial(3, 1))
    pen.start(4)
    saved[4] = files.save(layout.partial(4, 1))
    return saved


def test_clean_keeps_what_an_interrupted_study_resumes_from(files: Files) -> None:
    pen = StudyWriter(storage=files.storage)
    saved = write(pen, files)
    files.save("checkpoints/trial-000001/.tmp-0123")
    files.save(layout.progress(3, 1))
    pen.close("interrupted")
    planned = clean_study(files.storage, ended_for_s=0, dry_run=True)
    assert (planned.files, planned.bytes) == (4, 40)
    assert files.left == {*saved.values(), "checkpoints/trial-000001/.tmp-0123"}
    assert clean_study(files.storage, ended_for_s=0) == planned
    assert files.left == {saved[0], saved[1], saved[4]}
    assert files.storage.names("progress") == []
    assert clean_study(files.storage).files == 0


KILLED = """
import os, signal, sys
from spark_hpo.prepare.output import Request

with Request(output=sys.argv[1], arguments={}).writing() as folder:
    os.mkdir(f"{folder}/train")
    open(f"{folder}/train/part-0.parquet", "wb").write(b"x" * 10)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_clean_deletes_the_description_of_a_table_that_a_killed_driver_began(files: Files) -> None:
    pen = StudyWriter(storage=files.storage)
    write(pen, files)
    pen.close("interrupted")
    folder = Path(files.storage.url)
    saved = files.left
    (folder / "table").mkdir()
    (folder / "table/schema.json").write_text("{}")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder / "table")], check=False)
        assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob(".table.*"))) == 2
    (folder / ".table.link").symlink_to(folder / "table")
    before = clean_study(files.storage, dry_run=True)
    assert len(list(folder.glob(".table.*"))) == 3
    assert clean_study(files.storage) == before
    assert before.bytes >= 20
    assert [path.name for path in folder.glob(".table.*")] == [".table.link"]
    assert (folder / "table/schema.json").exists()
    assert files.left <= saved


def test_clean_keeps_what_a_larger_budget_needs_unless_the_study_is_old(files: Files) -> None:
    pen = StudyWriter(storage=files.storage)
    saved = write(pen, files)
    pen.end(4, value=0.5, checkpoint=files.checkpoint(4, 1)).settle(TrialState.STOPPED, 4).close()
    clean_study(files.storage)
    assert files.left == {saved[0], saved[1]}
    clean_study(files.storage, ended_for_s=1e12)
    assert files.left == {saved[0], saved[1]}, "it ended later than that"
    clean_study(files.storage, ended_for_s=3600)
    assert files.left == {saved[0]}


def test_clean_keeps_the_best_checkpoint_of_the_best_trial(files: Files) -> None:
    pen = StudyWriter(storage=files.storage)
    early, late = files.checkpoint(0, 1), files.checkpoint(0, 3)
    pen.start(0).end(0, value=0.9, checkpoint=early)
    pen.start(0, 1, 3, rung=1).end(0, 3, value=0.7, rung=1, checkpoint=late)
    pen.settle(TrialState.COMPLETED, 0).close()
    clean_study(files.storage, ended_for_s=0)
    assert files.left == {early}


def test_clean_keeps_the_pareto_front(files: Files) -> None:
    objective = Objective(metric="accuracy", mode=Mode.MAX, extra_objectives=(("ms", Mode.MIN),))
    pen = StudyWriter(objective, storage=files.storage)
    saved = {trial: files.checkpoint(trial, 9) for trial in range(3)}
    for trial, metrics in enumerate([(0.9, 9.0), (0.8, 1.0), (0.7, 5.0)]):
        values = dict(zip(("accuracy", "ms"), metrics, strict=True))
        pen.start(trial, 0, 9).end(trial, 9, metrics=values, checkpoint=saved[trial])
    pen.settle(TrialState.COMPLETED, 0, 1, 2).close()
    clean_study(files.storage, ended_for_s=0)
    assert files.left == {saved[0], saved[1]}


def test_clean_keeps_the_checkpoint_of_a_parent(files: Files) -> None:
    """In population based training a child takes over its parent's weights."""
    pen = StudyWriter(storage=files.storage)
    parent, best = files.checkpoint(0, 1), files.checkpoint(1, 1)
    pen.start(0).end(0, value=0.5, checkpoint=parent)
    pen.start(1).end(1, value=0.9, checkpoint=best)
    pen.settle(TrialState.STOPPED, 0, 1)
    pen.start(2, 1, 2, checkpoint=parent).close("interrupted")
    clean_study(files.storage)
    assert files.left == {parent, best}


def test_clean_skips_a_running_study(files: Files) -> None:
    pen = StudyWriter(storage=files.storage)
    saved = write(pen, files)
    for dry_run in (True, False):
        with pytest.raises(LeaseError, match="a driver is running this study"):
            clean_study(files.storage, ended_for_s=0, dry_run=dry_run)
    assert files.left == set(saved.values())


def test_cleaning_leaves_lease_and_journal_as_they_were(files: Files, tmp_path: Path) -> None:
    pen = StudyWriter(storage=files.storage)
    write(pen, files)
    pen.close()
    before = {
        p: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file() and "check" not in str(p)
    }
    clean_study(files.storage)
    after = {
        p: p.read_bytes() for p in (tmp_path / "study").rglob("*") if p.is_file() and "check" not in str(p)
    }
    assert after == before


def test_clean_without_a_study_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no study here"):
        clean_study(Storage(tmp_path / "study"))
    assert list(tmp_path.iterdir()) == []


def test_objects_of_a_store_go_too() -> None:
    files = Files(Storage("memory://cleaned"))
    pen = StudyWriter(storage=files.storage)
    saved = write(pen, files)
    pen.close("interrupted")
    assert clean_study(files.storage).bytes == 20
    assert files.left == {saved[0], saved[1], saved[4]}


def test_clean_snapshots_deletes_that_of_a_study_that_has_ended(files: Files, tmp_path: Path) -> None:
    def write_rows(url: str) -> int:
        Path(url).mkdir(parents=True)
        Path(url, "part-0.parquet").write_bytes(b"x" * 10)
        return 1

    pen = StudyWriter(storage=files.storage)
    write(pen, files)
    folder = SnapshotFolder(default_folder(files.storage.url))
    snapshot = folder.obtain("key", {}, files.storage, write_rows)
    snapshot.write_record(files.storage)
    pen.close("finished")
    for ended_for_s in (None, 1e12):
        assert clean_snapshots([files.storage], None, ended_for_s=ended_for_s)[folder.url].files == 0
    assert Path(snapshot.url).is_dir()
    assert clean_snapshots([files.storage], None, ended_for_s=0)[folder.url].files == 3
    assert not Path(snapshot.url).exists()
