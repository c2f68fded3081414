"""Processes that are killed while they save: the checkpoint before is whole, and the next attempt finds it.

These run with all other tests, because they need no Spark.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.retention import Retention
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints.attempt_checkpoints import AttemptCheckpoints
from spark_hpo.train.rendezvous.world import World
from tests.faults.saving_attempt import FILES, assignment
from tests.support.s3_server import s3_server

pytestmark = pytest.mark.medium

LIMIT_S = 60.0
FOLDER = layout.checkpoints(4)


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("faults")
        yield
        s3fs.S3FileSystem.clear_instance_cache()


def kill_while_saving(kind: str, storage: Storage) -> int:
    """Kill the program while it saves, after its first checkpoint; return the last durable one."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.saving_attempt", kind, storage.url],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "1\n", "nothing was saved"
        deadline = time.monotonic() + LIMIT_S
        while not is_saving(kind, storage):
            assert time.monotonic() < deadline, "the program does not save"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    rest = process.communicate(timeout=LIMIT_S)[0]
    return int((first + rest).split()[-1])


def is_saving(kind: str, storage: Storage) -> bool:
    """True while something is written that is not part of a checkpoint yet."""
    names = storage.names(FOLDER, hidden=True)
    if kind == "file":
        return any(name.startswith(".tmp-") for name in names)
    parts = manifest.parts(storage, layout.partial(4, 1, suffix=layout.MANIFEST))
    return bool(set(names) - parts - {"partial-1.json"}) and len(parts) > 0


def resumed(storage: Storage) -> dict[str, Any]:
    """The state that the next attempt resumes from."""
    found: dict[str, Any] = {}
    world = World(rank=0, size=1, device=torch.device("cpu"))
    checkpoints = AttemptCheckpoints(storage, assignment(2), world)
    assert checkpoints.resume(found.update, lambda key: None)
    if "function" in found:
        found["files"] = [path.read_bytes()[:9] for path in sorted(found["function"].iterdir())]
    checkpoints.close()
    return found


@pytest.mark.parametrize("kind", ["file", "folder", "sharded"])
def test_process_killed_while_saving_leaves_the_checkpoint_before(kind: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "study")
    durable = kill_while_saving(kind, storage)
    state = resumed(storage)
    assert state["number"] in (durable, durable + 1)
    if kind == "folder":
        expected = sorted(f"{state['number']:4d} {name:4d}".encode() for name in range(FILES))
        assert sorted(state["files"]) == expected
    else:
        assert {float(value) for one in state["model"].values() for value in one.unique()} == {
            float(state["number"])
        }
    # What was left over is deleted with the attempt.
    retention = Retention(storage)
    retention.sweep()
    assert storage.names(FOLDER, hidden=True) == []


def test_process_killed_while_uploading_a_folder_leaves_the_one_before(s3: None) -> None:
    storage = Storage("s3://faults/study")
    durable = kill_while_saving("folder", storage)
    state = resumed(storage)
    assert state["number"] in (durable, durable + 1)
    assert len({data[:4] for data in state["files"]}) == 1
    Retention(storage).sweep()
    assert Storage("s3://faults/study").names(FOLDER) == []
