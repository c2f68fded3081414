"""Folders as checkpoints, reported by training functions: saved whole, uploaded once, loaded anywhere."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from spark_hpo.errors import CheckpointError, StorageError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.retention import BEST, Owner, Retention, Role
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint, folder
from spark_hpo.train.checkpoints.folder import FolderStore
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report

PATH = layout.checkpoint(4, 1, 1, suffix=layout.MANIFEST)


class CountingStorage(Storage):
    """Keeps the names of the files that are uploaded."""

    uploaded: list[str]

    def upload_all(self, files: Sequence[tuple[str, Path]]) -> None:
        self.uploaded += [str(path.name) for _, path in files]
        super().upload_all(files)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CountingStorage]:
    url = str(tmp_path / "study") if request.param == "local" else f"memory://{tmp_path.name}"
    found = CountingStorage(url)
    found.uploaded = []
    yield found
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    write(place / "model.bin", b"weights")
    write(place / "sub" / "tokens.txt", b"tokens")
    write(place / "sub" / "same.bin", b"weights")
    (place / "empty").mkdir()
    (place / "latest").symlink_to("sub")
    return place


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def contents(place: Path) -> dict[str, bytes | None]:
    paths = sorted(place.rglob("*"))
    return {
        str(path.relative_to(place)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in paths
        if path.is_file() or path.is_symlink()
    } | {str(path.relative_to(place)): None for path in paths if path.is_dir() and not path.is_symlink()}


def saved(storage: Storage) -> list[str]:
    return storage.names(layout.checkpoints(4), hidden=True)


def test_load_returns_the_folder_that_was_saved(storage: Storage, source: Path, tmp_path: Path) -> None:
    FolderStore(storage, "0-1", None).save(PATH, source, {"curve": [1, 2]})
    state = checkpoint.load(storage, PATH, folder=tmp_path)
    assert contents(state["function"]) == contents(source)
    assert state["curve"] == [1, 2]
    assert checkpoint.kind_of(storage, PATH) is manifest.Kind.FOLDER
    with pytest.raises(CheckpointError, match="folder"):
        checkpoint.weights(storage, PATH)


def test_equal_contents_are_uploaded_once(storage: CountingStorage, source: Path) -> None:
    FolderStore(storage, "0-1", None).save(PATH, source, {})
    assert len(storage.uploaded) == 2
    assert len(saved(storage)) == 3  # with the manifest


def test_unchanged_files_are_not_uploaded_again(storage: CountingStorage, source: Path) -> None:
    first = FolderStore(storage, "0-1", None)
    first.save(PATH, source, {})
    write(source / "model.bin", b"better weights")
    storage.uploaded.clear()
    first.save(PATH, source, {})
    assert storage.uploaded == ["model.bin"]
    storage.uploaded.clear()
    write(source / "new.txt", b"new")
    FolderStore(storage, "1-1", PATH).save(layout.checkpoint(4, 3, 1, suffix=layout.MANIFEST), source, {})
    assert storage.uploaded == ["new.txt"]


def test_save_replaces_the_folder_before_with_its_parts(storage: Storage, source: Path) -> None:
    store = FolderStore(storage, "0-1", None)
    store.save(PATH, source, {})
    shutil.rmtree(source)
    write(source / "other", b"other")
    store.save(PATH, source, {})
    assert len(saved(storage)) == 2


def test_parts_stay_while_a_checkpoint_needs_them(storage: Storage, source: Path, tmp_path: Path) -> None:
    """The best checkpoint of a trial is released while a later one shares its parts, and the reverse."""
    later = layout.checkpoint(4, 3, 1, suffix=layout.MANIFEST)
    FolderStore(storage, "0-1", None).save(PATH, source, {})
    write(source / "model.bin", b"better weights")
    FolderStore(storage, "1-1", PATH).save(later, source, {})
    retention = Retention(storage)
    retention.keep(BEST, PATH)
    retention.keep(Owner(Role.TRIAL, 4), later)
    storage.write(f"{layout.checkpoints(4)}/1-2-aa.part", b"of a killed attempt")
    retention.sweep()
    assert len(saved(storage)) == 2 + 3
    retention.keep(BEST, None)
    assert contents(checkpoint.load(storage, later, folder=tmp_path)["function"]) == contents(source)
    assert len(saved(storage)) == 1 + 3  # weights, of sub/same.bin, are still needed
    retention.keep(Owner(Role.TRIAL, 4), None)
    assert saved(storage) == []


def test_link_out_of_the_folder_is_refused(source: Path, storage: Storage, tmp_path: Path) -> None:
    write(tmp_path / "secret", b"secret")
    for target in (tmp_path / "secret", tmp_path, Path("missing"), Path("../secret"), source):
        (source / "link").symlink_to(target)
        with pytest.raises(TrialError, match="link"):
            FolderStore(storage, "0-1", None).save(PATH, source, {})
        (source / "link").unlink()
    assert saved(storage) == []


def test_pipe_in_the_folder_is_refused(source: Path, storage: Storage) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(TrialError, match="pipe"):
        folder.stage(source)


def test_file_instead_of_a_folder_is_refused(source: Path) -> None:
    with pytest.raises(TrialError, match="not a folder"):
        folder.stage(source / "model.bin")


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"path": "../out", "part": "P", "sha256": "H"}]},
        {"files": [{"path": "/tmp/out", "part": "P", "sha256": "H"}]},
        {"files": [{"path": "a", "part": "unknown", "sha256": "H"}]},
        {"files": [{"path": "a", "part": "P", "sha256": "other"}]},
        {"files": [{"path": "a/b", "part": "P", "sha256": "H"}, {"path": "a", "part": "P", "sha256": "H"}]},
        {"links": {"l": "/etc"}},
        {"links": {"l": "../../x"}},
        {"links": {"l": ".", "l/b/m": "../../x"}},
        {"empty": [".."]},
        {"files": None},
    ],
)
def test_load_refuses_a_manifest_that_leads_elsewhere(tmp_path: Path, change: dict[str, Any]) -> None:
    storage = Storage(tmp_path / "study")
    write(tmp_path / "source" / "file", b"data")
    FolderStore(storage, "0-1", None).save(PATH, tmp_path / "source", {})
    document = json.loads(storage.read(PATH) or b"")
    content = document["content"]
    part, sha256 = document["parts"][0], content["files"][0]["sha256"]
    content |= json.loads(json.dumps(change).replace('"P"', f'"{part}"').replace('"H"', f'"{sha256}"'))
    storage.write(PATH, json.dumps(document).encode())
    place = tmp_path / "copies"
    place.mkdir()
    with pytest.raises(CheckpointError):
        checkpoint.load(storage, PATH, folder=place)
    assert list(place.iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_load_refuses_a_damaged_part(storage: Storage, source: Path, tmp_path: Path, damage: str) -> None:
    FolderStore(storage, "0-1", None).save(PATH, source, {})
    part = manifest.part_path(PATH, sorted(manifest.parts(storage, PATH))[0])
    data = storage.read(part) or b""
    storage.delete(part)
    if damage != "missing":
        storage.write(part, data[:-1] + (b"" if damage == "cut" else b"?"))
    with pytest.raises(CheckpointError, match=r"\.part"):
        checkpoint.load(storage, PATH, folder=tmp_path)


class Killed(BaseException):
    """Stands for kill -9: the rank runs no code after it."""


calls: list[str] = []
killed_at: list[int] = []


def train(ctx: Any) -> None:
    """Counts epochs in a file, beside one that never changes; deletes the folder after each report."""
    start = 0
    if ctx.has_checkpoint:
        loaded = ctx.load_checkpoint()
        assert (loaded / "vocabulary.txt").read_bytes() == b"words"
        start = int((loaded / "epoch").read_text())
        write(loaded / "mine", b"the copy belongs to the function")
    calls.append(f"start {start}")
    assert start == ctx.resource.start
    if ctx.is_evaluation:
        ctx.report({"accuracy": float(start)})
    for epoch in range(*ctx.resource):
        if [epoch] == killed_at:
            raise Killed
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "vocabulary.txt", b"words")
            write(Path(place) / "epoch", str(epoch + 1).encode())
            ctx.report({"accuracy": float(epoch)}, checkpoint=Path(place))


@pytest.fixture
def spec(storage: CountingStorage) -> RankSpec:
    calls.clear()
    killed_at.clear()
    return RankSpec(
        study_id="study",
        storage=storage,
        trainable=train,
        table=None,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(checkpoint_epochs=1),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )


def assignment(start: int, stop: int, path: str | None = None, attempt: int = 1) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def run(spec: RankSpec, assignment: Assignment) -> Report:
    return run_rank(spec, assignment, rank=0, world_size=1)


def temporary() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("spark-hpo-")}


def test_function_continues_from_its_folder(spec: RankSpec, storage: CountingStorage) -> None:
    before = temporary()
    first = run(spec, assignment(0, 2))
    assert first.failure is None, first.failure
    second = run(spec, assignment(2, 3, first.checkpoint))
    assert second.metrics == {"accuracy": 2.0}
    evaluated = run(spec, assignment(3, 3, second.checkpoint))
    assert evaluated.metrics == {"accuracy": 3.0}
    assert calls == ["start 0", "start 2", "start 3"]
    assert storage.uploaded.count("vocabulary.txt") == 1
    assert storage.uploaded.count("epoch") == 3
    assert temporary() == before, "local copies are deleted"


def test_partial_folder_is_deleted_at_the_end(spec: RankSpec, storage: Storage) -> None:
    report = run(spec, assignment(0, 3))
    assert report.checkpoint == layout.checkpoint(4, 3, 1, suffix=layout.MANIFEST)
    assert len(saved(storage)) == 3


def test_killed_function_resumes_from_its_folder(spec: RankSpec, storage: Storage) -> None:
    killed_at.append(2)
    with pytest.raises(Killed):
        run(spec, assignment(0, 4))
    killed_at.clear()
    report = run(spec, assignment(0, 4, attempt=2))
    assert calls == ["start 0", "start 2"]
    assert [m.resource for m in report.curve] == [1, 2, 3, 4]


def test_damaged_folder_is_skipped(spec: RankSpec, storage: Storage) -> None:
    killed_at.append(2)
    with pytest.raises(Killed):
        run(spec, assignment(0, 4))
    killed_at.clear()
    path = layout.partial(4, 1, suffix=layout.MANIFEST)
    storage.delete(manifest.part_path(path, sorted(manifest.parts(storage, path))[0]))
    assert run(spec, assignment(0, 4, attempt=2)).failure is None
    assert calls == ["start 0", "start 0"]


def test_failed_upload_leaves_no_manifest(
    spec: RankSpec, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Storage, files: Sequence[tuple[str, Path]]) -> None:
        raise StorageError("the network is down")

    monkeypatch.setattr(CountingStorage, "upload_all", fail)
    report = run(spec, assignment(0, 3))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.STORAGE
    assert saved(storage) == []


def test_next_report_raises_the_error_of_the_background(spec: RankSpec, storage: Storage) -> None:
    raised = []

    def two_reports(ctx: Any) -> None:
        ctx.report({"accuracy": 0.0}, checkpoint={"a": torch.ones(3)})
        try:
            ctx.report({"accuracy": 0.0}, checkpoint={"a": torch.ones(3)})
        except StorageError as exc:
            raised.append(exc)
            raise

    storage.write(layout.fence(4, 0), b"2")
    report = run(replace(spec, trainable=two_reports), assignment(0, 3))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.STORAGE
    assert len(raised) == 1


def test_report_waits_for_the_checkpoint_but_training_does_not(
    spec: RankSpec, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first partial checkpoint is written only after the function has gone on training."""
    goes_on = threading.Event()
    save = checkpoint.save

    def slow_save(storage: Storage, path: str, state: Any) -> None:
        assert goes_on.wait(30)
        save(storage, path, state)

    def one_report(ctx: Any) -> None:
        values = torch.zeros(2)
        ctx.report({"accuracy": 0.0}, checkpoint={"values": values})
        values += 1  # the checkpoint is a copy
        goes_on.set()
        raise Killed

    monkeypatch.setattr(checkpoint, "save", slow_save)
    with pytest.raises(Killed):
        run(replace(spec, trainable=one_report), assignment(0, 3))
    loaded = checkpoint.load(storage, layout.partial(4, 1))
    assert torch.equal(loaded["function"]["values"], torch.zeros(2))
    report = run(replace(spec, trainable=one_report_of_the_end), assignment(0, 1, attempt=3))
    assert storage.size(report.checkpoint or "") > 0


def one_report_of_the_end(ctx: Any) -> None:
    ctx.report({"accuracy": 0.0}, checkpoint=b"bytes", resource=1)
