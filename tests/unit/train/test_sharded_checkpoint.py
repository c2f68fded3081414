"""Sharded checkpoints of a model that FSDP2 shards over two real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spark_hpo.errors import CheckpointError, TrialError
from spark_hpo.study_dir import manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import sharded
from spark_hpo.train.rendezvous.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
PATH = "checkpoints/trial-000001/000003-1.json"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.support.sharded_ranks",
            str(folder),
            str(folder / "study"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.medium
@pytest.mark.parametrize("number", ["one", "three"])
def test_load_restores_a_model_saved_by_two_ranks(ranks: dict[str, Any], number: str) -> None:
    saved = ranks["saved"][0]
    for loaded in ranks[number]:
        assert loaded["sums"] == pytest.approx(saved["sums"], rel=1e-6)
        assert loaded["next"] == pytest.approx(saved["next"], rel=1e-5)
        assert (loaded["resource"], loaded["names"], loaded["generators"]) == (3, ["a", None], 2)


@pytest.mark.medium
def test_load_gives_every_rank_its_own_shard(ranks: dict[str, Any]) -> None:
    assert ranks["one"][0]["shard"] == sum(rank["shard"] for rank in ranks["three"])
    assert max(rank["shard"] for rank in ranks["three"]) < 0.6 * ranks["one"][0]["shard"]


@pytest.mark.medium
def test_load_whole_returns_the_tensors_of_all_ranks(ranks: dict[str, Any]) -> None:
    saved = ranks["saved"][0]["sums"]
    assert ranks["whole"] == pytest.approx({name: saved[name] for name in ranks["whole"]}, rel=1e-6)


@pytest.mark.medium
def test_save_replaces_the_checkpoint_before_with_its_parts(ranks: dict[str, Any]) -> None:
    assert sorted(name.rpartition("-")[2] for name in ranks["names"]) == ["0.part", "1.json", "1.part"]


@pytest.mark.medium
def test_save_that_fails_on_one_rank_raises_on_all_and_changes_nothing(ranks: dict[str, Any]) -> None:
    assert ranks["failed"] == ["StorageError", "StorageError"]
    assert ranks["unchanged"]


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["damaged", "missing"])
def test_load_raises_on_all_ranks_for_a_bad_part(ranks: dict[str, Any], kind: str) -> None:
    assert all(".part" in message for message in ranks[kind])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.int64, torch.float64, torch.uint8]
)
def test_values_of_every_type_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    storage = Storage(tmp_path)
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    state = {"a": tensor, "b": tensor.t(), "empty": tensor[:0], "scalar": tensor[1, 1], "plain": (1, None)}
    sharded.save(storage, PATH, state, ALONE)
    loaded = sharded.load_whole(storage, PATH)
    assert loaded["plain"] == (1, None)
    for name in ("a", "b", "empty", "scalar"):
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], state[name])  # type: ignore[arg-type]


def test_save_refuses_an_object(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="Path"):
        sharded.save(Storage(tmp_path), PATH, {"a": torch.ones(1), "path": tmp_path}, ALONE)


def test_load_refuses_a_tensor_of_another_shape(tmp_path: Path) -> None:
    sharded.save(Storage(tmp_path), PATH, {"a": torch.ones(3)}, ALONE)
    with pytest.raises(CheckpointError, match="Size"):
        sharded.load(Storage(tmp_path), PATH, {"a": torch.ones(4)}, ALONE)


def test_load_refuses_a_checkpoint_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="000003-1"):
        sharded.load(Storage(tmp_path), PATH, {}, ALONE)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "nn"},
        {"dtype": "save"},
        {"dtype": "int8"},
        {"size": [10**9]},
        {"size": ["a"]},
        {"chunks": []},
        {"chunks": None},
    ],
)
def test_load_refuses_a_manifest_that_does_not_fit_its_parts(tmp_path: Path, change: dict[str, Any]) -> None:
    storage = Storage(tmp_path)
    sharded.save(storage, PATH, {"a": torch.ones(3)}, ALONE)
    document = json.loads(storage.read(PATH) or b"")
    document["content"]["tensors"]["a"] |= change
    storage.write(PATH, json.dumps(document).encode())
    with pytest.raises(CheckpointError):
        sharded.load_whole(storage, PATH)


def test_load_refuses_a_part_outside_the_folder(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write(PATH, manifest.Manifest(kind="sharded", parts=("../../secret",)).to_json())
    with pytest.raises(CheckpointError, match="parts"):
        sharded.load_whole(storage, PATH)
