"""`SnapshotFolder`: snapshots are complete or absent, shared, and deleted when no study needs them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

from spark_hpo.errors import DataError
from spark_hpo.snapshots.snapshot_folder import Snapshot, SnapshotFolder, default_folder
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.lease import Lease
from spark_hpo.study_dir.storage import Storage

KEY = "0123abcd"


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    return SnapshotFolder(default_folder(str(tmp_path / "studies/a")))


def study(tmp_path: Path, name: str) -> Storage:
    storage = Storage(tmp_path / "studies" / name)
    Definition.create({}).write(storage)
    return storage


def write(url: str) -> int:
    Path(url).mkdir(parents=True)
    Path(url, "part-0.parquet").write_bytes(b"x" * 10)
    return 7


def write_and_die(root: str, study_dir: str) -> None:
    def half(url: str) -> int:
        write(url)
        os.kill(os.getpid(), signal.SIGKILL)
        return 7

    SnapshotFolder(root).obtain(KEY, {}, Storage(study_dir), half)


def data_folders(folder: SnapshotFolder) -> list[str]:
    return sorted(path.name for path in Path(folder.url, KEY).glob("data-*"))


def obtain(folder: SnapshotFolder, storage: Storage) -> Snapshot:
    snapshot = folder.obtain(KEY, {"plan": "p"}, storage, write)
    snapshot.write_record(storage)
    return snapshot


def test_default_folder_is_beside_the_study(tmp_path: Path) -> None:
    assert default_folder(str(tmp_path / "studies/a")) == str(tmp_path / "studies/.snapshots")
    assert default_folder("s3://bucket/studies/a") == "s3://bucket/studies/.snapshots"
    assert default_folder("s3://bucket") == "s3://bucket/.snapshots"


def test_obtain_writes_once_for_all_studies_of_a_key(tmp_path: Path, folder: SnapshotFolder) -> None:
    first = obtain(folder, study(tmp_path, "a"))
    assert (first.rows, first.source) == (7, {"plan": "p"})
    assert obtain(folder, study(tmp_path, "b")) == first
    assert data_folders(folder) == [first.data]
    assert Snapshot.of_study(Storage(tmp_path / "studies/b")) == first


def test_obtain_by_two_drivers_at_once_leaves_one_snapshot(tmp_path: Path, folder: SnapshotFolder) -> None:
    both = Barrier(2, timeout=20)

    def together(url: str) -> int:
        both.wait()  # so both have found no snapshot
        return write(url)

    studies = [study(tmp_path, name) for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda storage: folder.obtain(KEY, {}, storage, together), studies))
    assert found[0] == found[1]
    assert data_folders(folder) == [found[0].data]


def test_obtain_leaves_nothing_of_a_failed_write(tmp_path: Path, folder: SnapshotFolder) -> None:
    def failing(url: str) -> int:
        write(url)
        raise DataError("the table has no rows")

    with pytest.raises(DataError):
        folder.obtain(KEY, {}, study(tmp_path, "a"), failing)
    assert data_folders(folder) == []
    assert folder.find(KEY) is None


def test_obtain_replaces_what_a_killed_driver_left(tmp_path: Path, folder: SnapshotFolder) -> None:
    storage = study(tmp_path, "a")
    process = multiprocessing.get_context("spawn").Process(
        target=write_and_die, args=(folder.url, storage.url)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    [left] = data_folders(folder)
    assert folder.find(KEY) is None

    snapshot = obtain(folder, storage)
    assert snapshot.data != left
    files, size = folder.collect()
    assert (files, size) == (1, 10)
    assert data_folders(folder) == [snapshot.data]


def test_obtain_replaces_a_snapshot_whose_files_were_deleted(tmp_path: Path, folder: SnapshotFolder) -> None:
    storage = study(tmp_path, "a")
    first = obtain(folder, storage)
    shutil.rmtree(first.url)
    assert obtain(folder, storage).data != first.data


def test_collect_deletes_a_snapshot_with_the_last_study(tmp_path: Path, folder: SnapshotFolder) -> None:
    studies = [study(tmp_path, name) for name in "ab"]
    snapshot, _ = (obtain(folder, storage) for storage in studies)
    studies[0].remove()
    assert folder.collect() == (0, 0)
    assert Path(snapshot.url).is_dir()
    studies[1].remove()
    assert folder.collect(dry_run=True)[0] == 4  # the data, the manifest and two users
    assert Path(snapshot.url).is_dir()
    assert folder.collect()[0] == 4
    assert not Path(folder.url, KEY).exists()


def test_collect_keeps_what_a_study_may_be_writing(tmp_path: Path, folder: SnapshotFolder) -> None:
    storage = study(tmp_path, "a")
    lease = Lease.acquire(storage)
    try:
        folder.add_user(KEY, storage)
        write(f"{folder.url}/{KEY}/data-new")
        assert folder.collect() == (0, 0)
    finally:
        lease.release()
    assert folder.collect()[0] == 2


def test_collect_deletes_what_a_study_reads_no_longer(tmp_path: Path, folder: SnapshotFolder) -> None:
    storage = study(tmp_path, "a")
    obtain(folder, storage)
    other = folder.obtain("4567", {}, storage, write)
    other.write_record(storage)
    folder.collect()
    assert not Path(folder.url, KEY).exists()
    assert Path(other.url).is_dir()


def test_collect_deletes_the_snapshot_of_studies_that_have_ended(
    tmp_path: Path, folder: SnapshotFolder
) -> None:
    studies = [study(tmp_path, name) for name in "ab"]
    snapshot, _ = (obtain(folder, storage) for storage in studies)
    folder.collect(ended=[studies[0].url])
    assert Path(snapshot.url).is_dir()
    folder.collect(ended=[storage.url for storage in studies])
    assert not Path(folder.url, KEY).exists()


def test_snapshots_live_on_an_object_store(tmp_path: Path) -> None:
    remote = SnapshotFolder(f"memory://{tmp_path.name}/.snapshots")
    fs = fsspec.filesystem("memory")

    def write_remote(url: str) -> int:
        fs.pipe_file(f"{url.removeprefix('memory:/')}/part-0.parquet", b"x" * 10)
        return 7

    studies = [study(tmp_path, name) for name in "ab"]
    first, second = (remote.obtain(KEY, {}, storage, write_remote) for storage in studies)
    assert first == second
    first.write_record(studies[0])
    studies[1].remove()
    fs.pipe_file(f"/{tmp_path.name}/.snapshots/{KEY}/data-left/part-0.parquet", b"x")
    assert remote.collect() == (1, 1)
    assert remote.find(KEY) == first
    studies[0].remove()
    assert remote.collect()[0] == 4
    assert remote.find(KEY) is None
