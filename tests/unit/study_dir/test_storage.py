import contextlib
import errno
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.errors import StorageError
from spark_hpo.study_dir.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path / "study" if request.param == "local" else f"memory://{tmp_path.name}")


def test_storage_reads_what_it_wrote_and_none_for_a_missing_file(storage: Storage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    assert storage.read("a/none") is None


def test_storage_creates_a_file_only_once(storage: Storage) -> None:
    assert storage.create("epochs/1", b"first")
    assert not storage.create("epochs/1", b"second")
    assert storage.read("epochs/1") == b"first"


def test_storage_lists_sorted_names_and_none_in_a_missing_folder(storage: Storage) -> None:
    storage.write("f/b", b"")
    storage.write("f/a", b"")
    assert storage.names("f") == ["a", "b"]
    assert storage.names("g") == []


def test_storage_deletes_a_missing_file_without_error(storage: Storage) -> None:
    storage.write("x", b"")
    storage.delete("x")
    storage.delete("x")
    assert storage.read("x") is None


def test_storage_reads_a_range(storage: Storage) -> None:
    storage.write("a", b"0123456789")
    assert storage.read_range("a", 2, 5) == b"234"
    assert storage.read_range("a", 8, 20) == b"89"
    assert storage.read_range("none", 0, 1) is None


def test_storage_shows_a_file_that_is_written_in_pieces_only_when_it_is_complete(storage: Storage) -> None:
    storage.write("f/a", b"old")
    with storage.writing("f/a") as file:
        file.write(b"new ")
        assert storage.read("f/a") == b"old"
        file.write(b"file")
    assert storage.read("f/a") == b"new file"
    with contextlib.suppress(KeyboardInterrupt), storage.writing("f/a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert storage.read("f/a") == b"new file"
    assert storage.names("f", hidden=True) == ["a"]


def test_storage_copies_files_from_and_to_the_local_disk(storage: Storage, tmp_path: Path) -> None:
    sources = [tmp_path / str(number) for number in range(20)]
    for path in sources:
        path.write_text(f"file {path.name}")
    storage.upload_all([(f"f/{path.name}", path) for path in sources])
    targets = [tmp_path / f"copy of {path.name}" for path in sources]
    wanted = [(f"f/{path.name}", target) for path, target in zip(sources, targets, strict=True)]
    assert storage.download_all([*wanted, ("f/none", tmp_path / "none")]) == ["f/none"]
    assert [path.read_text() for path in targets] == [path.read_text() for path in sources]


def test_log_keeps_its_lines_in_order(storage: Storage) -> None:
    log = storage.log("journal/000001")
    for number in range(12):
        log.append(f"line {number}")
    log.close()
    assert storage.log("journal/000001").lines() == [f"line {n}\n".encode() for n in range(12)]


def test_storage_keeps_the_old_file_when_a_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_storage_refuses_paths_outside_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="inside the study directory"):
        Storage(tmp_path).write(name, b"")


def test_storage_with_a_relative_path_ignores_a_later_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("study")
    storage.write("a", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


@pytest.mark.parametrize("name", ["", ".", "a//b", "a/./b", "a\0b", "a\nb", 7, None, ["a"]])
def test_storage_refuses_invalid_paths(storage: Storage, name: Any) -> None:
    """Names also come from journals, which another user may have written."""
    for use in (storage.read, storage.delete, storage.names):
        with pytest.raises(StorageError, match="relative path inside"):
            use(name)


def open_files(storage: Storage) -> list[str]:
    """Return the files and folders of a storage that this process has open. Threads may open others."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found.append(os.readlink(link))
    return sorted(path for path in found if path.startswith(storage.url))


class TestLocalDirectory:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return Storage(tmp_path / "study")

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Path:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").write_bytes(b"theirs")
        return tmp_path / "elsewhere"

    def test_files_are_accessible_by_their_owner_only(self, storage: Storage, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            storage.write("checkpoints/trial-000001/a.pt", b"")
            storage.create("epochs/000001", b"")
            log = storage.log("journal/000001")
            log.append("line")
            log.close()
            with storage.locked("lease.lock"):
                pass
        finally:
            os.umask(before)
        made = [tmp_path / "study", *(tmp_path / "study").rglob("*")]
        assert len(made) == 9
        for path in made:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    @pytest.mark.parametrize(
        "use",
        [
            lambda storage: storage.read("folder/file"),
            lambda storage: storage.write("folder/file", b"ours"),
            lambda storage: storage.create("folder/new", b"ours"),
            lambda storage: storage.delete("folder/file"),
            lambda storage: storage.names("folder"),
            lambda storage: storage.log("folder/log").append("ours"),
            lambda storage: storage.locked("folder/lock").__enter__(),
            lambda storage: storage.write("folder/below/file", b"ours"),
        ],
    )
    def test_linked_folder_is_refused(
        self, storage: Storage, elsewhere: Path, use: Callable[[Storage], object]
    ) -> None:
        storage.write("study.json", b"{}")
        Path(storage.path("folder")).symlink_to(elsewhere)
        with pytest.raises(StorageError, match=r"folder.*is a symbolic link"):
            use(storage)
        assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"file": b"theirs"}

    @pytest.mark.parametrize(
        "use",
        [
            lambda storage: storage.read("folder/link"),
            lambda storage: storage.log("folder/link").append("ours"),
            lambda storage: storage.log("folder/link").lines(),
            lambda storage: storage.locked("folder/link").__enter__(),
        ],
    )
    def test_linked_file_is_refused(
        self, storage: Storage, elsewhere: Path, use: Callable[[Storage], object]
    ) -> None:
        storage.write("folder/file", b"ours")
        for name in ("link", "link.jsonl"):
            Path(storage.path(f"folder/{name}")).symlink_to(elsewhere / "file")
        with pytest.raises(StorageError, match=r"folder/link.*is a symbolic link"):
            use(storage)
        assert (elsewhere / "file").read_bytes() == b"theirs"

    def test_write_and_delete_replace_a_link_and_not_its_target(
        self, storage: Storage, elsewhere: Path
    ) -> None:
        storage.write("folder/file", b"ours")
        for name in ("a", "b"):
            Path(storage.path(f"folder/{name}")).symlink_to(elsewhere / "file")
        storage.write("folder/a", b"ours")
        storage.delete("folder/b")
        assert not storage.create("folder/a", b"again")
        assert (elsewhere / "file").read_bytes() == b"theirs"
        assert storage.names("folder") == ["a", "file"]
        assert storage.read("folder/a") == b"ours"

    def test_pipe_is_refused_without_waiting(self, storage: Storage) -> None:
        storage.write("folder/file", b"")
        os.mkfifo(storage.path("folder/pipe"))
        with pytest.raises(StorageError, match="regular file"):
            storage.read("folder/pipe")

    def test_study_directory_itself_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "study").symlink_to(tmp_path / "disk")
        storage = Storage(tmp_path / "study")
        storage.write("a/b", b"1")
        assert (tmp_path / "disk/a/b").read_bytes() == b"1"
        assert storage.names("a") == ["b"]

    def test_storage_closes_its_descriptors(self, storage: Storage, elsewhere: Path) -> None:
        storage.write("folder/file", b"")
        Path(storage.path("link")).symlink_to(elsewhere)
        before = open_files(storage)
        for _ in range(20):
            storage.read("folder/file")
            storage.names("folder")
            for name in ("link/file", "none/file", "folder/file/file"):
                with contextlib.suppress(StorageError):
                    storage.read(name)
        assert open_files(storage) == before


def test_storage_shows_a_created_file_only_with_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, seen = Storage(str(tmp_path / "study")), []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(storage.read("folder/new"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    assert storage.create("folder/new", b"content")
    assert (seen, storage.read("folder/new")) == ([None], b"content")
    assert os.listdir(tmp_path / "study/folder") == ["new"]


def test_storage_creates_a_file_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    storage = Storage(str(tmp_path / "study"))
    assert [storage.create("folder/new", b"first"), storage.create("folder/new", b"second")] == [True, False]
    assert storage.read("folder/new") == b"first"
    assert os.listdir(tmp_path / "study/folder") == ["new"]
