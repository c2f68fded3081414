import pickle
from pathlib import Path

import pytest

from spark_hpo.errors import StorageError
from spark_hpo.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path / "study" if request.param == "local" else f"memory://{tmp_path.name}")


def test_a_file_is_read_back_and_a_missing_one_is_none(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    assert storage.read("a/none") is None


def test_only_the_first_creates_a_file(storage: Storage) -> None:
    assert storage.create("epochs/1", b"first")
    assert not storage.create("epochs/1", b"second")
    assert storage.read("epochs/1") == b"first"


def test_names_are_sorted_and_an_absent_folder_is_empty(storage: Storage) -> None:
    storage.write("f/b", b"")
    storage.write("f/a", b"")
    assert storage.names("f") == ["a", "b"]
    assert storage.names("g") == []


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.write("x", b"")
    storage.delete("x")
    storage.delete("x")
    assert storage.read("x") is None


def test_a_log_keeps_its_lines_in_order(storage: Storage) -> None:
    log = storage.log("journal/000001")
    for number in range(12):
        log.append(f"line {number}")
    log.close()
    assert storage.log("journal/000001").lines() == [f"line {n}\n".encode() for n in range(12)]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    storage.write("a/model", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StorageError, match="a/model: No space left on device"):
        storage.write("a/model", b"new")
    assert storage.read("a/model") == b"old"
    assert storage.names("a") == ["model"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../b"])
def test_a_path_never_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="stay inside"):
        Storage(tmp_path).write(name, b"")


def test_a_relative_directory_is_the_same_in_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("study")
    storage.write("a", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"
