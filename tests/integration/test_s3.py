"""Table and study directory on S3: a real server on loopback, with keys from the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("moto")
s3fs = pytest.importorskip("s3fs")

from spark_hpo import load_study  # noqa: E402
from spark_hpo.data.plan.shards import plan_shards  # noqa: E402
from spark_hpo.data.readers import ReaderName, open_reader  # noqa: E402
from spark_hpo.data.table import open_table  # noqa: E402
from spark_hpo.errors import ConfigError  # noqa: E402
from spark_hpo.report.status import StudyStatus  # noqa: E402
from spark_hpo.report.study_record import StudyRecord  # noqa: E402
from spark_hpo.study_dir.events import EventKind  # noqa: E402
from spark_hpo.study_dir.requests import ANSWERS, REQUESTS, Reply  # noqa: E402
from spark_hpo.study_dir.storage import Storage  # noqa: E402
from spark_hpo.train.checkpoints import checkpoint, folder, sharded  # noqa: E402
from spark_hpo.train.checkpoints.folder import FolderStore  # noqa: E402
from spark_hpo.train.rendezvous.world import World  # noqa: E402
from spark_hpo.trial import Split  # noqa: E402
from tests.support.mlflow_database import write_database  # noqa: E402
from tests.support.s3_server import s3_server  # noqa: E402
from tests.support.steered_study import STUDY, TASK  # noqa: E402
from tests.support.tables import write_clusters  # noqa: E402
from tests.support.workspace import LIMIT_S, Workspace, wait_for  # noqa: E402

SECRET = "canary-of-a-secret-key"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with s3_server(secret=SECRET) as variables:
        yield variables


@pytest.fixture(scope="module")
def store(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A file system with a table in s3://lake/table."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("lake")
        local = write_clusters(tmp_path_factory.mktemp("s3") / "table")
        store.put(str(local), "lake/table", recursive=True)
        yield store
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("reader", [ReaderName.ARROW, ReaderName.PETASTORM])
def test_readers_read_from_s3(store: Any, reader: ReaderName) -> None:
    if reader is ReaderName.PETASTORM:
        pytest.importorskip("petastorm")
    table = open_table("s3://lake/table")
    manifest = table.manifest(Split.TRAIN)
    [shard] = plan_shards(manifest, 1, 0)
    pieces = list(open_reader(reader, manifest, table.schema).read(shard.segments))
    assert sum(len(piece["side"]) for piece in pieces) == manifest.rows == 120


def test_log_on_s3_is_written_in_segments_and_read_in_order(store: Any) -> None:
    log = Storage("s3://lake/[brackets]").log("journal/000001")
    for number in range(260):
        log.append(f"line {number}")
    written = Storage("s3://lake/[brackets]")
    assert written.names("journal/000001") == [
        "000000001-000000256.jsonl",
        *(f"{number:09d}.json" for number in range(257, 261)),
    ]
    assert written.log("journal/000001").lines() == [f"line {n}\n".encode() for n in range(260)]


def test_upload_to_s3_counts_its_parts_as_progress(store: Any) -> None:
    parts: list[int] = []
    storage = Storage("s3://lake/progress").with_progress(lambda: parts.append(1))
    with storage.writing("large") as file:
        file.write(bytes(40 << 20))
    written = len(parts)
    assert written > 8  # five of 8 MiB to the local disk, and five to S3
    assert storage.size("large") == 40 << 20


def test_checkpoints_on_s3_are_loaded_as_they_were_saved(store: Any, tmp_path: Path) -> None:
    """A file in several parts of an upload, the parts of ranks, and a folder."""
    storage = Storage("s3://lake/[checkpoints]")
    state = {"model": torch.arange(6_000_000.0), "epoch": 3}
    checkpoint.save(storage, "a/000003-1.pt", state)
    sharded.save(storage, "a/000003-2.json", state, World(rank=0, size=1, device=torch.device("cpu")))
    for path in ("a/000003-1.pt", "a/000003-2.json"):
        loaded = checkpoint.load(storage, path)
        assert torch.equal(loaded["model"], state["model"])  # type: ignore[arg-type]
        assert loaded["epoch"] == 3
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "large").write_bytes(os.urandom(20 << 20))
    (tmp_path / "source" / "empty").write_bytes(b"")
    (tmp_path / "copy").mkdir()
    FolderStore(storage, "0-3", None).save("a/000003-3.json", tmp_path / "source", {"epoch": 3})
    assert folder.load(storage, "a/000003-3.json", tmp_path / "copy") == {"epoch": 3}
    for name in ("sub/large", "empty"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()


@pytest.mark.slow
def test_killed_study_on_s3_resumes_and_stores_no_keys(
    store: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path, environment)
    place = (
        "data.path=s3://lake/table",
        "study_dir=s3://lake/study",
        "resources.world_size=1",
        "search.max_resource=3",
        "budget.trials=8",
    )
    process = workspace.start(*place, "--log-file", "events.log")
    events = tmp_path / "events.log"
    wait_for(lambda: events.exists() and events.read_text().count(": accuracy ") >= 3, "three reports")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT_S)
    answer = workspace.run(*place)
    assert answer["segments"]["replayed"] >= 3
    assert sum(answer["trials"].values()) == 8
    assert answer["test"]["accuracy"] > 0.75
    assert not (tmp_path / "study").exists()

    store.invalidate_cache()
    objects = store.glob("lake/study/**")
    assert any(path.endswith(".pt") for path in objects)
    written = {path: store.cat(path) for path in objects if store.isfile(path)}
    written |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) > 20
    assert [path for path, data in written.items() if SECRET.encode() in data] == []


@pytest.mark.slow
def test_second_process_steers_a_study_on_s3(store: Any, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "study.yaml").write_text(STUDY.replace("study_dir: study", "study_dir: s3://lake/steered"))
    write_database(tmp_path)
    with (tmp_path / "log.txt").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "spark_hpo", "run", "study.yaml"],
            cwd=tmp_path,
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        storage = Storage("s3://lake/steered")
        wait_for(lambda: bool(storage.names("checkpoints")) or driver.poll() is not None, "the first trial")
        assert driver.poll() is None, (tmp_path / "log.txt").read_text()
        view = load_study("s3://lake/steered")
        assert view.pause().message.startswith("paused; ")
        wait_for(lambda: not StudyStatus.read(storage).running, "the trials to save")
        assert view.resume().message == "the study was paused and resumes"
        assert "gets {'x': 0.25, 'y': " in view.add({"x": 0.25}, like=0).message
        assert view.extend({"budget.trials": "+5"}).message == "budget.trials is 305 instead of 300"
        with pytest.raises(ConfigError, match="there is no trial 4000"):
            view.drop(4000)
        assert view.stop(now=True).reply is Reply.DONE
        assert driver.wait(LIMIT_S) == 0, (tmp_path / "log.txt").read_text()
    finally:
        driver.kill()
        driver.wait()
    store.invalidate_cache()
    record = StudyRecord.read(storage)
    steered = [e.data for driven in record.drivers for e in driven.events if e.kind is EventKind.STEERED]
    assert [data["verb"] for data in steered] == ["pause", "resume", "add", "extend", "drop", "stop"]
    assert [trial.params["x"] for trial in record.trials.values()].count(0.25) == 1
    assert storage.names(REQUESTS) == storage.names(ANSWERS) == []
